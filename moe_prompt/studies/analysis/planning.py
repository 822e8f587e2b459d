"""What a study will cost and how sharp its slopes will be, from rows that are there.

Cost. A fit of a cell at n takes the mean CPU time of its rows at n; where there are none, the study's own relative
cost(truth, estimator, n) times the cell's rate, CPU seconds over relative cost in the rows that there are. The limits
of the cells, computed once per run, are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_prompt.basics.tables import duration
from moe_prompt.errors import require
from moe_prompt.studies.analysis.cells import Cell, CellSummary, all_summaries
from moe_prompt.studies.analysis.sharpness import WIDTH, scatter, slope_stderr
from moe_prompt.studies.analysis.tables import PLACE, explained
from moe_prompt.studies.base import Study
from moe_prompt.studies.running import runner


@dataclass(frozen=True)
class SlopePlan:
    """How sharp one slope will be."""

    truth: str
    estimator: str
    loss: str
    predicted_slope: float | None
    scatter: float  # c, root mean square over the window
    stderr: float
    width: float  # of the 95 % interval


@dataclass(frozen=True)
class Design:
    """Sizes and replicates of a study, the widest 95 % interval of its slopes and what they cost in all."""

    sizes: tuple[int, ...]
    window: tuple[int, int]
    replicates: int
    width: float
    core_hours: float


@dataclass(frozen=True)
class Plan:
    """Before paying: fits, cost, and the standard error of every slope."""

    study: str
    fits: int
    left: int  # of them, to be computed
    core_hours: float  # of what is left
    wall_hours: float
    jobs: int
    evidence: int  # rows that the forecast rests on
    slopes: tuple[SlopePlan, ...]
    wanted: tuple[Design, ...] = ()  # that reach a width: with the study's sizes, and with more if that is cheaper

    def to_dict(self) -> dict[str, Any]:
        """In the terms of JSON."""
        return asdict(self)


# ------------------------------------------------------------------------------------------------ cost


def seconds_per_fit(study: Study, cells: Sequence[Cell]) -> Callable[[str, str, int], float]:
    """CPU seconds of a fit of a cell at a size, measured there or by the study's relative cost."""
    measured: dict[tuple[str, str, int], float] = {}
    rates = {}
    for cell in cells:
        place, rows = (cell.truth, cell.estimator), _large_batches(cell.rows)
        measured |= {(*place, int(n)): float(s) for n, s in rows.groupby("n").cpu_seconds.mean().items()}
        rates[place] = float(rows.cpu_seconds.sum()) / sum(study.cost(*place, int(n)) for n in rows.n)

    def seconds(truth: str, estimator: str, n: int) -> float:
        return measured.get((truth, estimator, n), rates[truth, estimator] * study.cost(truth, estimator, n))

    return seconds


def _large_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the batches less than half as large as the largest of their size: what all share weighs there.

    Rows of one batch tell the same time.
    """
    size = rows.groupby(["n", "cpu_seconds"]).cpu_seconds.transform("size")
    return rows[2 * size >= size.groupby(rows.n).transform("max")]


# ------------------------------------------------------------------------------------------------ plan


def _spreads(cells: Sequence[Cell]) -> list[tuple[CellSummary, dict[int, float]]]:
    """Each quantity of each cell and its scatter in the window, where the rows tell it."""
    found = []
    for summary in all_summaries(cells):
        low, high = summary.cell.window
        inside = {n: errors for n, errors in summary.errors.items() if low <= n <= high}
        if spread := scatter(inside, summary.quantity.statistic):
            found.append((summary, spread))
    return found


def plan_study(
    study: Study,
    cells: Sequence[Cell],
    done: set[tuple[str, str, int, int]],
    jobs: int = 1,
    width: float | None = None,
) -> Plan:
    """What is left of a study and how sharp it will be, by cells whose rows `pilot.sufficient` accepts.

    `done` are the coordinates of rows that a run need not compute. `width`: also the designs whose 95 % intervals are
    at most that wide, for every slope that is predicted. Raises InputError for jobs < 1 and a width that is not
    positive.
    """
    require(jobs >= 1, f"--jobs needs at least one worker: got {jobs}.")
    check_width(width)
    seconds, spreads = seconds_per_fit(study, cells), _spreads(cells)
    left = runner.missing_batches(study, done)
    fits = sum(len(batch.replicates) for batch in left)
    each = [len(batch.replicates) * seconds(batch.truth, batch.estimator, batch.n) for batch in left]
    return Plan(
        study=study.name,
        fits=len(study.cells) * len(study.sizes) * study.replicates,
        left=fits,
        core_hours=sum(each) / 3600,
        wall_hours=max(sum(each) / jobs, max(each, default=0.0)) / 3600,
        jobs=jobs,
        evidence=sum(cell.ends.fits for cell in cells),
        slopes=tuple(_slope_plan(study, *found) for found in spreads),
        wanted=() if width is None else designs(study, spreads, seconds, width),
    )


def check_width(width: float | None) -> None:
    """Raise InputError unless a width is positive and finite, or None."""
    require(
        width is None or (math.isfinite(width) and width > 0),
        f"a width is that of a 95 % interval, positive and finite: got {width}.",
    )


def _slope_plan(study: Study, summary: CellSummary, spread: dict[int, float]) -> SlopePlan:
    error = slope_stderr(_inside(study.sizes, study.window), spread, study.replicates)
    common = math.sqrt(np.mean(np.square(list(spread.values()))))
    cell, quantity = summary.cell, summary.quantity
    return SlopePlan(
        truth=cell.truth,
        estimator=cell.estimator,
        loss=quantity.name,
        predicted_slope=quantity.slope,
        scatter=common,
        stderr=error,
        width=WIDTH * error,
    )


def _inside(sizes: Sequence[int], window: tuple[int, int]) -> list[int]:
    return [n for n in sorted(sizes) if window[0] <= n <= window[1]]


def designs(
    study: Study,
    spreads: Sequence[tuple[CellSummary, dict[int, float]]],
    seconds: Callable[[str, str, int], float],
    width: float,
) -> tuple[Design, ...]:
    """The study's sizes with the replicates that its least sharp predicted slope needs; then one to three sizes more.

    The latter lie behind the last, with a window that reaches to them, and are there if they are cheaper.
    """
    judged = [found for found in spreads if found[0].quantity.slope is not None] or list(spreads)
    require(
        bool(judged), f"study {study.name}: no slope to plan for, as no quantity has a positive error in the window."
    )

    def design(sizes: tuple[int, ...], window: tuple[int, int]) -> Design:
        single = WIDTH * max(slope_stderr(_inside(sizes, window), spread, 1) for _, spread in judged)
        replicates = max(2, math.ceil((single / width) ** 2 * (1 - 1e-12)))
        once = sum(seconds(*cell, n) for cell in study.cells for n in sizes)
        return Design(sizes, window, replicates, single / math.sqrt(replicates), replicates * once / 3600)

    own, *others = (design(*sizes) for sizes in _ladders(study))
    best = min([own, *others], key=lambda found: found.core_hours)
    return (own,) if best is own else (own, best)


def _ladders(study: Study) -> list[tuple[tuple[int, ...], tuple[int, int]]]:
    """Sizes and the window on them: the study's own, and longer ones if its window reaches to its last size."""
    sizes, inside = tuple(sorted(study.sizes)), _inside(study.sizes, study.window)
    ratio, found = inside[-1] / inside[-2], [(sizes, study.window)]
    for more in (1, 2, 3) if inside[-1] == sizes[-1] else ():
        further = tuple(round(inside[-1] * ratio**k) for k in range(1, more + 1))
        found.append(((*sizes, *further), (study.window[0], further[-1])))
    return found


# ------------------------------------------------------------------------------------------------ words


SLOPES = {
    **PLACE,
    "predicted": "the power of n that theory predicts; - where it predicts none",
    "scatter": "standard error of the log of the statistic at one n, times the root of the replicates",
    "s.e.": "standard error that the slope will have with the study's sizes and replicates",
    "95 % width": "width of the 95 % interval of the slope",
}


def _slope_line(slope: SlopePlan) -> tuple[str, ...]:
    predicted = "-" if slope.predicted_slope is None else f"{slope.predicted_slope:g}"
    numbers = f"{slope.scatter:.2f}", f"{slope.stderr:.4f}", f"{slope.width:.4f}"
    return (slope.truth, slope.estimator, slope.loss, predicted, *numbers)


def plan_text(forecast: Plan, study: Study, source: str) -> str:
    """The plan in words and a table."""
    core, wall = duration(3600 * forecast.core_hours), duration(3600 * forecast.wall_hours)
    lines = [
        f"{forecast.study}: {forecast.fits:,} fits, {forecast.left:,} of them still to be computed",
        f"cost   {core} on one core, {wall} with {forecast.jobs} workers; "
        "what theory predicts for each cell is computed beside that",
        f"source {source}",
        "",
        explained(SLOPES, map(_slope_line, forecast.slopes)),
    ]
    return "\n".join([*lines, *_wanted(forecast.wanted, study)])


def _wanted(designs: Sequence[Design], study: Study) -> list[str]:
    """A line for each design."""
    lines = ["", f"For 95 % intervals at most {designs[0].width:.3g} wide on every predicted slope:"] if designs else []
    for found in designs:
        new = sorted(set(found.sizes) - set(study.sizes))
        sizes = f", with the sizes n = {', '.join(map(str, new))} added" if new else ""
        lines.append(f"  {found.replicates} replicates{sizes}: {duration(3600 * found.core_hours)} on one core in all")
    return lines
