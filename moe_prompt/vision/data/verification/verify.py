"""Is a task on disk what it should be? Counts, classes, overlap between splits, unreadable files, lossy re-encodings.

A *problem* makes results on the task wrong or not comparable. A *warning* is something to mention when results are
reported. A *note* says what was not checked. Each is a sentence that names a file.

Pictures with the same pixels in two splits are a problem, whatever their files are. In dSprites they are a warning, as
the set itself has twins: 42,836 of its 737,280 pictures by our count, most of them because the last of 40 orientations
is drawn as the first. Of VTAB's 16 bins these are the last and the first: equal pictures then differ in label.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.layouts.open_task import read_task
from moe_prompt.vision.data.tasks import Task, faults
from moe_prompt.vision.data.verification.checks import (
    copies,
    encodings,
    lacking_classes,
    overlap,
    repeated_paths,
    unreadable,
    whole_unions,
    wrong_counts,
    wrong_sizes,
    wrong_unions,
)
from moe_prompt.vision.data.verification.inspection import Inspection, inspect

MOST_DECODED = 20_000
"""Pictures of a split that are decoded unless told otherwise."""


@dataclass(frozen=True)
class VerificationReport:
    """Result of a check; `counts` is the number of pictures per split, `decoded` how many of them were decoded."""

    task: str
    source: str
    layout: str
    classes: int
    counts: Mapping[str, int]
    decoded: Mapping[str, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with `ok`."""
        return {**asdict(self), "ok": self.ok}

    def sentence(self) -> str:
        """The verdict, and the first problem if there is one."""
        if self.ok:
            return f"{self.source} is sound{_and_warnings(len(self.warnings))}."
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        return f"{self.source} has a problem{more}: {self.problems[0]}"

    def render(self) -> str:
        """Everything, for a person to read."""
        lines = [f"{self.task or '?'} ({self.layout or 'unknown layout'}), {self.classes} classes, in {self.source}"]
        lines += [
            f"  {name:15s} {count:7,d} pictures, {self.decoded.get(name, 0):,} decoded"
            for name, count in self.counts.items()
        ]
        kinds = (("problem", self.problems), ("warning", self.warnings), ("note", self.notes))
        lines += [f"  {kind}: {sentence}" for kind, sentences in kinds for sentence in sentences]
        return "\n".join([*lines, self.sentence() if self.ok else f"{self.source} is not sound."])


def verify(
    path: str | Path, layout: str | None = None, most: int = MOST_DECODED, seed: int = 0, threads: int | None = None
) -> VerificationReport:
    """Check that a task is consistent, and that it agrees with the published facts if it is one of the 24.

    Args:
        path: as for :func:`moe_prompt.vision.data.layouts.open_task.open_task`, which refuses at the first fault; here
        all are told. most: pictures decoded in each split; where there are more, so many are drawn by `seed`, and that
        is said. threads: that decode; as many as there are cores by default.
    """
    require(most >= 1, f"at least one picture must be decoded: got most = {most}.")
    try:
        task = read_task(path, layout)
    except InputError as error:
        return VerificationReport("", str(path), "", 0, {}, {}, (str(error),), (), ())
    apart = [split for name, split in task.splits.items() if name not in whole_unions(task)]
    looks = [inspect(split, most, seed, threads or os.cpu_count() or 1) for split in apart]
    problems, warnings = _found(task, looks)
    return VerificationReport(
        task.name,
        str(path),
        task.layout,
        len(task.classes),
        {name: len(split) for name, split in task.splits.items()},
        {look.split.name: len(look.seen) for look in looks},
        problems,
        warnings,
        tuple(_notes(task, looks, seed)),
    )


def _found(task: Task, looks: list[Inspection]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Problems and warnings."""
    problems = [*faults(task), *wrong_counts(task), *wrong_unions(task)]
    problems += repeated_paths([look.split for look in looks])
    problems += [sentence for look in looks for sentence in unreadable(look)]
    warnings = [
        sentence for look in looks for check in (encodings, wrong_sizes, copies) for sentence in check(task, look)
    ]
    common = [s for pair in combinations(looks, 2) for s in overlap(*pair)]
    (warnings if task.known and task.known.twins else problems).extend(common)
    return tuple(problems), (*warnings, *lacking_classes(task))


def _notes(task: Task, looks: list[Inspection], seed: int) -> Iterator[str]:
    if task.known is None:
        yield f"{task.name} is none of the 24 published tasks by its folder's name: its counts are compared with none."
    for look in looks:
        there = len(look.split) - len(look.split.pictures.missing())
        if len(look.seen) < there:
            yield (
                f"{len(look.seen):,} of the {there:,} pictures of {look.split.source} were decoded, drawn with seed "
                f"{seed}: unreadable, re-encoded or repeated ones among the others are not seen."
            )


def _and_warnings(number: int) -> str:
    return "" if number == 0 else f", with {number} warning{'s' * (number > 1)}"
