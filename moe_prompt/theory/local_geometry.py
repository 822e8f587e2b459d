r"""The geometry of a model about one truth, on one set of nodes: computed once, and handed to everything that needs it.

With f_theta the model, W_j(x) what a unit mass at theta_j adds to f (see :mod:`moe_prompt.theory.sigma2`) and q the
number of an atom's own parameters,

    J(x) = d f_theta(x) / d theta                         (outputs, p)
    H_j(x) = 1/2 d2 W_j(x) / d theta_j d theta_j          (outputs, q (q + 1) / 2), the pairs k <= l

and expectations under mu are sums over quadrature nodes x_m with weights w_m. Inner products in L2(mu) are kept in
triangular factors: R^T R = E[J^T J].
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.models.atoms import AtomLayout, own_columns, parameter_names
from moe_prompt.models.covariates import Covariates
from moe_prompt.models.experts.base import Covariate
from moe_prompt.models.gating import exponential
from moe_prompt.models.regression import Prepared, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.theory.rank import JacobianRank, column_basis, factor_rank, triangular

Nodes = tuple[Float64[Tensor, "n dim"], Float64[Tensor, "n"]]
BLOCK = 2048
"""Nodes that enter a triangular factor at a time."""


class LocalGeometry:
    r"""J, its rank and information, and every atom's second derivatives, at theta on quadrature nodes.

    Args:
        model, theta: the truth f_theta; theta (p,) in float64.
        covariates: a distribution, of which `size` nodes are taken, or points (n, dim) and weights (n,).

    >>> from moe_prompt.theory.families import FAMILIES
    >>> geometry = LocalGeometry.of(FAMILIES["VPT, B injective"].build())
    >>> geometry.rank.rank, geometry.information.shape
    (10, torch.Size([10, 10]))
    """

    def __init__(
        self, model: RegressionModel, theta: Float64[Tensor, "p"], covariates: Covariates | Nodes, size: int = 4096
    ) -> None:
        self.model, self.theta = model, theta
        self.nodes: Nodes = covariates.nodes(size) if isinstance(covariates, Covariates) else covariates

    @classmethod
    def of(cls, truth: Population, size: int = 4096) -> LocalGeometry:
        """The geometry about a truth, on nodes of its own covariates."""
        return cls(truth.model, truth.theta, truth.covariates, size)

    @cached_property
    def atoms(self) -> AtomLayout:
        """Where the atoms' parameters stand in theta."""
        return AtomLayout.of(self.model)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name for every entry of theta."""
        return parameter_names(self.model)

    @property
    def root(self) -> Float64[Tensor, "n 1 1"]:
        """Square roots of the weights."""
        return self.nodes[1].sqrt()[:, None, None]

    # ------------------------------------------------------------------------------------- first derivatives

    @cached_property
    def prepared(self) -> Prepared:
        """The nodes, reduced to what evaluating f and its Jacobian needs: the same for any number of atoms."""
        return self.model.prepare(self.nodes[0][None])

    @cached_property
    @torch.no_grad()
    def jacobian(self) -> Float64[Tensor, "n outputs p"]:
        """J at every node: evaluated once, whoever asks."""
        return self.model.jacobian(self.theta, self.prepared)

    @cached_property
    def factor(self) -> Float64[Tensor, "rows p"]:
        """R with R^T R = E[J^T J]."""
        return self._factor([self.jacobian])

    @cached_property
    def information(self) -> Float64[Tensor, "p p"]:
        """I(theta) = E[J^T J], summed over outputs; divided by s^2, the Fisher information of one observation."""
        return self.factor.mT @ self.factor

    @cached_property
    def rank(self) -> JacobianRank:
        """Rank and null directions of theta -> f_theta in L2(mu)."""
        return factor_rank(self.factor, self.names)

    # ------------------------------------------------------------------------------------- second derivatives

    @cached_property
    @torch.no_grad()
    def mean_and_log_denominator(self) -> tuple[Float64[Tensor, "n outputs"], Float64[Tensor, "n"]]:
        """f_* and log D_*, the denominator of its softmax, at every node."""
        gate = exponential(self.model.gate, "the denominator of f")
        mixture, prepared = self.model.at(self.theta[None]), self.prepared
        score = gate.link(mixture.prompts.evaluate(prepared.at).score)[0] + mixture.b
        log_d = torch.cat([prepared.log_frozen, score], 1).logsumexp(1)
        return mixture(prepared)[0].mT, log_d[0]

    @cached_property
    @torch.no_grad()
    def second_derivatives(self) -> list[Float64[Tensor, "n outputs pairs"]]:
        """H_j at every node, atom by atom, from the closed forms of the expert; every node is a problem of its own.

        With g = exp(link(s) - log D) and derivatives s', s'', v', v'' of an atom's score and value,
        2 H = g { (v - f) ((link'^2 + link'') s's'^T + link' s'') + link' (s'v'^T + v's'^T) + v'' }.
        """
        gate, own = exponential(self.model.gate, "sigma_2"), own_columns(self.model)
        form, at = self.model.at(self.theta.expand(len(self.nodes[0]), -1)).prompts, self._nodes_apart
        (f, log_d), done = self.mean_and_log_denominator, form.evaluate(at)
        linked, slope, bend = *gate.link(done.score), gate.bend(done.score)
        one, off = torch.ones_like(done.score), torch.zeros_like(f)[..., None]
        slope, half_g = one if slope is None else slope, 0.5 * (linked - log_d[:, None, None]).exp()
        k, l = own[torch.triu_indices(len(own), len(own))]  # noqa: E741 - pairs of the atom's own parameters
        s = form.rows(at, done, off)[0][..., 0]
        second = slope * form.curvature(at, done, one, 0 * one, off)[:, :, k, l]
        second = second + (slope.square() + (0 if bend is None else bend)) * s[..., k] * s[..., l]
        found = []
        for output in range(self.model.outputs):
            unit = off.index_fill(1, torch.tensor([output]), 1.0)
            v, above = form.rows(at, done, unit)[1][..., 0], done.value[:, :, output] - f[:, None, output, None]
            cross = slope * (s[..., k] * v[..., l] + s[..., l] * v[..., k])
            bent = form.curvature(at, done, 0 * one, one, unit)[:, :, k, l]
            found.append(half_g * (above * second + cross + bent))
        return list(torch.stack(found, 1).unbind(2))

    @property
    def _nodes_apart(self) -> Covariate:
        """Every node as a sample of size one."""
        return self.model.prepare(self.nodes[0][:, None]).at

    @cached_property
    def split_factor(self) -> Float64[Tensor, "rows columns"]:
        """The triangular factor of [J, H_1, ..., H_L]: all inner products that a split of any atom needs."""
        return self._factor([self.jacobian, *self.second_derivatives])

    @cached_property
    def tangent_basis(self) -> Float64[Tensor, "rows rank"]:
        """An orthonormal basis of the columns of J, in the coordinates of `split_factor`."""
        return column_basis(self.split_factor[:, : len(self.theta)])

    def second(self, atom: int) -> Float64[Tensor, "rows pairs"]:
        """The columns of H_j in `split_factor`."""
        pairs = self.atoms.width * (self.atoms.width + 1) // 2
        start = len(self.theta) + atom * pairs
        return self.split_factor[:, start : start + pairs]

    def off_tangent(self, columns: Float64[Tensor, "rows m"]) -> Float64[Tensor, "rows m"]:
        """What of some columns is orthogonal to J; the second pass removes what rounding left of the first."""
        for _ in range(2):
            columns = columns - self.tangent_basis @ (self.tangent_basis.mT @ columns)
        return columns

    def _factor(self, columns: list[Tensor]) -> Tensor:
        parts = [part.split(BLOCK) for part in (self.root, *columns)]
        return triangular(root * torch.cat(blocks, -1) for root, *blocks in zip(*parts, strict=True))


def symmetric(columns: Float64[Tensor, "m pairs"], width: int) -> Float64[Tensor, "q q m"]:
    """Columns of the pairs k <= l as a symmetric form."""
    k, l = torch.triu_indices(width, width)  # noqa: E741
    form = columns.new_empty(width, width, len(columns))
    form[k, l], form[l, k] = columns.mT, columns.mT
    return form
