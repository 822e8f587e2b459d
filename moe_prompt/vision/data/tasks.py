"""A task: labelled pictures in named splits with one class map; its faults are described in sentences.

Label k means ``classes[k]`` in every split. Splits for evaluation (`val`, `val200`, `test`) may hold only classes that
a training split holds, as no classifier could be right on others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int64

from moe_prompt.errors import choose
from moe_prompt.vision.data.benchmarks import KnownTask, known_task
from moe_prompt.vision.data.pictures import Pictures

TEST_SPLIT = "test"
REST_SPLIT = "train80"  # of a train whose fifth is val, as the task came without
MEASURED = ("val", "val200", TEST_SPLIT)
"""Splits that a model is chosen or judged on; every other split is trained on."""
UNIONS: Mapping[str, tuple[str, str]] = {"train800val200": ("train800", "val200"), "trainval": ("train", "val")}
"""Splits that are two others together, by their names."""


@dataclass(frozen=True, eq=False)
class TaskSplit:
    """Pictures and their labels; `source` is the file or folder that gives the labels."""

    name: str
    pictures: Pictures
    labels: Int64[np.ndarray, " pictures"]
    source: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, indices: Sequence[int] | np.ndarray) -> TaskSplit:
        """The pictures at these indices, in this order."""
        places = np.asarray(indices, dtype=np.int64)
        return TaskSplit(self.name, self.pictures.chosen(places), self.labels[places], self.source)


@dataclass(frozen=True, eq=False)
class Task:
    """Splits that share one class map; `layout` is the name of the layout that was read."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, TaskSplit]
    source: Path
    layout: str = ""

    def split(self, name: str) -> TaskSplit:
        """The split of this name, or a sentence that lists those there are."""
        return choose(f"split of {self.source}", name, self.splits)

    @property
    def known(self) -> KnownTask | None:
        """What is published of this task, where it is one of the 24."""
        return known_task(self.name, self.layout)


class TaskLayout(ABC):
    """One way to lay out a task on disk."""

    name: ClassVar[str]
    looks_like: ClassVar[str]
    """What a folder of this layout holds, for the sentence that lists the layouts."""

    @abstractmethod
    def describes(self, path: Path) -> bool:
        """Whether this folder or file is laid out so."""

    @abstractmethod
    def read(self, path: Path) -> Task:
        """The task there, its labels unchecked; InputError where a file cannot be read at all."""


def numbered_classes(labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Names "0", "1", ... of as many classes as labels use without a hole: {0, 1, 2, 9} are three, and 9 is a fault."""
    used = np.unique(np.concatenate(labels)) if labels else np.empty(0, dtype=np.int64)
    used = used[used >= 0]
    holes = np.flatnonzero(used != np.arange(len(used)))
    return tuple(map(str, range(int(holes[0]) if len(holes) else len(used))))


def faults(task: Task) -> Iterator[str]:
    """What makes a task unusable, one sentence each, the most basic first; none for a sound one."""
    for split in task.splits.values():
        if len(split) == 0:
            yield f"{split.source} holds no pictures: a split needs at least one; fill it or remove it."
        yield from _out_of_range(task, split)
    yield from _class_gaps(task)
    for split in task.splits.values():
        absent = split.pictures.missing()
        if absent:
            more = f" ({len(absent)} of its files do not)" if len(absent) > 1 else ""
            yield (
                f"{split.pictures.named(absent[0])}, listed in {split.source}, does not exist{more}: bring the file, "
                "or take it off the list."
            )


def _out_of_range(task: Task, split: TaskSplit) -> Iterator[str]:
    count = len(task.classes)
    outside = np.flatnonzero((split.labels < 0) | (split.labels >= count))
    if len(outside):
        first = int(outside[0])
        known = task.known
        why = f"{known.title} has {count} classes" if known else f"there are {count} classes without a hole from 0"
        yield (
            f"{split.source} gives {split.pictures.named(first)} the label {split.labels[first]}, out of range as "
            f"{why}{_more(outside)}: correct the labels, or name every class in a classes.txt."
        )


def _class_gaps(task: Task) -> Iterator[str]:
    known = task.known
    if known is not None and known.gaps:
        return
    for split, lacking in class_gaps(task):
        classes = np.unique(split.labels[lacking])
        names = ", ".join(task.classes[label] for label in classes[:5]) + (", ..." if len(classes) > 5 else "")
        yield (
            f"{split.source} holds pictures of {len(classes)} class{'es' * (len(classes) > 1)} that no training split "
            f"has ({names}; {split.pictures.named(int(np.flatnonzero(lacking)[0]))} is one): bring training pictures "
            "of every class, or take those out."
        )


def class_gaps(task: Task) -> Iterator[tuple[TaskSplit, Bool[np.ndarray, " pictures"]]]:
    """Measured splits with pictures of classes that no training split holds, and which pictures those are."""
    trained = [split.labels for name, split in task.splits.items() if name not in MEASURED]
    if not trained:
        return
    seen = np.unique(np.concatenate(trained))
    for name in MEASURED:
        if name in task.splits:
            split = task.splits[name]
            inside = (split.labels >= 0) & (split.labels < len(task.classes))
            lacking = inside & ~np.isin(split.labels, seen)
            if lacking.any():
                yield split, lacking


def _more(places: np.ndarray) -> str:
    return f" ({len(places)} labels are)" if len(places) > 1 else ""
