"""Where data come from: a truth to sample, and the replicates that it gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.models.covariates import Covariates
from moe_prompt.models.regression import RegressionModel


@dataclass(frozen=True)
class Dataset:
    """Replicates of one sample size: x (B, n, D), y (B, n, o), and weights (n,) if the mean square is weighted."""

    x: Float64[Tensor, "replicates n dim"]
    y: Float64[Tensor, "replicates n outputs"]
    weights: Float64[Tensor, "n"] | None = None

    def __post_init__(self) -> None:
        require(
            self.x.ndim == self.y.ndim == 3 and self.x.shape[:2] == self.y.shape[:2],
            f"a dataset needs x (replicates, n, dim) and y (replicates, n, outputs): got {tuple(self.x.shape)} and "
            f"{tuple(self.y.shape)}.",
        )
        for name, array in (("x", self.x), ("y", self.y)):
            bad = int((~array.isfinite()).sum())
            require(bad == 0, f"data must be finite: {bad} values of {name} are NaN or infinite; remove those rows.")
        if (w := self.weights) is not None:
            require(
                w.shape == (self.n,) and bool(((w >= 0) & w.isfinite()).all()),
                f"weights must be {self.n} finite numbers of at least 0, one per row: got shape {tuple(w.shape)}, "
                f"least {float(w.min())}.",
            )

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def n(self) -> int:
        return self.x.shape[1]


@dataclass(frozen=True, eq=False)
class Population:
    """A truth to sample from: Y = f_theta(X) + s e with e ~ N(0, I), X from the covariates."""

    model: RegressionModel
    theta: Float64[Tensor, "p"]
    covariates: Covariates
    noise: float
    family: str | None = field(default=None, repr=False)
    """The name of the truth's family in `theory.families.FAMILIES`; the data do not depend on it."""

    def sample(self, n: int, rngs: list[np.random.Generator]) -> Dataset:
        """One replicate of size n per generator."""
        require(n >= 1, f"a sample needs n >= 1: got {n}.")
        x = torch.stack([self.covariates.sample(n, rng) for rng in rngs])
        clean = self.predict(x)
        noise = np.stack([rng.standard_normal(clean.shape[1:]) for rng in rngs])
        return Dataset(x, clean + self.noise * torch.from_numpy(noise))

    def predict(self, x: Float64[Tensor, "replicates n dim"]) -> Float64[Tensor, "replicates n outputs"]:
        """f_* at the covariates of several replicates."""
        return self.model.at(self.theta.expand(len(x), -1))(self.model.prepare(x)).mT

    def noiseless(self, nodes: int) -> Dataset:
        """The truth on quadrature nodes of its covariates, with their weights: what a projection is fitted to."""
        points, weights = self.covariates.nodes(nodes)
        return Dataset(points[None], self.model.mean(self.theta, points)[None], weights)
