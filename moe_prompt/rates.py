r"""Rate studies: which fits to make, and how fast their error falls with the sample size.

A study is data: populations to sample from, families to fit, sizes, replicates, an estimator, starts. Its rows depend
on its content alone; sizes and replicates only say which of them to compute, so that one size more, another number of
workers or a restart changes no other row.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_prompt.errors import require
from moe_prompt.estimators import Estimator, LeastSquares
from moe_prompt.fingerprint import fingerprint
from moe_prompt.initializers import Initializer, Random
from moe_prompt.regression import Population, RegressionModel


@dataclass(frozen=True, eq=False)
class RateStudy:
    """Error against n for every truth and every estimator.

    A cell is matched where truth and contender have the same name: the same family, exact-specified. `window` is the
    range of n on which slopes are fitted: part of the study, not of its reading. `nodes` is the size of the quadrature
    for expectations under the covariates, `projection_starts` the number of starts from which the best approximation of
    a truth by another family is sought.
    """

    name: str
    claim: str
    truths: Mapping[str, Population]
    contenders: Mapping[str, RegressionModel]
    sizes: tuple[int, ...]
    replicates: int
    window: tuple[int, int]
    estimator: Estimator = field(default_factory=LeastSquares)
    starts: Initializer = field(default_factory=Random)
    seed: int = 0
    nodes: int = 12**4
    projection_starts: int = 256
    quick_sizes: tuple[int, ...] = ()
    quick_replicates: int = 25

    def __post_init__(self) -> None:
        for name in ("sizes", "window", "quick_sizes"):  # NumPy's integers would not reach the database as integers
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        require(self.seed >= 0, f"study {self.name}: a seed is an integer of at least 0: got {self.seed}.")
        require(self.replicates >= 1, f"study {self.name} needs at least one replicate: got {self.replicates}.")
        self._check_window()
        self._check_contenders()

    def _check_window(self) -> None:
        low, high = self.window
        require(
            sum(low <= n <= high for n in self.sizes) >= 2,
            f"study {self.name}: the window {self.window} needs at least two of the sizes {self.sizes}.",
        )

    def _check_contenders(self) -> None:
        for name, model in self.contenders.items():
            require(
                name not in self.truths or fingerprint(self.truths[name].model) == fingerprint(model),
                f"study {self.name}: truth and estimator of one name are a matched cell and need the same model; "
                f"those named {name} differ, rename one.",
            )
            least = model.num_parameters
            require(
                min(self.sizes) >= least,
                f"study {self.name}: estimator {name} has {model.num_parameters} parameters and needs "
                f"n >= {least}; got n = {min(self.sizes)}, raise the smallest size.",
            )

    def quick(self) -> RateStudy:
        """A few sizes and replicates of the same study: its rows are among the full one's."""
        return replace(
            self,
            sizes=self.quick_sizes or self.sizes[:-1:2],
            replicates=min(self.quick_replicates, self.replicates),
            projection_starts=min(64, self.projection_starts),
        )

    def matched(self, truth: str, estimator: str) -> bool:
        return truth == estimator

    @cached_property
    def key(self) -> str:
        """Hash of everything that a row depends on beside its own coordinates."""
        parts = (self.truths, self.contenders, self.estimator, self.starts, self.seed, self.nodes)
        return fingerprint(parts)

    def rng(self, truth: str, n: int, replicate: int, stream: int) -> np.random.Generator:
        """The generator of one replicate: stream 0 draws data (the same for every estimator), 1 draws starts."""
        where = (zlib.crc32(truth.encode()), n, replicate, stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=where))


@dataclass(frozen=True)
class RateFit:
    """log error = intercept + slope log n by least squares, and the slope's standard error."""

    slope: float
    stderr: float
    intercept: float

    def line(self, n: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(self.intercept) * np.asarray(n, float) ** self.slope


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
