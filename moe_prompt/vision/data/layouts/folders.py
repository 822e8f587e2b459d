"""The image folder: one folder for each class, in one folder for each split or with no splits at all.

    <task>/{train, val, test}/<class>/...picture files...
    <task>/<class>/...picture files...              one split, `train`: divide it with `stratified_fraction`

Names of classes are folders' names, in the order of the letters, of all splits together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

import numpy as np

from moe_prompt.vision.data.benchmarks import plain
from moe_prompt.vision.data.pictures import FilePictures
from moe_prompt.vision.data.tasks import Task, TaskLayout, TaskSplit

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
"""What splits are called, and what we call them."""
ORDER = ("train", "val", "test")
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


def split_name(name: str) -> str | None:
    """Our name for a split that is called so, or None.

    >>> split_name("Validation"), split_name("cats")
    ('val', None)
    """
    return SPLIT_NAMES.get(plain(name))


@final
class ImageFolderLayout(TaskLayout):
    """Folders of classes."""

    name = "folder"
    looks_like = "train/ and test/ with a folder of pictures for each class, or such folders alone"

    def describes(self, path: Path) -> bool:
        if not path.is_dir():
            return False
        inside = _folders(path)
        if any(split_name(folder.name) for folder in inside):
            inside = [inner for folder in inside if split_name(folder.name) for inner in _folders(folder)]
        return any(_has_pictures(folder) for folder in inside)

    def read(self, path: Path) -> Task:
        roots = {split_name(folder.name) or "": folder for folder in _folders(path)}
        roots.pop("", None)
        roots = roots or {"train": path}
        found = {name: _pictures(roots[name]) for name in ORDER if name in roots}
        classes = tuple(sorted({label for pictures in found.values() for _, label in pictures}))
        number = {label: index for index, label in enumerate(classes)}
        splits = {}
        for name, pictures in found.items():
            labels = np.array([number[label] for _, label in pictures], dtype=np.int64)
            files = FilePictures(roots[name], [picture for picture, _ in pictures])
            splits[name] = TaskSplit(name, files, labels, str(roots[name]))
        return Task(path.resolve().name, classes, splits, path, self.name)


def _folders(path: Path) -> list[Path]:
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith((".", "__")))


def _has_pictures(folder: Path) -> bool:
    return any(Path(name).suffix.lower() in _PICTURES for _, _, names in os.walk(folder) for name in names)


def _pictures(root: Path) -> list[tuple[str, str]]:
    """(path relative to `root`, class) for every picture file, however deep in the folder of its class."""
    found = []
    for folder in _folders(root):
        for place, _, names in os.walk(folder):
            for name in names:
                if Path(name).suffix.lower() in _PICTURES and not name.startswith("."):
                    found.append((Path(place, name).relative_to(root).as_posix(), folder.name))
    return sorted(found, key=lambda picture: (picture[1], picture[0]))
