r"""Latent mixtures: models in which every observation Y is drawn from one expert, which the gate chooses at random.

    p(y | x) = sum_j pi_j(x) p_j(y | x),    pi(x) = softmax of the scores s_j(x),    s_last(x) = 0

(In the regression model, by contrast, Y is a weighted sum of the experts plus noise.) The softmax depends on
differences of scores only, so the last score is set to 0; any other choice is a translation of the gate
(arXiv 2305.03288). A component is a learned Gaussian expert, N(h(m_j(x)), sd_j^2) with m_j linear in x. In
:class:`ContaminatedMoE` the last component is a frozen density. A parameter vector theta (p,) holds the linear
coefficients of the scores, those of the experts, and the logarithms of the standard deviations.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.attention.activations import Activation, activation
from moe_prompt.errors import choose, require
from moe_prompt.measures.mixing_measure import MixingMeasure
from moe_prompt.models.parameter_blocks import ParameterBlocks

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class FrozenDensity:
    """The density f_0(y | x) of a frozen expert: Laplace or Gaussian with mean h(eta_0' x) and a fixed variance.

    `kind` is "laplace" or "gaussian", `direction` is eta_0 (dim,), `mean` is h. Raises InputError for another kind, or
    a variance that is not positive.
    """

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
        """The mean h(eta_0' x) at covariates x (*batch, n, dim)."""
        return self.mean(x @ self.direction)[..., None]

    def log_density(self, x: Float64[Tensor, "*batch n dim"], y: Tensor) -> Float64[Tensor, "*batch n 1"]:
        """log f_0(y | x), for y (*batch, n, 1)."""
        error = y - self.centre(x)
        if self.kind == "gaussian":
            return -0.5 * error.square() / self.variance - 0.5 * math.log(self.variance) - HALF_LOG_2PI
        scale = math.sqrt(self.variance / 2)
        return -error.abs() / scale - math.log(2 * scale)

    def noise(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n independent draws of Y - h(eta_0' X), (n,)."""
        if self.kind == "gaussian":
            return math.sqrt(self.variance) * rng.standard_normal(n)
        return rng.laplace(scale=math.sqrt(self.variance / 2), size=n)


class GatedMixture(ParameterBlocks):
    """Learned Gaussian experts under a softmax of linear scores, followed by at most one frozen density.

    The last parameter block is `log_sd`.
    """

    dim: int
    num_experts: int
    frozen: FrozenDensity | None = None

    @property
    @abstractmethod
    def link(self) -> Activation:
        """The function h: the mean of expert j is h(m_j(x)), m_j linear."""

    @property
    @abstractmethod
    def places(self) -> tuple[tuple[str, int, int], ...]:
        """For every parameter its kind ("gate", "mean" or "log_sd"), its expert, and its column of (1, x)."""

    @property
    def num_components(self) -> int:
        """Number of components C: the learned experts, and the frozen density if there is one."""
        return self.num_experts + (self.frozen is not None)

    @property
    def num_gates(self) -> int:
        """Number of scores that are learned: those of all components but the last."""
        return self.num_components - 1

    def unflatten(self, theta: Float64[Tensor, "*batch p"]) -> dict[str, Tensor]:
        """Name -> block (*batch, *shape) of parameter vectors theta (*batch, p)."""
        return self.named_blocks(theta)

    def flatten(self, blocks: dict[str, Tensor]) -> Float64[Tensor, "*batch p"]:
        """The parameter vector (*batch, p) of named blocks: the inverse of :meth:`unflatten`."""
        batch = blocks["log_sd"].shape[:-1]
        return torch.cat([blocks[name].reshape(*batch, -1) for name in self.shapes], -1)

    def coefficients(self, theta: Float64[Tensor, "batch p"]) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of (1, x) in scores (B, J, d + 1) and in m_j (B, K, d + 1), and log sd (B, K)."""
        out = theta.new_zeros(len(theta), self.num_gates + self.num_experts, self.dim + 1)
        row = {"gate": 0, "mean": self.num_gates}
        linear = [(row[what] + j, c) for what, j, c in self.places if what != "log_sd"]
        if linear:
            rows, columns = torch.tensor(linear).T
            out[:, rows, columns] = theta[:, : len(linear)]
        return out[:, : self.num_gates], out[:, self.num_gates :], theta[:, self.slices["log_sd"]]

    def log_terms(
        self, theta: Float64[Tensor, "replicates p"], x: Float64[Tensor, "replicates n dim"], y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log pi_j(x_i) and log p_j(y_i | x_i) of all C components, (B, C, n) each."""
        require(
            x.shape[2] == self.dim and y.shape == (*x.shape[:2], 1),
            f"this model takes x with {self.dim} columns and y with 1: got shapes {tuple(x.shape)}, {tuple(y.shape)}.",
        )
        gates, means, log_sd = self.coefficients(theta)
        design = torch.cat([torch.ones_like(x[..., :1]), x], 2).mT
        scores = torch.cat([gates @ design, design.new_zeros(len(design), 1, design.shape[2])], 1)
        residual = (y.mT - self.link(means @ design)) * (-log_sd).exp()[..., None]
        log_p = -0.5 * residual.square() - log_sd[..., None] - HALF_LOG_2PI
        if self.frozen is not None:
            log_p = torch.cat([log_p, self.frozen.log_density(x, y).mT], 1)
        return scores.log_softmax(1), log_p

    def log_density(
        self, theta: Float64[Tensor, "replicates p"], x: Float64[Tensor, "replicates n dim"], y: Tensor
    ) -> Float64[Tensor, "replicates n"]:
        """log p(y_i | x_i) for y (replicates, n, 1)."""
        log_pi, log_p = self.log_terms(theta, x, y)
        return (log_pi + log_p).logsumexp(1)

    def responsibilities(
        self, theta: Float64[Tensor, "replicates p"], x: Float64[Tensor, "replicates n dim"], y: Tensor
    ) -> Float64[Tensor, "replicates n components"]:
        """Responsibilities: the probability, given x_i and y_i, that y_i was drawn from component j."""
        log_pi, log_p = self.log_terms(theta, x, y)
        return (log_pi + log_p).softmax(1).mT


@dataclass(frozen=True, eq=False)
class GaussianMoE(GatedMixture):
    r"""Softmax-gated Gaussian mixture of linear experts (arXiv 2305.03288):

        Y | X ~ sum_j softmax_j(a_j + b_j' X) N(alpha_j + beta_j' X, sd_j^2),  j = 1..k,  a_k = 0, b_k = 0.

    Blocks: `gate` (k - 1, d + 1) and `mean` (k, d + 1), each with the intercept first; `log_sd` (k,).

    >>> model = GaussianMoE(num_experts=3, dim=2)
    >>> model.num_parameters, model.shapes["gate"]
    (18, (2, 3))
    """

    num_experts: int = 2
    dim: int = 1

    def __post_init__(self) -> None:
        require(
            self.num_experts >= 1 and self.dim >= 1,
            f"a Gaussian mixture of experts needs at least one expert and one covariate: got {self.num_experts} and "
            f"{self.dim}.",
        )

    @property
    def link(self) -> Activation:
        return activation("linear")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        k, width = self.num_experts, self.dim + 1
        return {"gate": (k - 1, width), "mean": (k, width), "log_sd": (k,)}

    @property
    def places(self) -> tuple[tuple[str, int, int], ...]:
        k, width = self.num_experts, self.dim + 1
        gates = [("gate", j, c) for j in range(k - 1) for c in range(width)]
        means = [("mean", j, c) for j in range(k) for c in range(width)]
        return (*gates, *means, *(("log_sd", j, 0) for j in range(k)))

    def measure(self, theta: Float64[Tensor, "*batch p"]) -> MixingMeasure:
        """The measure sum_j exp(a_j) delta_{(b_j, alpha_j, beta_j, sd_j^2)}, where a_k = 0 and b_k = 0."""
        blocks = self.unflatten(theta)
        last = theta.new_zeros(*theta.shape[:-1], 1, self.dim + 1)
        gate, mean = torch.cat([blocks["gate"], last], -2), blocks["mean"]
        atoms = {
            "gate_slope": gate[..., 1:],
            "intercept": mean[..., 0],
            "slope": mean[..., 1:],
            "variance": (2 * blocks["log_sd"]).exp(),
        }
        return MixingMeasure(gate[..., 0], atoms)

    def relabel(self, theta: Float64[Tensor, "*batch p"], order: tuple[int, ...]) -> Float64[Tensor, "*batch p"]:
        """The same density with expert order[i] in place i; gates are translated so that the last one is 0 again."""
        require(
            sorted(order) == list(range(self.num_experts)),
            f"an order needs to name each of the {self.num_experts} experts once: got {order}.",
        )
        blocks, pick = self.unflatten(theta), list(order)
        last = theta.new_zeros(*theta.shape[:-1], 1, self.dim + 1)
        gate = torch.cat([blocks["gate"], last], -2)[..., pick, :]
        gate = (gate - gate[..., -1:, :])[..., :-1, :]
        return self.flatten({"gate": gate, "mean": blocks["mean"][..., pick, :], "log_sd": blocks["log_sd"][..., pick]})


@dataclass(frozen=True, eq=False)
class ContaminatedMoE(GatedMixture):
    r"""Softmax-contaminated mixture of experts, a frozen density and one prompt (arXiv 2505.18455):

        Y | X ~ (1 - w(X)) f_0(. | X) + w(X) N(h(eta' X), nu),    w(x) = 1 / (1 + exp(-(beta' x + tau))).

    Blocks: `gate` (d + 1,) holds tau and then beta; `eta` (d,); `log_sd` (1,) is half of log nu.
    """

    frozen: FrozenDensity
    mean: Activation = field(default_factory=lambda: activation("tanh"))
    num_experts: int = field(default=1, init=False)

    @property
    def dim(self) -> int:  # type: ignore[override]
        return len(self.frozen.direction)

    @property
    def link(self) -> Activation:
        return self.mean

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"gate": (self.dim + 1,), "eta": (self.dim,), "log_sd": (1,)}

    @property
    def places(self) -> tuple[tuple[str, int, int], ...]:
        gates = [("gate", 0, c) for c in range(self.dim + 1)]
        return (*gates, *(("mean", 0, c + 1) for c in range(self.dim)), ("log_sd", 0, 0))

    def theta(self, beta: Tensor, tau: float, eta: Tensor, nu: float) -> Float64[Tensor, "p"]:
        """The parameter vector in the symbols of arXiv 2505.18455."""
        ends = torch.tensor([tau, 0.5 * math.log(nu)], dtype=eta.dtype)
        return torch.cat([ends[:1], beta, eta, ends[1:]])

    def named(self, theta: Float64[Tensor, "*batch p"]) -> dict[str, Tensor]:
        """The parameters by the symbols of arXiv 2505.18455: beta and eta (*batch, d), tau and nu (*batch,)."""
        blocks = self.unflatten(theta)
        gate, nu = blocks["gate"], (2 * blocks["log_sd"][..., 0]).exp()
        return {"beta": gate[..., 1:], "tau": gate[..., 0], "eta": blocks["eta"], "nu": nu}
