r"""What a study will cost and how sharp its slopes will be, from rows that are there.

Cost. A fit of a cell at n takes the mean CPU time of its rows at n; where there are none, the study's own relative
cost(truth, estimator, n) times the cell's rate, CPU seconds over relative cost in the rows that there are. The limits
of the cells, computed once per run, are not counted.

Sharpness. A slope is linear in the logarithms of the statistics S_k at the m sizes n_k of the window,

    slope = sum_k w_k log S_k,   w_k = (l_k - lbar) / sum_i (l_i - lbar)^2,   l_k = log n_k,

and S_k over R independent replicates has, to first order, Var log S_k = c_k^2 / R, so that

    s.e.(slope) = sqrt( sum_k w_k^2 c_k^2 / R ).

For means c = sd(e) / mean(e), the coefficient of variation of the errors; for medians Var log S = 1 / (4 R f^2), with f
the density of log e at its median, which is normal of the same quartiles here: c = sqrt(pi / 2) (log q75 - log q25) /
1.349. Sizes without replicates take the root mean square of the others. A 95 % interval is 3.92 standard errors wide,
so the replicates that a width needs grow as its inverse square. Sizes between the others never save any, as they lie
near the middle; sizes behind the last may, where their fits are not too dear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_prompt.errors import require
from moe_prompt.studies.analysis.summaries import by_size
from moe_prompt.studies.base import Quantity, Study
from moe_prompt.studies.running import runner
from moe_prompt.tables import aligned, duration

WIDTH = 3.92  # standard errors in a 95 % interval
Cell = tuple[str, str]


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


def seconds_per_fit(study: Study, rows: pd.DataFrame) -> Callable[[str, str, int], float]:
    """CPU seconds of a fit of a cell at a size, measured there or by the study's relative cost."""
    rows = _large_batches(rows)
    measured = {key: float(s) for key, s in rows.groupby(["truth", "estimator", "n"]).cpu_seconds.mean().items()}
    rates = {cell: _rate(study, rows[(rows.truth == cell[0]) & (rows.estimator == cell[1])]) for cell in study.cells}

    def seconds(truth: str, estimator: str, n: int) -> float:
        return measured.get((truth, estimator, n), rates[truth, estimator] * study.cost(truth, estimator, n))

    return seconds


def _large_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the batches less than half as large as the largest of their cell and size: what all share weighs there.

    Rows of one batch tell the same time.
    """
    place = ["truth", "estimator", "n"]
    size = rows.groupby([*place, "cpu_seconds"]).cpu_seconds.transform("size")
    return rows[2 * size >= size.groupby([rows[name] for name in place]).transform("max")]


def _rate(study: Study, own: pd.DataFrame) -> float:
    relative = [study.cost(*key) for key in zip(own.truth, own.estimator, own.n, strict=True)]
    return float(own.cpu_seconds.sum() / sum(relative))


def scatter(errors: Mapping[int, np.ndarray], statistic: str) -> dict[int, float]:
    """n -> c: sqrt(R) times the standard error of the log of the statistic over R replicates.

    >>> scatter({7: np.array([1.0, 3.0])}, "mean") == {7: math.sqrt(2) / 2}
    True
    """
    if statistic == "median":
        positive = {n: e[e > 0] for n, e in errors.items()}
        quartiles = {n: np.quantile(np.log(e), [0.25, 0.75]) for n, e in positive.items() if len(e) > 1}
        return {n: math.sqrt(math.pi / 2) * float(high - low) / 1.349 for n, (low, high) in quartiles.items()}
    return {n: float(e.std(ddof=1) / e.mean()) for n, e in errors.items() if len(e) > 1 and e.mean() > 0}


def slope_stderr(sizes: Sequence[int], spread: Mapping[int, float], replicates: int) -> float:
    """Standard error of a slope on these sizes; those without a spread take the root mean square of the others'."""
    log_n = np.log(np.array(sizes, float))
    weights = (log_n - log_n.mean()) / np.square(log_n - log_n.mean()).sum()
    common = math.sqrt(np.mean(np.square(list(spread.values()))))
    squares = np.square([spread.get(n, common) for n in sizes])
    return float(np.sqrt((np.square(weights) * squares).sum() / replicates))


# ------------------------------------------------------------------------------------------------ plan


def _spreads(study: Study, rows: pd.DataFrame) -> list[tuple[Cell, Quantity, dict[int, float]]]:
    """Cell, quantity and scatter in the window, where the rows tell it."""
    found = []
    inside = rows[rows.n.between(*study.window)]
    for cell in study.cells:
        own = inside[(inside.truth == cell[0]) & (inside.estimator == cell[1])]
        for quantity in study.quantities(*cell):
            spread = scatter(by_size(own, quantity.column), quantity.statistic)
            if spread:
                found.append((cell, quantity, spread))
    return found


def plan(
    study: Study,
    rows: pd.DataFrame,
    done: set[tuple[str, str, int, int]],
    jobs: int = 1,
    width: float | None = None,
) -> Plan:
    """What is left of a study and how sharp it will be, by rows that `pilot.sufficient` accepts.

    `done` are the coordinates of rows that a run need not compute. `width`: also the designs whose 95 % intervals are
    at most that wide, for every slope that is predicted. Raises InputError for jobs < 1 and a width that is not
    positive.
    """
    require(jobs >= 1, f"--jobs needs at least one worker: got {jobs}.")
    check_width(width)
    seconds, spreads = seconds_per_fit(study, rows), _spreads(study, rows)
    left = runner.missing_batches(study, done)
    fits = sum(len(batch.replicates) for batch in left)
    each = [len(batch.replicates) * seconds(batch.truth, batch.estimator, batch.n) for batch in left]
    return Plan(
        study.name,
        len(study.cells) * len(study.sizes) * study.replicates,
        fits,
        sum(each) / 3600,
        max(sum(each) / jobs, max(each, default=0.0)) / 3600,
        jobs,
        len(rows),
        tuple(_slope_plan(study, *found) for found in spreads),
        () if width is None else designs(study, spreads, seconds, width),
    )


def check_width(width: float | None) -> None:
    """Raise InputError unless a width is positive and finite, or None."""
    require(
        width is None or (math.isfinite(width) and width > 0),
        f"a width is that of a 95 % interval, positive and finite: got {width}.",
    )


def _slope_plan(study: Study, cell: Cell, quantity: Quantity, spread: dict[int, float]) -> SlopePlan:
    error = slope_stderr(_inside(study.sizes, study.window), spread, study.replicates)
    common = math.sqrt(np.mean(np.square(list(spread.values()))))
    return SlopePlan(*cell, quantity.name, quantity.slope, common, error, WIDTH * error)


def _inside(sizes: Sequence[int], window: tuple[int, int]) -> list[int]:
    return [n for n in sorted(sizes) if window[0] <= n <= window[1]]


def designs(
    study: Study,
    spreads: Sequence[tuple[Cell, Quantity, dict[int, float]]],
    seconds: Callable[[str, str, int], float],
    width: float,
) -> tuple[Design, ...]:
    """The study's sizes with the replicates that its least sharp predicted slope needs; then one to three sizes more.

    The latter lie behind the last, with a window that reaches to them, and are there if they are cheaper.
    """
    judged = [found for found in spreads if found[1].slope is not None] or list(spreads)
    require(
        bool(judged), f"study {study.name}: no slope to plan for, as no quantity has a positive error in the window."
    )

    def design(sizes: tuple[int, ...], window: tuple[int, int]) -> Design:
        single = WIDTH * max(slope_stderr(_inside(sizes, window), spread, 1) for _, _, spread in judged)
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


def render(forecast: Plan, study: Study, source: str) -> str:
    """The plan in words and a table."""
    head = ("truth", "estimator", "loss", "predicted", "scatter", "s.e. of the slope", "95 % width")
    cells = [
        (
            s.truth,
            s.estimator,
            s.loss,
            "-" if s.predicted_slope is None else f"{s.predicted_slope:g}",
            f"{s.scatter:.2f}",
            f"{s.stderr:.4f}",
            f"{s.width:.4f}",
        )
        for s in forecast.slopes
    ]
    lines = [
        f"{forecast.study}: {forecast.fits} fits, {forecast.left} of them to be computed",
        f"cost  {duration(3600 * forecast.core_hours)} of one core beside the cells' limits, "
        f"{duration(3600 * forecast.wall_hours)} with {forecast.jobs} workers",
        f"from  {source}",
        "",
        aligned([head, *cells]),
    ]
    return "\n".join([*lines, *_wanted(forecast.wanted, study)])


def _wanted(designs: Sequence[Design], study: Study) -> list[str]:
    """A line for each design."""
    lines = ["", f"95 % intervals at most {designs[0].width:.3g} wide on every predicted slope take"] if designs else []
    for found in designs:
        new = sorted(set(found.sizes) - set(study.sizes))
        sizes = f", with n = {', '.join(map(str, new))} added and in the window" if new else ""
        lines.append(f"  {found.replicates} replicates{sizes}: {duration(3600 * found.core_hours)} of one core in all")
    return lines
