r"""The Cramer-Rao bound of a latent mixture: the error of an efficient estimator.

    n Cov(theta_hat) -> I(theta)^{-1},    I(theta) = E[- d2 log p(Y | X) / d theta2]

The expectation is the mean over a large sample drawn from the truth. If the truth depends on n, so does I, and the
bound need not fall as n^{-1/2}: :func:`power_law` computes its exponent over a range of n.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.likelihood.louis_information import Observations
from moe_prompt.likelihood.population import MixturePopulation

DRAWS = 200_000  # observations that the information is a mean over
ERRORS = 4000  # random errors that a bound is a mean over: its own error is about one percent
SMALL = 1e-6  # mean size of these errors: so small that a judged number is linear in them, up to rounding


def fisher_information(population: MixturePopulation, draws: int = DRAWS, seed: int = 0) -> Float64[Tensor, "p p"]:
    """I(theta) of one observation, by `draws` of them."""
    data = population.sample(draws, [np.random.default_rng(seed)])
    sample = Observations(population.model, data.x, data.y)
    return sample.sums(population.theta[None], torch.zeros(1, dtype=torch.int64)).observed[0] / draws


def bound_at(
    population: MixturePopulation, n: int, errors: Callable[[Tensor], dict[str, Tensor]], statistic: str = "mean"
) -> dict[str, float]:
    """Mean or median of each named error under theta_hat ~ N(theta, I^{-1} / n), to first order in theta_hat - theta.

    `errors` maps estimates (replicates, p) to named errors (replicates,). Each must be a norm of a part of
    theta_hat - theta, or agree with one to first order. `statistic` is "mean" or "median".
    """
    values, vectors = torch.linalg.eigh(fisher_information(population))
    draws = torch.from_numpy(np.random.default_rng(1).standard_normal((ERRORS, len(values))))
    error = draws * values.clamp(min=1e-12).rsqrt() @ vectors.mT
    step = SMALL / float(error.norm(dim=1).mean())
    judged = errors(population.theta + step * error)
    reduce = torch.median if statistic == "median" else torch.mean
    return {name: float(reduce(column)) / step / n**0.5 for name, column in judged.items()}


def power_law(bounds: dict[int, float], slope: float | None = None) -> tuple[float, float]:
    """Slope a and constant c of the power c n^a that fits a bound best, by least squares in logarithms.

    `bounds` maps n to the bound. A given `slope` is kept, and only the constant is fitted.
    """
    log_n, log_bound = np.log(list(bounds)), np.log(list(bounds.values()))
    if slope is None:
        slope = float(np.polyfit(log_n, log_bound, 1)[0])
    return slope, float(np.exp(np.mean(log_bound - slope * log_n)))
