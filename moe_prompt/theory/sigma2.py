r"""sigma_2: how visible it is that one atom has been split in two.

With W(x; theta) = exp(link(score)) (value - f_*(x)) / D_*(x), what a unit mass at theta adds to f_* (D_* the
denominator of f_*), a measure near the truth has, to second order,

    f_G - f_* = sum_j { c_j W_j + m_j . dW_j + 1/2 <M_j, d2W_j> } + (shared parameters),
    c_j the mass error, m_j = sum_i e^{b_i} d_ij, M_j = sum_i e^{b_i} d_ij d_ij^T.

Everything but the last term can be cancelled within the span of the Jacobian's columns, so atom j split by t,
t^2 = e^{-b_j} sum_i e^{b_i} |d_ij|^2, is seen from the distance

    min |f_G - f_*|_{L2(mu)} = e^{b_j} sigma_2 t^2 + O(t^3),
    sigma_2 = min_{|a| = 1} | Proj_perp ( 1/2 a^T d2W_j a ) |_{L2(mu)},

over splits whose two atoms keep comparable masses, d_ij = O(t). sigma_2 > 0 makes the split error n^{-1/4};
sigma_2 = 0 makes it slower, or the split invisible. "The derivatives of W are linearly independent" (arXiv 2402.02952,
2501.18936) is sufficient for sigma_2 > 0, not necessary. |.| is the plain norm of an atom's own parameters: in other
units, or another representative of a symmetry, sigma_2 is another number and its sign the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from moe_prompt.errors import require
from moe_prompt.models.covariates import Covariates
from moe_prompt.models.gating import exponential
from moe_prompt.models.regression import RegressionModel
from moe_prompt.theory.identifiability import (
    Direction,
    Nodes,
    column_basis,
    node_blocks,
    parameter_names,
    quadrature,
    triangular,
)
from moe_prompt.theory.quartic_forms import least, relaxed

ZERO = 1e-7
"""A projected second derivative below this share of the unprojected one is a zero."""


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """sigma_2 of one atom, in the units of f per squared unit of theta."""

    atom: int
    sigma_2: float
    relaxed: float  # the same over M >= 0 with trace 1, splits into any number of atoms: at most sigma_2
    unprojected: float  # root mean square of |1/2 a^T d2W a| over unit a in the axes: the scale of sigma_2
    direction: Direction  # the a of sigma_2

    @property
    def vanishes(self) -> bool:
        return self.sigma_2 <= ZERO * self.unprojected


@dataclass(frozen=True, eq=False)
class Atom:
    """Atom j of f_theta as a function of its own parameters, all others fixed."""

    model: RegressionModel
    theta: Float64[Tensor, "p"]
    index: int

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what belongs to one atom."""
        own = {n: s[1:] for n, s in self.model.shapes.items() if n != "b" and not self.model.expert.is_shared(n)}
        require(
            len(own) > 0, "splitting an atom needs parameters of its own: all parameters of this expert are shared."
        )
        return own

    @cached_property
    def places(self) -> Tensor:
        """Where the atom's parameters stand in theta."""
        blocks = [torch.arange(self.model.num_parameters)[self.model.slices[name]] for name in self.shapes]
        return torch.cat([block.unflatten(0, (self.model.num_atoms, -1))[self.index] for block in blocks])

    @property
    def vector(self) -> Float64[Tensor, "q"]:
        return self.theta[self.places]

    @property
    def names(self) -> tuple[str, ...]:
        names = parameter_names(self.model)
        return tuple(names[i] for i in self.places.tolist())

    def contribution(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """W(theta_j; x, f_*(x), log D_*(x)) for one covariate, (outputs,)."""
        model, (_, parameters) = self.model, self.model.unflatten(self.theta)
        gate = exponential(model.gate, "sigma_2")
        shared = {name: value for name, value in parameters.items() if name not in self.shapes}
        sizes = [math.prod(shape) for shape in self.shapes.values()]

        def w(own: Tensor, x: Tensor, f: Tensor, log_d: Tensor) -> Tensor:
            parts = zip(self.shapes.items(), own.split(sizes), strict=True)
            blocks = {name: part.reshape(1, *shape) for (name, shape), part in parts}
            tokens = functional_call(model.expert, {**shared, **blocks}, (x.unflatten(0, (model.num_tokens, -1)),))
            score = gate.link(tokens.key[0] @ (model.key_map.mT @ x))[0]
            return torch.exp(score - log_d) * (model.value_map @ tokens.value[0] - f)

        return w

    def second_derivatives(self, points: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n outputs pairs"]:
        """1/2 d2W / d theta_k d theta_l for k <= l."""
        f, log_d = mean_and_log_denominator(self.model, self.theta, points)
        second = vmap(jacrev(jacrev(self.contribution())), (None, 0, 0, 0))(self.vector, points, f, log_d)
        k, l = torch.triu_indices(len(self.vector), len(self.vector))  # noqa: E741
        return 0.5 * second[..., k, l]


@torch.no_grad()
def mean_and_log_denominator(model: RegressionModel, theta: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """f_* (n, outputs) and log D_* (n,)."""
    mixture, prepared = model.at(theta[None]), model.prepare(points[None])
    gate = exponential(model.gate, "the denominator of f")
    score = gate.link(mixture.prompts.evaluate(prepared.at).score)[0] + mixture.b
    log_d = torch.cat([prepared.log_frozen, score], 1).logsumexp(1)
    return mixture(prepared)[0].mT, log_d[0]


def sigma_2(
    model: RegressionModel,
    theta: Float64[Tensor, "p"],
    covariates: Covariates | Nodes,
    atom: int = 0,
    starts: int = 64,
) -> SplitIndex:
    """sigma_2 of atom `atom` of the truth f_theta, with its minimising direction and its convex relaxation.

    The expert must be twice differentiable in its parameters and the model must have free log-weights b and an
    exponential gate: why others have no such splits is told in :mod:`moe_prompt.models.gating`.
    """
    exponential(model.gate, "sigma_2")
    require(0 <= atom < model.num_atoms, f"atom must be one of 0..{model.num_atoms - 1}: got {atom}.")
    require(
        model.gating_bias,
        "splitting an atom shares its mass, so the log-weights b must be parameters: set gating_bias=True.",
    )
    split = Atom(model, theta, atom)
    form, unprojected = projected_form(split, quadrature(covariates))
    value, a, ends = least(form, starts)
    bound = relaxed(form, ends)[0]
    return SplitIndex(atom, value, min(bound, value), unprojected, Direction(split.names, a))


@torch.no_grad()
def projected_form(atom: Atom, nodes: Nodes) -> tuple[Float64[Tensor, "q q m"], float]:
    """The vectors Proj_perp(1/2 d2W / d theta_k d theta_l) in coordinates that keep L2(mu), and the unprojected scale.

    One triangular factor of [J, 1/2 d2W] holds all inner products; what follows is geometry in a few dozen dimensions.
    """
    q, p = len(atom.vector), atom.model.num_parameters
    factor = triangular(
        root * torch.cat([atom.model.jacobian(atom.theta, points), atom.second_derivatives(points)], -1)
        for points, root in node_blocks(nodes)
    )
    basis, second = column_basis(factor[:, :p]), factor[:, p:]
    for _ in range(2):  # the second pass removes what rounding left of the first
        second = second - basis @ (basis.mT @ second)
    second = torch.linalg.qr(second, mode="r").R
    k, l = torch.triu_indices(q, q)  # noqa: E741
    form = second.new_empty(q, q, len(second))
    form[k, l], form[l, k] = second.mT, second.mT
    diagonal = factor[:, p:][:, k == l]
    return form, float(diagonal.square().sum(0).mean().sqrt())
