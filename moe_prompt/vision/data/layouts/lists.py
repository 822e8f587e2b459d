"""Layouts whose splits are lists of paths and classes: the VTAB-1K folder and the FGVC json files.

VTAB-1K   <task>/{train800, val200, train800val200, test}.txt, lines `images/test/000000.png 3`, paths relative to the
          task's folder; optional classes.txt with a name a line (arXiv 1910.04867 for the tasks). Lists called train,
          val or trainval are read too.
FGVC      <task>/{train, val, test}.json, {path: class id}; ids are sparse numbers (NABirds 295 .. 1010) or strings
          ('001'). Pictures lie in the folder, or in `images` or `Images` in it. The order of the classes is that of
          the ids of *all* splits together (arXiv 2203.12119 for the splits).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import final

import numpy as np

from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.benchmarks import known_task
from moe_prompt.vision.data.pictures import FilePictures
from moe_prompt.vision.data.tasks import Task, TaskLayout, TaskSplit, numbered_classes
from moe_prompt.vision.data.writing import CLASSES_FILE

VTAB_SPLITS = ("train800", "val200", "train800val200", "test")
OTHER_SPLITS = ("train", "val", "trainval")
FGVC_SPLITS = ("train", "val", "test")


@final
class VTABLayout(TaskLayout):
    """Text lists of paths and labels."""

    name = "vtab"
    looks_like = "train800.txt, val200.txt, train800val200.txt, test.txt"

    def describes(self, path: Path) -> bool:
        return any((path / f"{split}.txt").is_file() for split in VTAB_SPLITS)

    def read(self, path: Path) -> Task:
        splits = {}
        for name in (*VTAB_SPLITS, *OTHER_SPLITS):
            source = path / f"{name}.txt"
            if source.is_file():
                paths, labels = _listed(source)
                splits[name] = TaskSplit(name, FilePictures(path, paths), labels, str(source))
        known = known_task(path.resolve().name, self.name)
        classes = named_classes(path)
        if classes is None and known is not None:
            classes = tuple(map(str, range(known.classes)))
        if classes is None:
            classes = numbered_classes([split.labels for split in splits.values()])
        return Task(known.name if known else path.resolve().name, classes, splits, path, self.name)


def named_classes(folder: Path) -> tuple[str, ...] | None:
    """The lines of classes.txt in this folder, or None where there is none."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in read_text(path).splitlines())
    require(
        bool(names) and all(names) and len(set(names)) == len(names),
        f"{path} needs one name a line, each once and none empty: correct it, or remove it.",
    )
    return names


def read_text(path: Path) -> str:
    """A text file, or a sentence that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}): bring a readable UTF-8 file.") from error


def _listed(source: Path) -> tuple[list[str], np.ndarray]:
    paths, labels = [], []
    for number, line in enumerate(read_text(source).splitlines(), start=1):
        if not line.strip():
            continue
        *path, label = line.rsplit(maxsplit=1)
        require(
            bool(path) and label.removeprefix("-").isdecimal(),
            f"line {number} of {source} needs a path and a whole number, as in `images/test/000000.png 3`: got "
            f"{line.strip()[:80]!r}.",
        )
        paths.append(path[0].strip())
        labels.append(int(label))
    return paths, np.array(labels, dtype=np.int64)


@final
class FGVCLayout(TaskLayout):
    """JSON files from paths to class ids."""

    name = "fgvc"
    looks_like = "train.json, val.json, test.json"

    def describes(self, path: Path) -> bool:
        return all((path / f"{split}.json").is_file() for split in ("train", "test"))

    def read(self, path: Path) -> Task:
        sources = {name: path / f"{name}.json" for name in FGVC_SPLITS}
        listed = {name: _ids(source) for name, source in sources.items() if source.is_file()}
        classes = ordered({label for ids in listed.values() for _, label in ids})
        number = {label: index for index, label in enumerate(classes)}
        splits = {}
        for name, ids in listed.items():
            labels = np.array([number[label] for _, label in ids], dtype=np.int64)
            folder = _folder_of_pictures(path, [picture for picture, _ in ids[:1]])
            pictures = FilePictures(folder, [picture for picture, _ in ids])
            splits[name] = TaskSplit(name, pictures, labels, str(sources[name]))
        known = known_task(path.resolve().name, self.name)
        return Task(known.name if known else path.resolve().name, classes, splits, path, self.name)


def ordered(ids: Iterable[str]) -> tuple[str, ...]:
    """Class ids in one order for all splits: by number where all are whole numbers, else by letters.

    >>> ordered({"1010", "295", "300"}), ordered({"b", "10", "9"})
    (('295', '300', '1010'), ('10', '9', 'b'))
    """
    ids = set(ids)
    numbers = all(label.isascii() and label.removeprefix("-").isdigit() for label in ids)
    return tuple(sorted(ids, key=lambda label: (int(label), label) if numbers else (0, label)))


def _ids(source: Path) -> list[tuple[str, str]]:
    """(path, class id as a string) for every entry, also where a path comes twice."""
    try:
        pairs = json.loads(read_text(source), object_pairs_hook=list)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source} cannot be read as JSON ({error}): bring a whole file.") from error
    require(
        isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs),
        f"{source} needs one object from paths of pictures to class ids.",
    )
    for path, label in pairs:
        require(
            isinstance(label, (int, str)) and not isinstance(label, bool) and str(label).strip() != "",
            f"{source} gives {path} the class id {label!r}: it needs a whole number or a name.",
        )
    return [(path, str(label).strip()) for path, label in pairs]


def _folder_of_pictures(root: Path, first: list[str]) -> Path:
    """Where the paths begin: the folder itself or one for pictures in it, whichever holds the first picture."""
    candidates = (root, root / "images", root / "Images")
    return next((folder for folder in candidates if first and (folder / first[0]).exists()), root)
