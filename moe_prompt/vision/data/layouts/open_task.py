"""Open a task from disk in whichever layout it has; a task that cannot be used is refused in a sentence.

| layout    | what is there                                                          |
|-----------|------------------------------------------------------------------------|
| `vtab`    | train800.txt, val200.txt, train800val200.txt, test.txt: path and label |
| `fgvc`    | train.json, val.json, test.json: path -> class id                      |
| `parquet` | Hugging Face exports                                                   |
| `idx`     | MNIST-style idx files, plain or .gz                                     |
| `numpy`   | .npz or pairs of .npy                                                  |
| `folder`  | a folder for each class, with or without folders for splits            |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moe_prompt.errors import InputError, choose, require
from moe_prompt.vision.data.benchmarks import known_task
from moe_prompt.vision.data.layouts.arrays import IdxLayout, NumpyLayout
from moe_prompt.vision.data.layouts.folders import ImageFolderLayout
from moe_prompt.vision.data.layouts.lists import FGVCLayout, VTABLayout
from moe_prompt.vision.data.layouts.parquet import ParquetLayout
from moe_prompt.vision.data.tasks import Task, TaskLayout, faults

LAYOUTS: Mapping[str, TaskLayout] = {
    layout.name: layout
    for layout in (VTABLayout(), FGVCLayout(), ParquetLayout(), IdxLayout(), NumpyLayout(), ImageFolderLayout())
}
"""In the order in which a folder is tried."""


def open_task(path: str | Path, layout: str | None = None) -> Task:
    """The task in this folder or file, sound: labels in range, no empty split, no class gap, every file there.

    Args:
        path: of the task. A VTAB folder may be called by another of its names: `vtab-1k/cifar100` opens `cifar`.
        layout: one of :data:`LAYOUTS`; without it the layout is recognised by what is there.

    Raises:
        InputError: naming the file that is at fault. :func:`moe_prompt.vision.data.verification.verify.verify` lists
        all faults.
    """
    task = read_task(path, layout)
    fault = next(faults(task), None)
    if fault is not None:
        raise InputError(fault)
    return task


def read_task(path: str | Path, layout: str | None = None) -> Task:
    """The task as it is on disk, its labels unchecked."""
    place = _by_alias(Path(path))
    require(place.exists(), f"{path} does not exist: give the folder or file of a task.")
    chosen = _recognised(place) if layout is None else choose("layout", layout, LAYOUTS)
    require(
        chosen.describes(place),
        f"{path} is not laid out as {chosen.name}: that needs {chosen.looks_like}.",
    )
    task = chosen.read(place)
    require(bool(task.splits), f"{path} holds no split: the layout {chosen.name} needs {chosen.looks_like}.")
    return task


def task_folders(path: str | Path) -> tuple[Path, ...]:
    """Folders in this one that hold a task of lists (VTAB or FGVC): what `vtab-1k` and the like are made of."""
    root = Path(path)
    listed = (LAYOUTS["vtab"], LAYOUTS["fgvc"])
    inside = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    return tuple(folder for folder in inside if any(layout.describes(folder) for layout in listed))


def _recognised(path: Path) -> TaskLayout:
    tasks = task_folders(path)
    for layout in LAYOUTS.values():
        if layout.describes(path) and not (tasks and layout.name == ImageFolderLayout.name):  # tasks are no classes
            return layout
    require(
        not tasks,
        f"{path} holds tasks and is none: give the folder of one of them, such as {tasks[:1] and tasks[0]}.",
    )
    known = "; ".join(f"{layout.name}: {layout.looks_like}" for layout in LAYOUTS.values())
    raise InputError(f"{path} is laid out in no way that is known here ({known}).")


def _by_alias(path: Path) -> Path:
    """The path, or the folder beside it that holds the same VTAB task by another name."""
    if path.exists():
        return path
    wanted = known_task(path.name, "vtab")
    for folder in task_folders(path.parent) if wanted else ():
        if known_task(folder.name, "vtab") == wanted:
            return folder
    return path
