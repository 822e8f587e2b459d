r"""Sample complexity: the sample size n at which the error of a cell falls to a target, with an interval.

The statistic S(n), mean or median over replicates, is made to fall by isotonic regression of log S over the sizes

    g_i = min_{a <= i} max_{b >= i} mean(log S_a, ..., log S_b),

so that no wiggle answers for the curve, and straight lines join it on log axes. Beyond the largest size N

    n(eps) = N (eps / S(N))^{1 / slope}

along the slope fitted on the study's window, if theory predicts a slope and the fitted one lies at least three standard
errors below zero, up to a million times N; such an n is marked as extrapolated. Intervals are percentiles of the
bootstrap over the replicates of every size, widened for small samples (arXiv 1411.5279).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import norm as normal
from scipy.stats import t as student

from moe_prompt.basics.tables import explained
from moe_prompt.errors import choose, require
from moe_prompt.studies.analysis.cells import Cell, CellSummary, Errors, all_summaries
from moe_prompt.studies.analysis.rate_fit import RateFit
from moe_prompt.studies.analysis.tables import PLACE
from moe_prompt.studies.base import Study

INTERPOLATED, EXTRAPOLATED = "between sizes", "extrapolated"
BELOW, NEVER, NOT_REACHED = "below at the smallest n", "never at this floor", "not reached"
RESAMPLES = 2000
LARGE = 1e300  # an n beyond is no number
FURTHEST = 1e6  # times the largest size: nobody knows that the line goes on


@dataclass(frozen=True)
class NeededSize:
    """The n at which one quantity of a cell falls to the target; None where there is no such number."""

    truth: str
    estimator: str
    loss: str
    statistic: str
    target: float
    how: str
    n: float | None
    low: float | None  # ends of the 95 % interval; None: open on that side, or no interval
    high: float | None
    predicted: float | None  # where theory gives constant * n^slope
    floor: float | None
    measured: tuple[int, int]  # smallest and largest size there is

    def to_dict(self) -> dict[str, Any]:
        """In the terms of JSON."""
        return asdict(self)


def needed_sizes(study: Study, cells: Iterable[Cell], target: float, loss: str | None = None) -> list[NeededSize]:
    """n(target) for every cell and quantity that has rows, or for the quantities named `loss` alone.

    `target` is in the units of the quantity. Raises InputError unless it is positive and finite, and for a loss that
    no cell of the study has.
    """
    require(
        math.isfinite(target) and target > 0,
        f"a target is an error that can be reached, positive and finite: got {target:g}.",
    )
    names = {q.name: q for cell in study.cells for q in study.quantities(*cell)}
    if loss is not None:
        choose("loss", loss, names)
    asked = [summary for summary in all_summaries(cells) if loss in (None, summary.name) and summary.errors]
    return [_needed(summary, target) for summary in asked]


def _needed(summary: CellSummary, target: float) -> NeededSize:
    cell, quantity, errors, fit = summary.cell, summary.quantity, summary.errors, summary.fit
    floor = cell.floor if quantity.slope is None else None
    falls = quantity.slope is not None and fit is not None and fit.slope < -3 * fit.stderr  # no theory, no line
    log_n, interval = crossing(errors, target, quantity.statistic, fit if falls else None, cell.window)
    how = _how(log_n, max(errors), floor, target)
    low, high = (None, None) if how == NEVER else map(_size, interval)
    return NeededSize(
        truth=cell.truth,
        estimator=cell.estimator,
        loss=quantity.name,
        statistic=quantity.statistic,
        target=target,
        how=how,
        n=_size(log_n),
        low=low,
        high=high,
        predicted=_predicted(summary, target),
        floor=floor,
        measured=(min(errors), max(errors)),
    )


def _size(log_n: float) -> float | None:
    return float(np.exp(log_n)) if np.isfinite(log_n) else None


def _how(log_n: float, largest: int, floor: float | None, target: float) -> str:
    if np.isneginf(log_n):
        return BELOW
    if np.isposinf(log_n):
        return NEVER if floor is not None and floor >= target else NOT_REACHED
    return INTERPOLATED if log_n <= np.log(largest) else EXTRAPOLATED


def _predicted(summary: CellSummary, target: float) -> float | None:
    """The n at which constant * n^slope is the target."""
    constant, slope = summary.constant, summary.quantity.slope
    if constant is None or not slope:
        return None
    log_n = math.log(target / constant) / slope
    return math.exp(log_n) if log_n < math.log(LARGE) else None


def crossing(
    errors: Errors, target: float, statistic: str, fit: RateFit | None, window: tuple[int, int]
) -> tuple[float, tuple[float, float]]:
    """log n at the target and its 95 % interval; -inf: below at the smallest size, inf: never as far as can be told.

    `fit` is the slope to go on with beyond the largest size, None if there is none.

    >>> errors = {n: np.full(3, 2.0 * n**-0.5) for n in (100, 1000, 10000)}
    >>> log_n, _ = crossing(errors, 2.0 * 345**-0.5, "mean", None, (100, 10000))
    >>> round(float(np.exp(log_n)), 6)
    345.0
    """
    reduce: Callable[..., Any] = np.median if statistic == "median" else np.mean
    kept = [errors[n] for n in sorted(errors)]
    rng = np.random.default_rng(0)
    resampled = [reduce(e[rng.integers(len(e), size=(RESAMPLES, len(e)))], axis=1) for e in kept]
    statistics = np.column_stack(
        [np.concatenate([[reduce(e)], again]) for e, again in zip(kept, resampled, strict=True)]
    )
    logs = np.log(np.maximum(statistics, np.finfo(float).tiny))
    log_n = np.log(sorted(errors))
    slopes = np.full(len(logs), np.inf) if fit is None else _slopes(log_n, logs, window)
    point, *others = cross(log_n, fall(logs), slopes, math.log(target))
    fewest = min(map(len, kept))
    if fewest < 2:
        return point, (-np.inf, np.inf)
    low, high = np.sort(others)[[int(0.025 * RESAMPLES), int(0.975 * RESAMPLES)]]
    if not np.isfinite(point):
        return point, (low, high)
    # resamples vary by (R - 1) / R too little, and know their scatter no better than Student's t
    stretch = math.sqrt(fewest / (fewest - 1)) * student.ppf(0.975, fewest - 1) / normal.ppf(0.975)
    return point, (point - stretch * (point - low), point + stretch * (high - point))


def fall(logs: Float[np.ndarray, "curves sizes"]) -> Float[np.ndarray, "curves sizes"]:
    """The nearest curves that never rise, in least squares.

    >>> fall(np.array([[3.0, 1.0, 2.0, 0.0]])).tolist()
    [[3.0, 1.5, 1.5, 0.0]]
    """
    sizes = logs.shape[1]
    sums = np.concatenate([np.zeros((len(logs), 1)), logs.cumsum(1)], axis=1)
    start, stop = np.arange(sizes)[:, None], np.arange(1, sizes + 1)
    means = (sums[:, None, 1:] - sums[:, :-1, None]) / np.maximum(stop - start, 1)
    return np.stack([means[:, : i + 1, i:].max(2).min(1) for i in range(sizes)], axis=1)


def cross(
    log_n: Float[np.ndarray, "sizes"],
    curves: Float[np.ndarray, "curves sizes"],
    slopes: Float[np.ndarray, "curves"],
    level: float,
) -> Float[np.ndarray, "curves"]:
    """Where falling curves on log axes reach a level: -inf before the first size, by their slope behind the last."""
    found = np.empty(len(curves))
    above = (curves > level).sum(1)  # sizes
    first, last = above == 0, above == curves.shape[1]
    found[first] = -np.inf
    rest = (level - curves[last, -1]) / np.where(slopes[last] < 0, slopes[last], -1)
    found[last] = np.where((slopes[last] < 0) & (rest <= math.log(FURTHEST)), log_n[-1] + rest, np.inf)
    inner = np.flatnonzero(~(first | last))
    j = above[inner]
    left, right = curves[inner, j - 1], curves[inner, j]
    found[inner] = log_n[j - 1] + (level - left) / (right - left) * (log_n[j] - log_n[j - 1])
    return found


def _slopes(log_n: np.ndarray, logs: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Of every curve, on the window."""
    n = np.exp(log_n).round()
    inside = (n >= window[0]) & (n <= window[1])
    centred = log_n[inside] - log_n[inside].mean()
    slopes: np.ndarray = logs[:, inside] @ centred / np.square(centred).sum()
    return slopes


def needed_sizes_table(sizes: list[NeededSize]) -> str:
    """The needed sizes as text in columns, and what the columns mean."""
    return explained(SIZES, map(_line, sizes))


SIZES = {
    **PLACE,
    "of": "the statistic over replicates that falls to the target",
    "n": "the sample size at which it does",
    "95 % interval": "of n, from a bootstrap over replicates",
    "how": "between sizes: on straight lines, on log axes, along the falling curve nearest to the measured one; "
    "extrapolated: along the fitted slope, beyond the largest n that was run",
    "predicted n": "where theory's line reaches the target; - where theory gives no line",
}


def _line(size: NeededSize) -> tuple[str, ...]:
    how = f"{size.how} of {size.floor:.3g}" if size.how == NEVER else size.how
    smallest, largest = size.measured
    missing = f"<= {smallest:,}" if size.how == BELOW else "-" if size.how == NEVER else f"> {largest:,}"
    number, predicted = _number(size.n) or missing, _number(size.predicted) or "-"
    return (size.truth, size.estimator, size.loss, size.statistic, number, _interval(size), how, predicted)


def _interval(size: NeededSize) -> str:
    low, high = _number(size.low), _number(size.high)
    if low and high:
        return f"{low} to {high}"
    return f"at least {low}" if low else f"at most {high}" if high else "-"


def _number(n: float | None) -> str:
    if n is None:
        return ""
    return "< 1" if n < 1 else f"{n:,.0f}" if n < 1e9 else f"{n:.1e}"
