r"""How sharp a slope will be, from the scatter of errors.

A slope is linear in the logarithms of the statistics S_k at the m sizes n_k of the window,

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
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH = 3.92  # standard errors in a 95 % interval


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
