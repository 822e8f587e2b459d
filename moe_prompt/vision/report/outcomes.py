"""Results from rows of runs: seeds of one method on one task, means over tasks, differences between methods.

A mean over tasks names these tasks, and a mean over part of a group also names the missing ones. Standard deviations
are over seeds (with n - 1): they show how much trainings vary, not how much another test set would change the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

from moe_prompt.vision.data.benchmarks import GROUP_OF, GROUPS
from moe_prompt.vision.methods.by_name import METHODS
from moe_prompt.vision.tuning.recipes import Point
from moe_prompt.vision.tuning.run_table import FINAL, SEARCH, RunRow
from moe_prompt.vision.tuning.searches import best_point

CONFIDENCE = 0.95
_VARIED = ("base_lr", "weight_decay", "seed", "workers")


@dataclass(frozen=True, order=True)
class TableSetting:
    """What all rows of one table have in common."""

    backbone: str
    backbone_sha: str
    height: int
    width: int
    share: float
    epochs: int

    @classmethod
    def of(cls, row: RunRow) -> TableSetting:
        return cls(row.backbone, row.backbone_sha, row.height, row.width, row.share, row.epochs)

    def __str__(self) -> str:
        part = "" if self.share == 1 else f", {self.share:.0%} of the training pictures"
        return f"{self.backbone}, {self.height} x {self.width} pixels, {self.epochs} epochs{part}"


@dataclass(frozen=True)
class Outcome:
    """One method on one task: final runs with the chosen hyper-parameters, and the trials that chose them."""

    task: str
    label: str
    finals: tuple[RunRow, ...]
    trials: tuple[RunRow, ...]
    left_out: int = 0
    """Final runs with other hyper-parameters than those that validation chose."""

    @cached_property
    def accuracies(self) -> Mapping[int, float]:
        """Test accuracy in percent by seed, of the runs that gave one."""
        return {row.seed: row.accuracy for row in self.finals if row.accuracy is not None}

    @property
    def failed(self) -> int:
        """How many final runs have no result. They enter no mean, and a note of the report counts them."""
        return sum(row.accuracy is None for row in self.finals)

    @property
    def mean(self) -> float | None:
        return fmean(self.accuracies.values()) if self.accuracies else None

    @property
    def std(self) -> float | None:
        return stdev(self.accuracies.values()) if len(self.accuracies) > 1 else None

    @property
    def method(self) -> str:
        """The method's own name, whatever the label."""
        return str(json.loads((self.finals or self.trials)[0].method)["name"])

    @property
    def chosen(self) -> RunRow | None:
        """The trial whose hyper-parameters the final runs have."""
        points = {Point(row.base_lr, row.weight_decay) for row in self.finals}
        return next((row for row in self.trials if Point(row.base_lr, row.weight_decay) in points), None)


@dataclass(frozen=True)
class Section:
    """All outcomes of one setting."""

    setting: TableSetting
    cells: tuple[Outcome, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Methods in the order of :data:`~moe_prompt.vision.methods.by_name.METHODS`."""
        order = {name: place for place, name in enumerate(METHODS)}
        first = {cell.label: (order.get(cell.method, len(order)), cell.label) for cell in self.cells}
        return tuple(sorted(first, key=lambda label: first[label]))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order of the benchmarks, others after them."""
        order = {task: place for place, task in enumerate(GROUP_OF)}
        return tuple(sorted({cell.task for cell in self.cells}, key=lambda task: (order.get(task, len(order)), task)))

    def cell(self, task: str, label: str) -> Outcome | None:
        return next((cell for cell in self.cells if (cell.task, cell.label) == (task, label)), None)

    def tasks_of(self, label: str) -> tuple[str, ...]:
        """Tasks on which a method has a result."""
        return tuple(task for task in self.tasks if (cell := self.cell(task, label)) and cell.mean is not None)

    @property
    def common_tasks(self) -> tuple[str, ...]:
        """Tasks on which every method has a result."""
        return tuple(task for task in self.tasks if all(task in self.tasks_of(label) for label in self.labels))

    def over(self, label: str, tasks: Sequence[str]) -> Average:
        """The mean over those of these tasks on which the method has a result."""
        found = tuple(task for task in tasks if task in self.tasks_of(label))
        cells = [cell for task in found if (cell := self.cell(task, label))]
        seeds = set.intersection(*({*cell.accuracies} for cell in cells)) if cells else set()
        each = [fmean(cell.accuracies[seed] for cell in cells) for seed in sorted(seeds)]
        return Average(
            mean=fmean(cell.mean for cell in cells if cell.mean is not None) if cells else None,
            std=stdev(each) if len(each) > 1 else None,
            tasks=found,
            missing=tuple(task for task in tasks if task not in found),
        )

    def difference(self, label: str, other: str, tasks: Sequence[str]) -> PairedDifference | None:
        """`label` minus `other` over the seeds that both have on all of these tasks."""
        pairs = [(self.cell(task, label), self.cell(task, other)) for task in tasks]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known or len(known) < len(pairs):
            return None
        seeds = sorted(set.intersection(*({*a.accuracies} & {*b.accuracies} for a, b in known)))
        ours = [fmean(a.accuracies[seed] for a, _ in known) for seed in seeds]
        theirs = [fmean(b.accuracies[seed] for _, b in known) for seed in seeds]
        return PairedDifference(label, other, tuple(tasks), tuple(ours), tuple(theirs)) if seeds else None


@dataclass(frozen=True)
class Average:
    """A mean over `tasks`, without those `missing`; `std` is that of the means of the single seeds."""

    mean: float | None
    std: float | None
    tasks: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class PairedDifference:
    """Two methods over the same seeds, on one task or the mean of several."""

    label: str
    other: str
    tasks: tuple[str, ...]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @cached_property
    def each(self) -> tuple[float, ...]:
        return tuple(a - b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def mean(self) -> float:
        return fmean(self.each)

    @property
    def standard_error(self) -> float | None:
        return stdev(self.each) / math.sqrt(len(self.each)) if len(self.each) > 1 else None

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "not told apart".

        "better" has two conditions: the 95 % t-interval of the mean difference excludes zero, and the mean difference
        is larger than the standard deviation over seeds of either method.
        """
        if self.standard_error is None:
            return "not told apart"
        from scipy.stats import t as student

        interval = float(student.ppf(0.5 + CONFIDENCE / 2, len(self.each) - 1)) * self.standard_error
        least = max(interval, stdev(self.ours), stdev(self.theirs))
        if abs(self.mean) <= least:
            return "not told apart"
        return "better" if self.mean > 0 else "worse"

    def sentence(self) -> str:
        """The comparison in words.

        >>> PairedDifference("vapt", "vpt-deep", ("svhn",), (81.0, 82.0, 80.0), (80.0, 82.5, 80.5)).sentence()
        'vapt minus vpt-deep on svhn: +0.00 +- 0.50 over 3 seeds: not told apart.'
        """
        where = self.tasks[0] if len(self.tasks) == 1 else f"the mean of {len(self.tasks)} tasks"
        error = "" if self.standard_error is None else f" +- {self.standard_error:.2f}"
        number = len(self.each)
        seeds = f"{number} seed{'s' * (number > 1)}"
        return f"{self.label} minus {self.other} on {where}: {self.mean:+.2f}{error} over {seeds}: {self.verdict}."


def sections(rows: Iterable[RunRow]) -> tuple[Section, ...]:
    """Rows by setting, and in each by task and method.

    If a method was run with several options or recipes on a task, or tested on several sets, labels distinguish them.
    If it was searched, only final runs with the hyper-parameters chosen on validation count, and the others are
    counted as left out. If it was not, each pair of hyper-parameters is an outcome of its own. Test accuracies select
    nothing.
    """
    by_setting: dict[TableSetting, list[RunRow]] = {}
    for row in rows:
        by_setting.setdefault(TableSetting.of(row), []).append(row)
    return tuple(Section(setting, _cells(found)) for setting, found in sorted(by_setting.items()))


def _cells(rows: Sequence[RunRow]) -> tuple[Outcome, ...]:
    groups: dict[tuple[str, str], dict[str, list[RunRow]]] = {}
    for row in rows:
        groups.setdefault((row.task, row.label), {}).setdefault(_variant(row), []).append(row)
    cells: list[Outcome] = []
    for (task, label), variants in groups.items():
        for variant, found in variants.items():
            name = label if len(variants) == 1 else f"{label} {_differing(variant, variants)}"
            cells += _cells_of(task, name, found)
    return tuple(cells)


def _variant(row: RunRow) -> str:
    """Options, recipe and preprocessing of a run, without what differs between the trials and seeds of one tuning."""
    spec = json.loads(row.spec)
    recipe = {name: value for name, value in spec.get("recipe", {}).items() if name not in _VARIED}
    return json.dumps({**json.loads(row.method), **recipe, **spec.get("preprocessing", {})}, sort_keys=True)


def _cells_of(task: str, label: str, rows: Sequence[RunRow]) -> list[Outcome]:
    """One outcome for each set of test pictures; without a search, one for each pair of hyper-parameters too."""
    trials = tuple(row for row in rows if row.purpose == SEARCH)
    finals = [row for row in rows if row.purpose == FINAL]
    told = [(Point(row.base_lr, row.weight_decay), row.accuracy) for row in trials if row.accuracy is not None]
    if not finals:
        return [Outcome(task, label, (), trials)]
    chosen = best_point((point, accuracy) for point, accuracy in told if accuracy is not None) if told else None
    kept: dict[tuple[int, Point | None], list[RunRow]] = {}
    for row in finals:
        point = Point(row.base_lr, row.weight_decay)
        if chosen in (None, point):
            kept.setdefault((row.evaluation_images, None if trials else point), []).append(row)
    left_out = len(finals) - sum(map(len, kept.values()))
    if not kept:
        return [Outcome(task, label, (), trials, left_out)]
    tests, points = ({place[i] for place in kept} for i in (0, 1))
    cells = []
    for (pictures, given), found in kept.items():
        words = [label] + ([f"{pictures} test pictures"] if len(tests) > 1 else [])
        words += [f"lr {given.base_lr:g}, decay {given.weight_decay:g}"] if given and len(points) > 1 else []
        cells.append(Outcome(task, ", ".join(words), tuple(sorted(found, key=lambda r: r.seed)), trials, left_out))
    return cells


def _differing(variant: str, variants: Iterable[str]) -> str:
    """The settings in which variants of the same label differ, with the values of this one."""
    own, others = json.loads(variant), [json.loads(other) for other in variants]
    differing = [name for name in own if any(other.get(name) != own[name] for other in others)]
    return ", ".join(f"{name}={own[name]}" for name in differing)


def groups_of(tasks: Iterable[str]) -> tuple[str, ...]:
    """The groups of which at least one task is there, in their order."""
    present = set(tasks)
    return tuple(group for group, members in GROUPS.items() if present & set(members))
