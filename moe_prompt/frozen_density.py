"""The frozen density of a contaminated mixture: what a pre-trained expert says of Y, never learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.attention.activations import Activation, activation
from moe_prompt.errors import choose, require

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class FrozenDensity:
    """f_0(y | x): Laplace or Gaussian with mean h(eta_0' x) and the given variance, never learned."""

    kind: str
    direction: Float64[Tensor, "dim"]
    variance: float
    mean: Activation = field(default_factory=lambda: activation("tanh"))

    def __post_init__(self) -> None:
        choose("frozen density", self.kind, dict.fromkeys(("laplace", "gaussian")))
        require(
            self.variance > 0 and math.isfinite(self.variance),
            f"a density needs a variance above 0: got {self.variance}.",
        )

    def centre(self, x: Float64[Tensor, "*batch n dim"]) -> Float64[Tensor, "*batch n 1"]:
        """h(eta_0' x)."""
        return self.mean(x @ self.direction)[..., None]

    def log_density(self, x: Float64[Tensor, "*batch n dim"], y: Tensor) -> Float64[Tensor, "*batch n 1"]:
        """log f_0(y | x), for y (*batch, n, 1)."""
        error = y - self.centre(x)
        if self.kind == "gaussian":
            return -0.5 * error.square() / self.variance - 0.5 * math.log(self.variance) - HALF_LOG_2PI
        scale = math.sqrt(self.variance / 2)
        return -error.abs() / scale - math.log(2 * scale)

    def noise(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n draws of Y - h(eta_0' X)."""
        if self.kind == "gaussian":
            return math.sqrt(self.variance) * rng.standard_normal(n)
        return rng.laplace(scale=math.sqrt(self.variance / 2), size=n)
