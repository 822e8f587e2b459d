"""The checks of `classify verify`, one per function. Each yields a sentence that names a file for each finding.

In the VTAB-1K archives in circulation all pictures were encoded as JPEG once more, although the original sets
CIFAR-100, SVHN, Camelyon, Clevr, KITTI, dSprites and small NORB are lossless.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path

import numpy as np

from moe_prompt.vision.data.pictures import FilePictures
from moe_prompt.vision.data.tasks import UNIONS, Task, TaskSplit, class_gaps
from moe_prompt.vision.data.verification.inspection import Inspection

SHOWN = 5
"""How many of many faults of one kind are named."""
_JPEG = ("JPEG", "MPO")


def wrong_counts(task: Task) -> Iterator[str]:
    """The published numbers."""
    known = task.known
    if known is None:
        return
    for name, count in known.counts.items():
        split = task.splits.get(name)
        if split is None:
            yield f"{task.source} lacks the split {name} of {known.title} ({known.source})."
        elif len(split) != count:
            yield f"{split.source} has {len(split):,} pictures: {known.title} has {count:,} there ({known.source})."
    if len(task.classes) != known.classes:
        yield f"{task.source} has {len(task.classes)} classes: {known.title} has {known.classes} ({known.source})."


def whole_unions(task: Task) -> list[str]:
    """Splits that are two others together, where those are there too."""
    return [name for name, parts in UNIONS.items() if {name, *parts} <= set(task.splits)]


def wrong_unions(task: Task) -> Iterator[str]:
    """A split that is the union of two others must contain exactly their pictures."""
    for name in whole_unions(task):
        split, parts = task.splits[name], [task.splits[part] for part in UNIONS[name]]
        if sorted(_entries(split)) != sorted(chain.from_iterable(map(_entries, parts))):
            yield (
                f"{split.source} is not the union of {' and '.join(part.source for part in parts)}: "
                "write it anew, as those two together."
            )


def _entries(split: TaskSplit) -> list[tuple[str, int]]:
    return [(split.pictures.named(index), int(label)) for index, label in enumerate(split.labels)]


def disjoint(first: str, second: str) -> bool:
    """Whether two splits should have no picture in common: not so for a union and one of its parts."""
    return first not in UNIONS.get(second, ()) and second not in UNIONS.get(first, ())


def repeated_paths(splits: list[TaskSplit]) -> Iterator[str]:
    """The same file twice, in one split or in two."""
    listed = [(split, _files(split)) for split in splits if isinstance(split.pictures, FilePictures)]
    for split, names in listed:
        again = [name for name, times in Counter(names).items() if times > 1]
        if again:
            yield f"{again[0]} is listed twice in {split.source}{_others(len(again))}: once is enough."
    for (first, ours), (second, theirs) in combinations(listed, 2):
        both = sorted(set(ours) & set(theirs)) if disjoint(first.name, second.name) else []
        if both:
            yield (
                f"{both[0]} is listed both in {first.source} and in {second.source}{_others(len(both))}: "
                "a picture belongs into one split."
            )


def _files(split: TaskSplit) -> list[str]:
    return [os.path.normpath(split.pictures.named(index)) for index in range(len(split))]


def unreadable(look: Inspection) -> Iterator[str]:
    yield from look.unreadable[:SHOWN]
    if len(look.unreadable) > SHOWN:
        yield f"{len(look.unreadable)} pictures of {look.split.source} cannot be read: {SHOWN} of them are named."


def overlap(first: Inspection, second: Inspection) -> Iterator[str]:
    """Pictures of two splits with the same pixels under different paths."""
    if not disjoint(first.split.name, second.split.name):
        return
    ours, theirs = first.by_hash(), second.by_hash()
    pairs = [(ours[pixels][0], theirs[pixels]) for pixels in theirs if pixels in ours]
    named = [(a, b) for a, same in pairs for b in same if not _same_file(first.split, a, second.split, b)]
    if not named:
        return
    a, b = named[0]
    differ = sum(int(first.split.labels[a] != second.split.labels[b]) for a, b in named)
    labels = f", {differ} of them with another label" if differ else ""
    yield (
        f"{first.split.pictures.named(a)} and {second.split.pictures.named(b)} have the same pixels: "
        f"{len(named)} of the pictures looked at in {second.split.source} are also in {first.split.source}{labels}."
    )


def _same_file(first: TaskSplit, a: int, second: TaskSplit, b: int) -> bool:
    """Whether both are the same file, which `repeated_paths` reports."""
    return os.path.normpath(first.pictures.named(a)) == os.path.normpath(second.pictures.named(b))


def copies(task: Task, look: Inspection) -> Iterator[str]:
    """Pictures of one split with the same pixels."""
    groups = [same for same in look.by_hash().values() if len(same) > 1]
    if groups:
        differ = sum(len(set(look.split.labels[same].tolist())) > 1 for same in groups)
        labels = f", and {differ} of the {len(groups)} groups have several labels" if differ else ""
        yield (
            f"{look.split.pictures.named(groups[0][0])} and {look.split.pictures.named(groups[0][1])} have the same "
            f"pixels: {sum(map(len, groups))} pictures of {look.split.source} are one of {len(groups)} group"
            f"{'s' * (len(groups) > 1)} of equal ones{labels}."
        )


def encodings(task: Task, look: Inspection) -> Iterator[str]:
    """Conversions that pictures needed, and JPEG files where the original pictures are lossless."""
    for note, indices in look.notes.items():
        yield f"{look.example(indices)} in {look.split.source} is {note}{_others(len(indices))}."
    jpeg = [index for form in _JPEG for index in look.formats.get(form, [])]
    if not jpeg or task.layout != "vtab":
        return
    known = task.known
    if known and known.lossless:
        yield (
            f"{look.example(jpeg)} in {look.split.source} is a JPEG{_others(len(jpeg))}: {known.title} is lossless, so "
            "this is a lossy re-encoding, as in the zips in circulation; accuracies may differ."
        )
    elif known and Path(look.example(jpeg)).stem.isdigit():
        yield (
            f"{look.example(jpeg)} in {look.split.source} is named as in the zips in circulation"
            f"{_others(len(jpeg))}: those encode every picture as JPEG once more, lossy; accuracies may differ."
        )


def wrong_sizes(task: Task, look: Inspection) -> Iterator[str]:
    known = task.known
    if known is None or known.side is None:
        return
    other = [index for size, indices in look.sizes.items() if size != known.side for index in indices]
    if other:
        width, height = look.split.pictures[other[0]].size
        yield (
            f"{look.example(other)} in {look.split.source} is {width} x {height}: pictures of {known.title} are "
            f"{known.side[0]} x {known.side[1]}, and {len(other)} here are not."
        )


def lacking_classes(task: Task) -> Iterator[str]:
    """Classes without a picture in a split. Those that make a task unusable are faults and are found elsewhere."""
    if task.known is not None and task.known.gaps:
        for split, lacking in class_gaps(task):
            missed = len(np.unique(split.labels[lacking]))
            yield (
                f"{split.source} holds {int(lacking.sum())} pictures of {missed} classes that no training split has: "
                f"a draw of {task.known.title} need not hold them all, and no classifier can be right on them."
            )
    for split in task.splits.values():
        absent = np.setdiff1d(np.arange(len(task.classes)), split.labels)
        if len(absent) and len(split):
            names = ", ".join(task.classes[label] for label in absent[:SHOWN]) + (
                ", ..." if len(absent) > SHOWN else ""
            )
            yield f"{split.source} has no picture of {len(absent)} of the {len(task.classes)} classes ({names})."


def _others(number: int) -> str:
    return {1: "", 2: ", and so is 1 other"}.get(number, f", and so are {number - 1} others")
