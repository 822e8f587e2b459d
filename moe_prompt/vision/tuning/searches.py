"""Which hyper-parameters a search tries next: all points of a grid, one coordinate at a time, or drawn points.

A search is asked for one trial at a time and reads the results of the others from an Optuna study. Therefore an
interrupted search continues, and several processes can share one. A trial that failed counts as accuracy 0.

| search             | trials of the paper's grid | goes through                                             |
|--------------------|----------------------------|----------------------------------------------------------|
| `GridSearch`       | 40 (full: 16)              | every point                                              |
| `CoordinateSearch` | 13 (full: 7)               | every learning rate, then every decay at the best of them |
| `DrawnSearch`      | as many as one likes       | points drawn at random, or by TPE (arXiv 1907.10902)     |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from moe_prompt.errors import InputError, choose, require
from moe_prompt.vision.tuning.recipes import GRIDS, Grid, Point

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

FAILED_ACCURACY = 0.0
"""The accuracy in percent with which a failed trial enters a search."""
Told = Mapping[Point, float | None]
"""Accuracy of each point that was begun, None while its training runs."""


def optuna_module() -> Any:
    """Optuna, quiet, or a sentence that says how to install it."""
    try:
        import optuna
    except ImportError:
        raise InputError("a search needs Optuna: pip install 'moe-prompt[vision]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def best_point(told: Iterable[tuple[Point, float]]) -> Point:
    """The point of highest accuracy; of equal ones the smaller learning rate, then the larger weight decay.

    Ties are common, as one picture of 200 is half a percent. This rule prefers the milder training, and it is the same
    for every method.

    >>> best_point([(Point(5.0, 0.0), 80.0), (Point(1.0, 0.0), 80.0), (Point(1.0, 0.01), 80.0)])
    Point(base_lr=1.0, weight_decay=0.01)
    """
    return max(told, key=lambda pair: (pair[1], -pair[0].base_lr, pair[0].weight_decay))[0]


class Search(ABC):
    """A plan of trials over base learning rate and weight decay."""

    name: str
    optimizer: str
    trials: int
    """How many it comes to."""

    @abstractmethod
    def ask(self, study: Study) -> Trial | None:
        """The next trial. None if all are begun, or if the next one depends on trials that still run."""


class PlannedSearch(Search):
    """Goes through points of a grid in an order that may depend on the results."""

    grid: Grid

    @abstractmethod
    def next_point(self, told: Told) -> Point | None:
        """The next point. None at the end, or if it depends on results that are missing."""

    @property
    def optimizer(self) -> str:  # type: ignore[override]
        return self.grid.optimizer

    def ask(self, study: Study) -> Trial | None:
        categories = optuna_module().distributions.CategoricalDistribution
        waiting = any(trial.state.name == "WAITING" for trial in study.get_trials(deepcopy=False))
        if not waiting:
            point = self.next_point(told_of(study))
            if point is None:
                return None
            study.enqueue_trial({"base_lr": point.base_lr, "weight_decay": point.weight_decay})
        grid = {"base_lr": self.grid.base_lrs, "weight_decay": self.grid.weight_decays}
        return study.ask({name: categories(values) for name, values in grid.items()})


@dataclass(frozen=True)
class GridSearch(PlannedSearch):
    """Every point of a grid."""

    grid: Grid

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.grid.name} grid"

    @property
    def trials(self) -> int:  # type: ignore[override]
        return len(self.grid)

    def next_point(self, told: Told) -> Point | None:
        return next((point for point in self.grid.points() if point not in told), None)


@dataclass(frozen=True)
class CoordinateSearch(PlannedSearch):
    """Every learning rate at the weight decay `first_decay`, then every weight decay at the best learning rate."""

    grid: Grid
    first_decay: float = 0.001

    def __post_init__(self) -> None:
        require(
            self.first_decay in self.grid.weight_decays,
            f"a coordinate-wise search starts at a weight decay of its grid {self.grid.weight_decays}: got "
            f"{self.first_decay}.",
        )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.grid.name} grid by coordinates"

    @property
    def trials(self) -> int:  # type: ignore[override]
        return len(self.grid.base_lrs) + len(self.grid.weight_decays) - 1

    def next_point(self, told: Told) -> Point | None:
        rates = [Point(base_lr, self.first_decay) for base_lr in self.grid.base_lrs]
        for point in rates:
            if point not in told:
                return point
        known = [(point, accuracy) for point in rates if (accuracy := told[point]) is not None]
        if len(known) < len(rates):
            return None
        best = best_point(known).base_lr
        decays = (Point(best, weight_decay) for weight_decay in self.grid.weight_decays)
        return next((point for point in decays if point not in told), None)


@dataclass(frozen=True)
class DrawnSearch(Search):
    """`trials` points: base learning rates log-uniform over the range of a grid, weight decays from it.

    Trial k draws from its own generator, seeded by (seed, k), so that an interrupted search continues its sequence.
    """

    grid: Grid
    trials: int
    sampler: str = "tpe"
    seed: int = 0

    _SAMPLERS: ClassVar[Sequence[str]] = ("tpe", "random")

    def __post_init__(self) -> None:
        choose("sampler", self.sampler, dict.fromkeys(self._SAMPLERS))
        require(self.trials >= 1, f"a search needs at least one trial: got {self.trials}.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.sampler}, {self.trials} trials, seed {self.seed}"

    @property
    def optimizer(self) -> str:  # type: ignore[override]
        return self.grid.optimizer

    def ask(self, study: Study) -> Trial | None:
        optuna = optuna_module()
        if len(_begun(study)) >= self.trials:
            return None
        number = len(study.get_trials(deepcopy=False))
        study.sampler = self._sampler(optuna, 1000 * self.seed + number)
        low, high = min(self.grid.base_lrs), max(self.grid.base_lrs)
        return study.ask(
            {
                "base_lr": optuna.distributions.FloatDistribution(low, high, log=True),
                "weight_decay": optuna.distributions.CategoricalDistribution(self.grid.weight_decays),
            }
        )

    def _sampler(self, optuna: Any, seed: int) -> Any:
        """TPE draws its first ten trials at random; of fewer than twenty, its first half."""
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, self.trials // 2))


def point_of(parameters: Mapping[str, Any]) -> Point | None:
    """The point of a trial, None where it was killed before it had one."""
    if {"base_lr", "weight_decay"} <= set(parameters):
        return Point(float(parameters["base_lr"]), float(parameters["weight_decay"]))
    return None


def told_of(study: Study) -> dict[Point, float | None]:
    """Accuracy of every point that was begun, None while it is under way."""
    return {point: trial.value if trial.state.name == "COMPLETE" else None for point, trial in _begun(study)}


def _begun(study: Study) -> list[tuple[Point, Any]]:
    """Trials with a point, done or under way; a point may be drawn twice."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("RUNNING", "COMPLETE")]
    return [(point, trial) for trial in trials if (point := point_of(trial.params)) is not None]


SEARCHES = ("paper", "coordinates", "small", "rates", "random", "tpe")
DEFAULT_TRIALS = 6


def search_named(name: str, optimizer: str = "sgd", trials: int | None = None) -> Search:
    """A search by its name on the command line, for methods that are trained with `optimizer`.

    "paper" and "coordinates" have the published grid, "small" and "rates" six points, and "random" and "tpe" draw
    `trials` (six unless given) within the range of the published grid.

    Raises:
        InputError: an unknown name, or a number of trials for a search that has its own.

    >>> [search_named(name).trials for name in SEARCHES]
    [40, 13, 6, 6, 6, 6]
    """
    choose("search", name, dict.fromkeys(SEARCHES))
    paper = choose("optimizer of a grid", optimizer, GRIDS["paper"])
    if name in ("random", "tpe"):
        return DrawnSearch(paper, DEFAULT_TRIALS if trials is None else trials, name)
    grid = GRIDS[name][optimizer] if name in GRIDS else paper
    search: Search = CoordinateSearch(grid) if name == "coordinates" else GridSearch(grid)
    require(
        trials is None or trials == search.trials,
        f"the search {name!r} has {search.trials} trials of its own: got {trials}; leave the number out, or take "
        "'random' or 'tpe'.",
    )
    return search
