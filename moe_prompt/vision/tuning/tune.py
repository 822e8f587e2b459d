"""From search to test: hyper-parameters chosen on validation pictures, then five seeds, each tested once.

1. Every trial of the search is a run on the search pair of splits (train800 / val200), all with the same seed.
2. The best by last-epoch validation accuracy is chosen (ties: :func:`~moe_prompt.vision.tuning.searches.best_point`).
3. With it, five runs with the seeds 42, 44, 82, 100 and 800 on the final pair (train800val200 / test); the accuracy
   after the last epoch is the result.

Each trial is a row in the table of runs and a trial of an Optuna study; both are SQLite files in `folder`. After a kill
the same command continues, and several processes with the same command share the work. No trial is run twice, a killed
trial continues from its last saved state, and a trial whose loss is not finite counts as accuracy 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_prompt.errors import require
from moe_prompt.studies.running.row_store import connect
from moe_prompt.vision.downloads.registries import Teller
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.runtime.locks import Busy, exclusively
from moe_prompt.vision.training.evaluation import TrainingProgress, silent
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.tuning.problem import TuningProblem
from moe_prompt.vision.tuning.recipes import SEEDS, Point, Schedule, recipe_for
from moe_prompt.vision.tuning.run_spec import SEARCH, RunSpec
from moe_prompt.vision.tuning.run_table import RunRow
from moe_prompt.vision.tuning.runs import run_training
from moe_prompt.vision.tuning.searches import (
    FAILED_ACCURACY,
    PlannedSearch,
    Search,
    best_point,
    optuna_module,
    point_of,
)

STORAGE = "search.sqlite"
Evaluate = Callable[[Point, bool], float]
"""Returns the accuracy at a point. With False it does not wait for another process and may raise `Busy`."""
Explorer = Callable[[Search, Evaluate, Path, str], "tuple[Point, ...]"]


def untold(sentence: str) -> None:
    """Ignores the sentence."""


@dataclass(frozen=True)
class Tuned:
    """The result of tuning one method on one task: the trials, the best of them, and the final runs."""

    label: str
    trials: tuple[RunRow, ...]
    best: RunRow
    finals: tuple[RunRow, ...]


def method_for(task: str, name: str, **options: Any) -> Method:
    """A method with the options of the task's recipe; `options` overrule them."""
    return method_named(name, **{**recipe_for(task).of(name).options, **options})


def recipe_from(schedule: Schedule, optimizer: str, **changes: Any) -> TrainingRecipe:
    """A training recipe by a schedule; the search sets learning rate and weight decay."""
    given: dict[str, Any] = {
        "base_lr": 0.0,
        "optimizer": optimizer,
        "epochs": schedule.epochs,
        "warmup": schedule.warmup,
        "batch": schedule.batch,
        "momentum": schedule.momentum,
        "seed": SEEDS[0],
    }
    return TrainingRecipe(**{**given, **changes})


def choose_best(rows: Sequence[RunRow]) -> RunRow:
    """The row of the best trial by validation accuracy at the last epoch.

    Raises:
        InputError: a row that was not evaluated on a validation split, or no trial that gave a result.
    """
    require(
        all(row.purpose == SEARCH for row in rows),
        "hyper-parameters are chosen on validation pictures: got a run that was evaluated on test.",
    )
    usable = {_point(row): row for row in rows if not row.failed and row.accuracy is not None}
    require(
        bool(usable),
        f"none of the {len(rows)} trials gave a result"
        + (f" ({rows[0].message})" if rows else "")
        + ": search smaller learning rates.",
    )
    return usable[best_point((point, row.accuracy) for point, row in usable.items() if row.accuracy is not None)]


def tune(
    problem: TuningProblem,
    method: Method,
    recipe: TrainingRecipe,
    search: Search,
    folder: str | Path,
    label: str = "",
    seeds: Sequence[int] = SEEDS,
    progress: TrainingProgress = silent,
    tell: Teller = untold,
    explorer: Explorer | None = None,
) -> Tuned:
    """Search, choose, and train the chosen one with every seed.

    `recipe` gives everything but learning rate, weight decay and optimizer, which come from the search. The `explorer`
    carries out the search: by default :func:`explore`, through Optuna; :func:`go_through` needs no Optuna.

    Raises:
        InputError: no validation split, no trial with a result, or what a training raises; rows written so far stay.
    """
    require(int(os.environ.get("WORLD_SIZE", "1")) == 1, "start `tune` several times instead of under torchrun.")
    work = _Tuning(problem, method, replace(recipe, optimizer=search.optimizer), Path(folder), label, progress, tell)
    name = f"{work.trial(Point(0.0, 0.0)).search_key} {search.name}"
    points = (explorer or explore)(search, work.evaluate, work.folder / STORAGE, name)
    trials = tuple(run_training(work.trial(point), work.folder, problem) for point in points)
    best = choose_best(trials)
    return Tuned(label or method.name, trials, best, tuple(work.final(_point(best), seed) for seed in seeds))


@dataclass(frozen=True)
class _Tuning:
    """One method on one task, as :func:`tune` was asked."""

    problem: TuningProblem
    method: Method
    recipe: TrainingRecipe
    folder: Path
    label: str
    progress: TrainingProgress
    tell: Teller

    def trial(self, point: Point) -> RunSpec:
        return self.problem.trial(self.method, self._at(point), self.label)

    def evaluate(self, point: Point, wait: bool) -> float:
        row = run_training(self.trial(point), self.folder, self.problem, self.progress, wait)
        self._tell(row, f"lr {point.base_lr:g}, decay {point.weight_decay:g}: ")
        return FAILED_ACCURACY if row.accuracy is None else row.accuracy

    def final(self, point: Point, seed: int) -> RunRow:
        spec = self.problem.final(self.method, replace(self._at(point), seed=seed), self.label)
        row = run_training(spec, self.folder, self.problem, self.progress)
        self._tell(row, f"seed {seed}, tested: ")
        return row

    def _at(self, point: Point) -> TrainingRecipe:
        return replace(self.recipe, base_lr=point.base_lr, weight_decay=point.weight_decay)

    def _tell(self, row: RunRow, words: str) -> None:
        self.tell(f"{row.task}, {row.label}, {words}{_outcome(row)}")


def explore(search: Search, evaluate: Evaluate, storage: Path, name: str) -> tuple[Point, ...]:
    """Carry out a search through Optuna.

    The study `name` in the database `storage` knows which trials are begun and done. A trial whose process died is
    finished first. Returns the points in the order of their trials.
    """
    optuna = optuna_module()
    lock = storage.with_name(storage.name + ".lock")
    with exclusively(lock):
        study = optuna.create_study(
            study_name=name, storage=_database(optuna, storage), direction="maximize", load_if_exists=True
        )
    while True:
        left = [trial for trial in _under_way(study, optuna, lock) if not _taken_up(study, trial, evaluate, False)]
        with exclusively(lock):
            trial = search.ask(study)
        if trial is not None:
            _taken_up(study, trial, evaluate, False)
        elif left:
            _taken_up(study, left[0], evaluate, True)
        else:
            break
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return tuple(dict.fromkeys(point for trial in done if (point := point_of(trial.params)) is not None))


def go_through(search: Search, evaluate: Evaluate, storage: Path, name: str) -> tuple[Point, ...]:
    """Carry out a planned search without Optuna; the table of runs remembers what was done.

    Raises:
        InputError: a search that draws its points, which needs Optuna.
    """
    require(isinstance(search, PlannedSearch), f"the search {search.name!r} needs Optuna: take a grid.")
    assert isinstance(search, PlannedSearch)
    told: dict[Point, float | None] = {}
    while (point := search.next_point(told)) is not None:
        told[point] = evaluate(point, True)
    return tuple(told)


def _database(optuna: Any, path: Path) -> Any:
    connect(path).close()
    return optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": 120}})


def _under_way(study: Any, optuna: Any, lock: Path) -> list[Any]:
    """Trials that are begun and not done. Trials that were killed before they had a point are closed."""
    with exclusively(lock):
        running = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
        for trial in running:
            if point_of(trial.params) is None:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return [trial for trial in running if point_of(trial.params) is not None]


def _taken_up(study: Any, trial: Any, evaluate: Evaluate, wait: bool) -> bool:
    """Finish a trial that another process began; False where that process is still at it."""
    point = point_of(trial.params)
    assert point is not None
    try:
        study.tell(trial.number, evaluate(point, wait), skip_if_finished=True)
    except Busy:
        return False
    return True


def _point(row: RunRow) -> Point:
    return Point(row.base_lr, row.weight_decay)


def _outcome(row: RunRow) -> str:
    return f"failed ({row.message})" if row.accuracy is None else f"{row.accuracy:.2f} % on {row.evaluation}"
