"""Write a task as a VTAB folder: lossless PNG files, lists of paths and labels, the names of the classes.

    <folder>/images/<split>/000000.png ...
    <folder>/<split>.txt          lines `images/<split>/000000.png <label>`
    <folder>/train800val200.txt   train800.txt and val200.txt one after the other; the pictures are not written twice
    <folder>/classes.txt          one name a line, label 0 first

Everything is written beside the folder and then renamed, so that no half-written folder is ever there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.tasks import UNIONS

CLASSES_FILE = "classes.txt"


def write_vtab_task(
    folder: str | Path,
    splits: Mapping[str, tuple[Iterable[np.ndarray], Iterable[int]]],
    classes: Sequence[str] | None = None,
) -> Path:
    """Write every split, one picture in memory at a time, and give back the folder.

    Args:
        folder: must not exist yet, or be empty.
        splits: name -> (pictures, labels); a picture is uint8, grey (height, width) or RGB (height, width, 3).
            With `train800` and `val200` there is `train800val200` too, which is their union; likewise `trainval`.
        classes: names of the classes, label 0 first; each on a line of its own.

    Raises:
        InputError: the folder holds something, it cannot be written, or a picture or label is not what it should be.
            Nothing is left behind.
    """
    folder = Path(folder)
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} is there already and not an empty folder: remove it first, or write elsewhere.",
    )
    require(
        all(name.strip() and len(name.splitlines()) == 1 for name in classes or ()),
        f"the names of classes for {folder} need a line each: one of them is empty or has several lines.",
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        try:
            _write(partial, splits, classes)
            partial.chmod(0o755)  # mkdtemp's is for its owner alone
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error}): name a folder you may write to.") from error
    return folder


def _write(
    folder: Path, splits: Mapping[str, tuple[Iterable[np.ndarray], Iterable[int]]], classes: Sequence[str] | None
) -> None:
    lists = {name: _write_pictures(folder, name, *given, classes) for name, given in splits.items()}
    for union, parts in UNIONS.items():
        if union not in lists and all(part in lists for part in parts):
            lists[union] = [line for part in parts for line in lists[part]]
    if classes is not None:
        _write_lines(folder / CLASSES_FILE, classes)
    for name, lines in lists.items():
        _write_lines(folder / f"{name}.txt", lines)


def _write_pictures(
    folder: Path,
    split: str,
    pictures: Iterable[np.ndarray],
    labels: Iterable[int],
    classes: Sequence[str] | None,
) -> list[str]:
    (folder / "images" / split).mkdir(parents=True)
    lines = []
    given = iter(labels)
    for index, pixels in enumerate(pictures):
        label = next(given, None)
        require(label is not None, f"split {split} of {folder.name} has more pictures than its {index} labels.")
        assert label is not None
        high = len(classes) if classes is not None else label + 1
        require(0 <= label < high, f"picture {index} of split {split} has the label {label}, out of range.")
        path = f"images/{split}/{index:06d}.png"
        _picture(pixels, f"picture {index} of split {split}").save(folder / path)
        lines.append(f"{path} {int(label)}")
    require(
        next(given, None) is None, f"split {split} of {folder.name} has more labels than its {len(lines)} pictures."
    )
    require(bool(lines), f"split {split} of {folder.name} has no pictures.")
    return lines


def _picture(pixels: np.ndarray, name: str) -> Image.Image:
    shape = pixels.shape
    require(
        pixels.dtype == np.uint8 and 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)),
        f"{name} needs to be uint8 of shape (height, width) or (height, width, 3): got {pixels.dtype} {shape}.",
    )
    return Image.fromarray(pixels)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
