"""Where a fit starts. None of them shrinks towards the truth as the sample grows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.models.regression import RegressionModel


class Initializer(ABC):
    """Draws starts (count, p) for one replicate."""

    @abstractmethod
    def draw(self, model: RegressionModel, truth: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Starts for `model`; `truth` (p,) is the true parameter vector where the model contains the truth."""

    def starts(self, model: RegressionModel, truth: Tensor | None, rngs: list[np.random.Generator]) -> Tensor:
        """Starts (replicates, count, p), one generator per replicate."""
        return torch.stack([self.draw(model, truth, rng) for rng in rngs])


@dataclass(frozen=True)
class Random(Initializer):
    """theta ~ N(0, scale^2 I): the fit knows the family and nothing of the truth."""

    count: int = 16
    scale: float = 1.0

    def draw(self, model: RegressionModel, truth: Tensor | None, rng: np.random.Generator) -> Tensor:
        return self.scale * torch.from_numpy(rng.standard_normal((self.count, model.num_parameters)))


@dataclass(frozen=True)
class NearTruth(Initializer):
    """Uniform on the sphere |theta - theta_*| = radius: optimisation is made easy, the statistics are not."""

    radius: float = 1.0
    count: int = 4

    def draw(self, model: RegressionModel, truth: Tensor | None, rng: np.random.Generator) -> Tensor:
        require(
            truth is not None, "NearTruth needs a model that contains the truth: use Random for a misspecified one."
        )
        direction = torch.from_numpy(rng.standard_normal((self.count, model.num_parameters)))
        return truth + self.radius * direction / direction.norm(dim=1, keepdim=True)
