"""The source of a latent mixture's data: a model, its true parameters, and a distribution of covariates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.likelihood.models import GatedMixture
from moe_prompt.models.covariates import Covariates
from moe_prompt.models.sampling import Dataset


@dataclass(frozen=True, eq=False)
class MixturePopulation:
    """A truth that can be sampled: Y | X ~ sum_j pi_j(X) p_j(. | X), with X from `covariates`.

    Raises InputError if the covariates or theta (p,) do not fit the model.
    """

    model: GatedMixture
    theta: Float64[Tensor, "p"]
    covariates: Covariates

    def __post_init__(self) -> None:
        require(
            self.covariates.dim == self.model.dim and self.theta.shape == (self.model.num_parameters,),
            f"this mixture takes {self.model.dim} covariates and {self.model.num_parameters} parameters: got "
            f"{self.covariates.dim} and {tuple(self.theta.shape)}.",
        )

    def sample(self, n: int, rngs: list[np.random.Generator]) -> Dataset:
        """A dataset with one replicate of n observations per generator."""
        require(n >= 1, f"a sample needs n >= 1: got {n}.")
        x = torch.stack([self.covariates.sample(n, rng) for rng in rngs])
        draws = [self._draws(n, rng) for rng in rngs]
        uniform, noise = (torch.from_numpy(np.stack(part)) for part in zip(*draws, strict=True))
        log_pi, centres, scales = self.components(x)
        below = log_pi.exp().cumsum(2)[..., :-1] < uniform[..., None]
        chosen = below.sum(2, keepdim=True)  # the last component takes what rounding leaves
        y = (centres + scales * noise).gather(2, chosen)
        return Dataset(x, y)

    def _draws(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Uniforms (n,) that choose components, and noise (n, components), the frozen one last."""
        uniform, k = rng.random(n), self.model.num_experts
        noise = rng.standard_normal((n, k))
        if self.model.frozen is not None:
            noise = np.concatenate([noise, self.model.frozen.noise(n, rng)[:, None]], 1)
        return uniform, noise

    def components(self, x: Float64[Tensor, "replicates n dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """log pi_j(x), centres of the components and scales of their noise, (replicates, n, components) each."""
        gates, means, log_sd = self.model.coefficients(self.theta[None])
        design = torch.cat([torch.ones_like(x[..., :1]), x], 2)
        scores = torch.cat([design @ gates.mT, torch.zeros_like(x[..., :1])], 2)
        centres, scales = self.model.link(design @ means.mT), log_sd.exp().expand(*x.shape[:2], -1)
        if (frozen := self.model.frozen) is not None:
            centres = torch.cat([centres, frozen.centre(x)], 2)
            scales = torch.cat([scales, torch.ones_like(scales[..., :1])], 2)
        return scores.log_softmax(2), centres, scales
