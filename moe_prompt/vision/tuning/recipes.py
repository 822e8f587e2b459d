"""How each of the 24 tasks is tuned: options of the methods, schedule and grids, each with its source.

| provenance | means                                                                  |
|------------|------------------------------------------------------------------------|
| published  | stated by a paper or its released configuration                        |
| derived    | follows from something published by the rule that `why` states         |
| ours       | chosen here, for the reason that `why` gives                           |

Only one option is published for each task: the number of prompts of VPT-deep. VAPT's settings for each task were never
published, so every VAPT recipe is derived: as many prompts as VPT-deep, and the other options as released.

References:
    arXiv 2203.12119 (prompt lengths, grid, schedule), 2501.18936 (VAPT), 1910.04867 (1,000 pictures a task).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from moe_prompt.errors import choose
from moe_prompt.vision.data.benchmarks import FGVC_TASKS, GROUP_OF, VTAB_TASKS

PUBLISHED, DERIVED, OURS = "published", "derived", "ours"
PROVENANCES = (PUBLISHED, DERIVED, OURS)
SEEDS = (42, 44, 82, 100, 800)
"""The five seeds of the released pipelines; the first is the one that every search trial has."""


@dataclass(frozen=True, order=True)
class Point:
    """What a search varies: the base learning rate (for a batch of 256) and the weight decay."""

    base_lr: float
    weight_decay: float


@dataclass(frozen=True)
class Grid:
    """Base learning rates x weight decays, and the optimizer that they are for."""

    name: str
    optimizer: str
    base_lrs: tuple[float, ...]
    weight_decays: tuple[float, ...]
    provenance: str
    why: str

    def points(self) -> tuple[Point, ...]:
        """Every point, the largest learning rates first, as the released scripts go through them."""
        return tuple(Point(*pair) for pair in product(self.base_lrs, self.weight_decays))

    def __len__(self) -> int:
        return len(self.base_lrs) * len(self.weight_decays)


SGD_GRID = Grid(
    "paper",
    "sgd",
    (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05),
    (0.01, 0.001, 0.0001, 0.0),
    PUBLISHED,
    "the grid of arXiv 2203.12119 for everything but full fine-tuning, in the released scripts too",
)
ADAMW_GRID = Grid(
    "paper",
    "adamw",
    (0.005, 0.001, 0.0005, 0.0001),
    (0.01, 0.001, 0.0001, 0.0),
    PUBLISHED,
    "the grid of arXiv 2203.12119 for full fine-tuning",
)
SMALL_SGD_GRID = Grid(
    "small",
    "sgd",
    (25.0, 5.0, 1.0),
    (0.001, 0.0001),
    OURS,
    "six trials: three learning rates a factor of five apart that cover what the papers chose, two inner weight decays",
)
SMALL_ADAMW_GRID = Grid(
    "small",
    "adamw",
    (0.005, 0.001, 0.0005),
    (0.01, 0.0001),
    OURS,
    "six trials, as many as the small grid of SGD, so that full fine-tuning is searched no less than the others",
)
RATES_SGD_GRID = Grid(
    "rates",
    "sgd",
    (1.0, 0.25, 0.1, 0.05, 0.02, 0.01),
    (0.0001,),
    OURS,
    "six learning rates at and below the low end of the published grid: features of self-supervised backbones are "
    "larger, and prompts diverge at higher ones; a few epochs leave weight decay little to do",
)
RATES_ADAMW_GRID = Grid(
    "rates",
    "adamw",
    (0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001),
    (0.0001,),
    OURS,
    "six learning rates over the range of the published grid",
)
GRIDS: Mapping[str, Mapping[str, Grid]] = {
    "paper": {"sgd": SGD_GRID, "adamw": ADAMW_GRID},
    "small": {"sgd": SMALL_SGD_GRID, "adamw": SMALL_ADAMW_GRID},
    "rates": {"sgd": RATES_SGD_GRID, "adamw": RATES_ADAMW_GRID},
}


@dataclass(frozen=True)
class Schedule:
    """Optimisation settings that no search varies."""

    epochs: int = 100
    warmup: int = 10
    batch: int = 64
    momentum: float = 0.9
    normalisation: str = "imagenet"
    provenance: str = PUBLISHED
    why: str = (
        "SGD with momentum 0.9, 100 epochs, 10 of them warm-up, cosine, batch 64, ImageNet statistics, as released; "
        "that their first epoch has a learning rate of zero is not repeated"
    )


@dataclass(frozen=True)
class MethodRecipe:
    """Options of one method on one task, with their provenance."""

    method: str
    options: Mapping[str, Any]
    provenance: str
    why: str


@dataclass(frozen=True)
class TaskRecipe:
    """How a task is tuned by every method."""

    task: str
    group: str
    preprocessing: str
    """"vtab": resized to the crop, nothing else. "fgvc": shorter side 256, random crop 224 and flip, centre at test."""
    methods: Mapping[str, MethodRecipe]
    schedule: Schedule = field(default_factory=Schedule)
    provenance: str = PUBLISHED
    """Provenance of the preprocessing and of VPT-deep's number of prompts; each method states its own."""

    def of(self, method: str) -> MethodRecipe:
        """The recipe for one method, or a sentence that lists those there are."""
        return choose("method", method, self.methods)


_LENGTHS = (
    "10 10 10 1 1 50 5",  # Natural
    "100 100 10 1",  # Specialized
    "100 200 100 100 100 100 200 200",  # Structured
    "10 50 5 100 200",  # FGVC
)
VPT_DEEP_LENGTHS: Mapping[str, int] = dict(
    zip(
        VTAB_TASKS + FGVC_TASKS,
        [int(length) for row in _LENGTHS for length in row.split()],
        strict=True,
    )
)
"""Prompts per block that arXiv 2203.12119 reports as best for VPT-deep on ViT-B/16 ImageNet-21k."""

DEFAULT_LENGTH = 10
"""For a task that is not among the 24: the median over Natural and FGVC, where pictures are photographs."""


def _methods(length: int, known: bool) -> dict[str, MethodRecipe]:
    """Recipes of all methods on a task whose VPT-deep length is `length`."""
    as_vpt = "as many prompts as VPT-deep has on this task" if known else "as many prompts as VPT-deep here"
    no_choice = "has no option"
    prompts = {"num_prompts": length}
    rows: tuple[tuple[str, dict[str, Any], str, str], ...] = (
        ("linear", {}, PUBLISHED, no_choice),
        ("full", {}, PUBLISHED, no_choice),
        ("bias", {}, PUBLISHED, no_choice),
        ("layernorm", {}, OURS, no_choice + "; not in arXiv 2203.12119"),
        ("partial", {"k": 1}, PUBLISHED, "the last block, Partial-1 of arXiv 2203.12119"),
        ("adapter", {}, OURS, "a bottleneck of 64; a down-projection that starts at zero never learns"),
        ("lora", {}, OURS, "rank 8 on queries and values, as is common"),
        (
            "vpt-deep",
            prompts,
            PUBLISHED if known else OURS,
            "the length reported in arXiv 2203.12119" if known else f"{length} prompts, the median of photographs",
        ),
        ("vpt-shallow", prompts, DERIVED, as_vpt),
        ("vapt", prompts, DERIVED, as_vpt + ", kernel 2 and rank 8; VAPT's settings per task were not published"),
        ("vapt-paper", prompts, DERIVED, as_vpt + ", kernel 2 and rank 8, in the form that arXiv 2501.18936 writes"),
        ("prefix", prompts, DERIVED, as_vpt),
        ("norga", prompts, DERIVED, as_vpt),
    )
    return {name: MethodRecipe(name, options, provenance, why) for name, options, provenance, why in rows}


RECIPES: Mapping[str, TaskRecipe] = {
    task: TaskRecipe(task, GROUP_OF[task], "fgvc" if task in FGVC_TASKS else "vtab", _methods(length, known=True))
    for task, length in VPT_DEEP_LENGTHS.items()
}


def recipe_for(task: str) -> TaskRecipe:
    """The recipe of a task; one that is not among the 24 gets a recipe that says it is ours.

    >>> recipe_for("svhn").of("vpt-deep").options, recipe_for("mushrooms").of("vpt-deep").provenance
    ({'num_prompts': 50}, 'ours')
    """
    if task in RECIPES:
        return RECIPES[task]
    return TaskRecipe(task, "Other", "vtab", _methods(DEFAULT_LENGTH, known=False), provenance=OURS)
