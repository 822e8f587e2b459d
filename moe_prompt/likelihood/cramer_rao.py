r"""The Cramer-Rao bound of a latent mixture: what the error of an efficient estimator is, at the truth that n has.

    n Cov(theta_hat) -> I(theta)^{-1},    I = E[- d2 log p(Y | X)],

the expectation by a large sample of the truth's own. Where the truth moves with n, so does I, and the bound need not
fall as n^{-1/2}: its exponent over a range of n is computed, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.likelihood.louis_information import Observations
from moe_prompt.likelihood.population import MixturePopulation

DRAWS = 200_000
ERRORS = 4000  # from which the mean of a norm is taken: one percent
SMALL = 1e-6  # size of the errors at which a judged number is linear to rounding


def fisher_information(population: MixturePopulation, draws: int = DRAWS, seed: int = 0) -> Float64[Tensor, "p p"]:
    """I(theta) of one observation, by `draws` of them."""
    data = population.sample(draws, [np.random.default_rng(seed)])
    sample = Observations(population.model, data.x, data.y)
    return sample.sums(population.theta[None], torch.zeros(1, dtype=torch.int64)).observed[0] / draws


def bound_at(
    population: MixturePopulation, n: int, errors: Callable[[Tensor], dict[str, Tensor]], statistic: str = "mean"
) -> dict[str, float]:
    """Mean or median of judged numbers under theta_hat ~ N(theta, I^{-1} / n), each to first order in the error.

    `errors` maps estimates (replicates, p) to named numbers (replicates,) that are norms of parts of the error.
    """
    values, vectors = torch.linalg.eigh(fisher_information(population))
    draws = torch.from_numpy(np.random.default_rng(1).standard_normal((ERRORS, len(values))))
    error = draws * values.clamp(min=1e-12).rsqrt() @ vectors.mT
    step = SMALL / float(error.norm(dim=1).mean())
    judged = errors(population.theta + step * error)
    reduce = torch.median if statistic == "median" else torch.mean
    return {name: float(reduce(column)) / step / n**0.5 for name, column in judged.items()}


def power_law(bounds: dict[int, float], slope: float | None = None) -> tuple[float, float]:
    """Exponent and constant of the power of n that runs through a bound; the constant alone if a slope is given."""
    log_n, log_bound = np.log(list(bounds)), np.log(list(bounds.values()))
    if slope is None:
        slope = float(np.polyfit(log_n, log_bound, 1)[0])
    return slope, float(np.exp(np.mean(log_bound - slope * log_n)))
