"""Small tasks written to disk for the tests of the data modules: distinct random pictures, three classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (7, 11)  # height, width
COUNTS = {"train800": 13, "val200": 5, "test": 17}
CLASSES = 3


def pixels(seed: int, height: int = SIDES[0], width: int = SIDES[1]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(count: int) -> list[int]:
    return [index % CLASSES for index in range(count)]


def save(path: Path, picture: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(path, **options)
    return path


def vtab(folder: Path, suffix: str = ".png", **options) -> Path:
    """A VTAB folder written by hand, with train800val200 as both lists one after the other."""
    lists: dict[str, list[str]] = {}
    for place, (split, count) in enumerate(COUNTS.items()):
        for index, label in enumerate(labels(count)):
            path = f"images/{split}/{index:06d}{suffix}"
            save(folder / path, pixels(1000 * place + index), **options)
            lists.setdefault(split, []).append(f"{path} {label}\n")
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def relabel(listing: Path, line: int, label: object) -> None:
    """Give another label to one line of a list."""
    lines = listing.read_text().splitlines()
    lines[line] = f"{lines[line].split()[0]} {label}"
    listing.write_text("\n".join(lines) + "\n")
