"""Numbers that others reported, each with its source. Our tables show them beside our own and never mix the two.

Test top-1 accuracies in percent. Unless a record says otherwise they are of ViT-B/16 pre-trained on ImageNet-21k, tuned
at 224 pixels for 100 epochs. A group mean is over the tasks of the group; the mean of 19 is flat over the VTAB tasks
(some papers average the three group means instead: :func:`mean_of_groups`).

References:
    arXiv 1910.04867 (the 19 tasks of VTAB and their groups), 2203.12119 (VPT, the five FGVC tasks), 2501.18936 (VAPT).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from moe_prompt.vision.data.benchmarks import GROUPS, VTAB_GROUPS
from moe_prompt.vision.tuning.recipes import PUBLISHED

FIGURE = "read off a figure (+-0.3)"
MEMORY = "from memory, unverified"
STATUSES = (PUBLISHED, FIGURE, MEMORY)

IN21K = "ViT-B/16 ImageNet-21k"
MAE = "ViT-B/16 MAE"
MOCO = "ViT-B/16 MoCo v3"
REPORTED_OF: Mapping[str, str] = {"mae-vit-b16": MAE, "moco-v3-vit-b16": MOCO}
"""Of which backbone the numbers beside ours are, by the name of ours; of ImageNet-21k's where it has none."""

FLAT_MEAN = "mean of 19"


@dataclass(frozen=True)
class Source:
    """Where a number was read, and how far it can be trusted."""

    where: str
    """An arXiv id, or the address of the page."""
    status: str

    def __str__(self) -> str:
        return f"{self.where}, {self.status}"


@dataclass(frozen=True)
class Quoted:
    """One number with its source."""

    value: float
    source: Source


@dataclass(frozen=True)
class Reference:
    """What one paper says of one method: group means, and accuracies per task where a table has them."""

    method: str
    means: Mapping[str, float]
    source: Source
    backbone: str = IN21K
    tuned_percent: float | None = None
    """Tuned parameters without the head, percent of the backbone, averaged over 24 tasks."""
    tasks: Mapping[str, float] = field(default_factory=dict)
    tasks_source: Source | None = None

    def quote(self, place: str) -> Quoted | None:
        """The number for a task, a group or :data:`FLAT_MEAN`, where there is one."""
        if place in self.tasks:
            return Quoted(self.tasks[place], self.tasks_source or self.source)
        return Quoted(self.means[place], self.source) if place in self.means else None


def mean_over(accuracies: Mapping[str, float], tasks: Iterable[str]) -> float | None:
    """Mean over these tasks, None unless every one is there."""
    tasks = tuple(tasks)
    if not tasks or any(task not in accuracies for task in tasks):
        return None
    return sum(accuracies[task] for task in tasks) / len(tasks)


def mean_of_groups(accuracies: Mapping[str, float]) -> float | None:
    """Mean of the three group means of VTAB, the other of the two means in use; None unless all 19 tasks are there."""
    means = [mean_over(accuracies, GROUPS[group]) for group in VTAB_GROUPS]
    return None if None in means else sum(mean for mean in means if mean is not None) / len(means)


VPT = Source("arXiv 2203.12119", PUBLISHED)
VAPT_PAPER = Source("arXiv 2501.18936", PUBLISHED)
VAPT_TASKS = Source("VAPT per task, adds up to the means of arXiv 2501.18936", MEMORY)
BENCH = Source("github.com/synbol/Parameter-Efficient-Transfer-Learning-Benchmark (V-PETL Bench)", PUBLISHED)


def _tasks(natural: str, specialized: str, structured: str, fgvc: str = "") -> dict[str, float]:
    """Accuracies in the order of :data:`GROUPS`."""
    numbers = zip(GROUPS.items(), (natural, specialized, structured, fgvc), strict=True)
    return {
        task: float(number)
        for (_, tasks), row in numbers
        for task, number in zip(tasks, row.split() or [], strict=bool(row))
    }


def _means(fgvc: float, natural: float, specialized: float, structured: float, flat: float | None) -> dict[str, float]:
    means = {"FGVC": fgvc, "Natural": natural, "Specialized": specialized, "Structured": structured}
    return means if flat is None else means | {FLAT_MEAN: flat}


def _bench(method: str, flat: float, *rows: str) -> Reference:
    return Reference(method, {FLAT_MEAN: flat}, BENCH, tasks=_tasks(*rows), tasks_source=BENCH)


REFERENCES: tuple[Reference, ...] = (
    Reference(
        "full",
        _means(88.54, 75.88, 83.36, 47.64, 65.57),
        VPT,
        tuned_percent=100.0,
        tasks=_tasks(
            "68.9 87.7 64.3 97.2 86.9 87.4 38.8",
            "79.7 95.7 84.2 73.9",
            "56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1",
            "",
        ),
        tasks_source=BENCH,
    ),
    _bench(
        "linear",
        52.94,
        "63.4 85.0 63.2 97.0 86.3 36.6 51.0",
        "78.5 87.5 68.6 74.0",
        "34.3 30.6 33.2 55.4 12.5 20.0 9.6 19.2",
        "85.3 75.9 97.9 86.2 51.3",
    ),
    _bench(
        "bias",
        62.05,
        "72.8 87.0 59.2 97.5 85.3 59.9 51.4",
        "78.7 91.6 72.9 69.8",
        "61.5 55.6 32.4 55.9 66.6 40.0 15.7 25.1",
        "87.7 85.2 99.2 86.5 81.5",
    ),
    _bench(
        "adapter",
        71.44,
        "69.2 90.1 68.0 98.8 89.9 82.8 54.3",
        "84.0 94.9 81.9 75.5",
        "80.9 65.3 48.6 78.3 74.8 48.5 29.9 41.6",
        "87.1 84.3 98.5 89.8 68.6",
    ),
    _bench(
        "lora",
        72.25,
        "67.1 91.4 69.4 98.8 90.4 85.3 54.0",
        "84.9 95.3 84.4 73.6",
        "82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0",
        "85.6 79.8 98.9 87.6 72.0",
    ),
    _bench(
        "vpt-shallow",
        64.85,
        "77.7 86.9 62.6 97.5 87.3 74.5 51.2",
        "78.2 92.0 75.6 72.9",
        "50.5 58.6 40.5 67.1 68.7 36.1 20.2 34.1",
        "86.7 78.8 98.4 90.7 68.7",
    ),
    Reference(
        "vpt-deep",
        _means(89.11, 78.48, 82.43, 54.98, 69.43),
        VPT,
        tuned_percent=0.73,
        tasks=_tasks(
            "78.8 90.8 65.8 98.0 88.3 78.1 49.6",
            "81.8 96.1 83.4 68.4",
            "68.5 60.0 46.5 72.8 73.6 47.9 32.9 37.8",
            "88.5 84.2 99.0 90.2 83.6",
        ),
        tasks_source=BENCH,
    ),
    Reference("e2vpt", _means(89.22, 80.01, 84.43, 57.39, 71.42), Source("arXiv 2307.13770", PUBLISHED), IN21K, 0.39),
    Reference("sa2vp", _means(90.08, 80.97, 85.73, 60.80, None), Source("arXiv 2312.10376", PUBLISHED), IN21K, 0.65),
    Reference("vfpt", _means(89.24, 81.35, 84.93, 60.19, 73.20), Source("arXiv 2411.01327", PUBLISHED), IN21K, 0.66),
    Reference(
        "vapt",
        _means(89.58, 81.43, 85.13, 59.34, 72.91),
        VAPT_PAPER,
        tuned_percent=0.36,
        tasks=_tasks(
            "80.8 91.9 69.7 98.8 89.2 86.7 52.9",
            "84.4 96.5 85.1 74.5",
            "74.8 63.6 50.0 77.2 86.1 48.3 33.8 40.9",
            "89.7 84.6 99.1 91.7 82.8",
        ),
        tasks_source=VAPT_TASKS,
    ),
    Reference("vpt-deep", {"Natural": 36.02, "Specialized": 60.61, "Structured": 26.57}, VAPT_PAPER, MAE),
    Reference("vapt", {"Natural": 59.23, "Specialized": 79.10, "Structured": 51.49}, VAPT_PAPER, MAE),
    Reference("vpt-deep", {"Natural": 70.27, "Specialized": 83.04, "Structured": 42.38}, VAPT_PAPER, MOCO),
    Reference("vapt", {"Natural": 79.54, "Specialized": 86.92, "Structured": 59.41}, VAPT_PAPER, MOCO),
)

_VAPT_FIGURE = Source("arXiv 2501.18936", FIGURE)
DOGS_BY_FRACTION: Mapping[float, Mapping[str, Quoted]] = {
    share: {"vpt-deep": Quoted(vpt, source), "vapt": Quoted(vapt, source)}
    for share, vpt, vapt, source in (
        (0.01, 3.6, 60.1, VAPT_PAPER),
        (0.1, 83.3, 88.1, _VAPT_FIGURE),
        (0.3, 87.9, 90.4, _VAPT_FIGURE),
        (0.5, 87.6, 91.0, _VAPT_FIGURE),
        (1.0, 90.2, 91.7, _VAPT_FIGURE),
    )
}
"""Stanford Dogs by the share of the training set. At 1 % some classes may have had no picture at all, and the learning
rate was not searched: a gap there says little of the methods."""


def reference(method: str, place: str, backbone: str = IN21K) -> Quoted | None:
    """What is reported for a method at a task, a group or :data:`FLAT_MEAN`; None where nothing is."""
    for record in REFERENCES:
        if record.method == method and record.backbone == backbone and (quoted := record.quote(place)):
            return quoted
    return None
