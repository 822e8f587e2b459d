"""How fast an error falls with the sample size: a slope on log axes, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class RateFit:
    """log error = intercept + slope log n by least squares, and the slope's standard error."""

    slope: float
    stderr: float
    intercept: float

    @property
    def error(self) -> float | None:
        """The standard error; None where a single replicate tells nothing of it."""
        return self.stderr if np.isfinite(self.stderr) else None

    def line(self, n: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(self.intercept) * np.asarray(n, float) ** self.slope


def errors_by_size(rows: pd.DataFrame, column: str) -> dict[int, np.ndarray]:
    """n -> finite values of a column."""
    return {int(n): group.to_numpy(float) for n, group in rows[np.isfinite(rows[column])].groupby("n")[column]}


def fit_rate(
    errors: Mapping[int, NDArray[np.float64]],
    window: tuple[int, int],
    statistic: str = "mean",
    resamples: int = 1000,
    seed: int = 0,
) -> RateFit | None:
    """Slope of log mean (or median) error on log n within the window, standard error by bootstrap over replicates.

    `errors` maps n to the replicates' errors. None if fewer than two sizes of the window have a positive statistic; a
    single replicate somewhere tells nothing of its scatter, and the standard error is NaN.

    >>> exact = {n: np.full(5, 2.0 * n**-0.5) for n in (100, 1000, 10000)}
    >>> round(fit_rate(exact, (100, 10000)).slope, 12)
    -0.5
    """
    reduce: Callable[..., Any] = np.median if statistic == "median" else np.mean
    inside = {n: np.asarray(e, float) for n, e in sorted(errors.items()) if window[0] <= n <= window[1] and len(e)}
    inside = {n: e[np.isfinite(e)] for n, e in inside.items()}
    inside = {n: e for n, e in inside.items() if len(e) and reduce(e) > 0}
    if len(inside) < 2:
        return None
    log_n = np.log(list(inside))
    slope, intercept = np.polyfit(log_n, np.log([reduce(e) for e in inside.values()]), 1)
    rng = np.random.default_rng(seed)
    resampled = [reduce(e[rng.integers(len(e), size=(resamples, len(e)))], axis=1) for e in inside.values()]
    centred = (log_n - log_n.mean()) / np.square(log_n - log_n.mean()).sum()
    slopes = centred @ np.log(np.maximum(resampled, np.finfo(float).tiny))
    fewest = min(map(len, inside.values()))
    # a resample of R values varies by (R - 1) / R of their variance
    small_sample = np.sqrt(fewest / (fewest - 1)) if fewest > 1 else np.nan
    return RateFit(float(slope), float(slopes.std(ddof=1) * small_sample), float(intercept))
