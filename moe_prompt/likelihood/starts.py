"""Starting points of likelihood fits: random ones, or ones beside the truth as in published simulations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.likelihood.models import GatedMixture, GaussianMoE
from moe_prompt.likelihood.population import MixturePopulation


class MixtureStarts(ABC):
    """The base of starting rules: a subclass draws the starts of one replicate."""

    @abstractmethod
    def draw(self, model: GatedMixture, population: MixturePopulation, n: int, rng: np.random.Generator) -> Tensor:
        """Starts (count, p) for a fit of `model` to n observations from `population`."""

    def starts(
        self, model: GatedMixture, population: MixturePopulation, n: int, rngs: list[np.random.Generator]
    ) -> Float64[Tensor, "replicates starts p"]:
        """Starts of several replicates, (replicates, count, p); each replicate has its own generator."""
        return torch.stack([self.draw(model, population, n, rng) for rng in rngs])


@dataclass(frozen=True)
class Scattered(MixtureStarts):
    """Independent normal starts, which depend neither on the truth nor on n.

    `scales` gives the standard deviation for each block of the model. The mean is `log_sd` for log standard deviations
    and 0 for all other parameters. Raises InputError unless `scales` names exactly the model's blocks.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    log_sd: float = 0.0
    count: int = 16

    def draw(self, model: GatedMixture, population: MixturePopulation, n: int, rng: np.random.Generator) -> Tensor:
        require(
            set(self.scales) == set(model.shapes),
            f"starts need a scale for each of the blocks {', '.join(model.shapes)}: got {', '.join(self.scales)}.",
        )
        theta = torch.from_numpy(rng.standard_normal((self.count, model.num_parameters)))
        for name, where in model.slices.items():
            theta[:, where] *= self.scales[name]
        theta[:, model.slices["log_sd"]] += self.log_sd
        return theta


@dataclass(frozen=True)
class BesideTruth(MixtureStarts):
    r"""The starts of the public code of arXiv 2305.03288, which shrink towards the truth as n grows.

    Each fitted expert starts as a copy of a true one. Every true expert is copied, and the last fitted expert copies
    the last true one. Then one random number per expert and row of this table is added:

    | added to                           | number                      |
    |------------------------------------|-----------------------------|
    | intercept and slope of its gate    | N(0, (0.005 n^-0.083)^2)    |
    | intercept and slope of its mean    | N(0, (0.05 n^-0.083)^2)     |
    | its variance                       | abs(N(0, (0.005 n^-0.25)^2)) |

    The variance to which the last number is added is, in that code, the true *standard deviation*.
    Raises InputError for other models, or for fewer fitted than true experts.
    """

    count: int = 1

    def draw(self, model: GatedMixture, population: MixturePopulation, n: int, rng: np.random.Generator) -> Tensor:
        true, k = population.model, model.num_experts
        require(
            isinstance(true, GaussianMoE) and isinstance(model, GaussianMoE) and k >= true.num_experts,
            "starts beside the truth need Gaussian mixtures of experts, the fitted one with at least as many experts "
            f"as the true one: got {type(model).__name__} with {k} and {type(true).__name__} with {true.num_experts}.",
        )
        return torch.stack([self._one(model, population, n, rng) for _ in range(self.count)])

    def _one(self, model: GatedMixture, population: MixturePopulation, n: int, rng: np.random.Generator) -> Tensor:
        truth, k = population.model.unflatten(population.theta), model.num_experts
        gate = torch.cat([truth["gate"], torch.zeros_like(truth["mean"][:1])])
        copied = _cover(population.model.num_experts, k, rng)
        shift, slow = 0.005 * n**-0.083, 0.05 * n**-0.083
        gate = gate[copied] + shift * torch.from_numpy(rng.standard_normal((k, 1)))
        mean = truth["mean"][copied] + slow * torch.from_numpy(rng.standard_normal((k, 1)))
        variance = truth["log_sd"][copied].exp() + 0.005 * n**-0.25 * torch.from_numpy(rng.standard_normal(k)).abs()
        return model.flatten({"gate": gate[:-1], "mean": mean, "log_sd": 0.5 * variance.log()})


def _cover(true: int, fitted: int, rng: np.random.Generator) -> list[int]:
    """The true expert that each fitted one copies: every true expert occurs, and the last comes last."""
    while True:
        copied = [*rng.integers(true, size=fitted - 1).tolist(), true - 1]
        if len(set(copied)) == true:
            return copied
