r"""Which parameters can be learned at all, and how well at best: Jacobian rank, null directions, Cramer-Rao bound.

For the regression model Y = f_theta(X) + s e with Jacobian J(x) = d f_theta(x) / d theta (outputs, p),

    I(theta) = E[J(X)^T J(X)],        n Cov(theta_hat) -> s^2 I(theta)^{-1},

so a fit with as many atoms as the truth errs as n^{-1/2} exactly along the directions that I does not annihilate. A
family whose symmetry is continuous has null directions however it is written; more than those are a defect.

Expectations are sums over quadrature nodes, taken as one triangular factor R with R^T R = I: its singular values are
those of the Jacobian in L2(mu), down to 1e-15 of the largest, where a product J^T J would stop at 1e-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from moe_prompt.errors import require
from moe_prompt.models.covariates import Covariates
from moe_prompt.models.regression import RegressionModel

Nodes = tuple[Float64[Tensor, "n dim"], Float64[Tensor, "n"]]
TOLERANCE = 1e-9  # of the largest singular value: far above rounding (1e-15), far below what a family shows (1e-5)
_BLOCK = 2048  # nodes at a time


def quadrature(covariates: Covariates | Nodes, size: int = 4096) -> Nodes:
    """Points and weights: those of a distribution, or a pair given as such."""
    return covariates.nodes(size) if isinstance(covariates, Covariates) else covariates


def node_blocks(nodes: Nodes) -> Iterator[tuple[Tensor, Tensor]]:
    """Points (m, dim) and root weights (m, 1, 1), a few thousand at a time."""
    points, weights = nodes
    yield from zip(points.split(_BLOCK), weights.sqrt()[:, None, None].split(_BLOCK), strict=True)


def triangular(blocks: Iterable[Float64[Tensor, "_ outputs columns"]]) -> Float64[Tensor, "rows columns"]:
    """R with R^T R the sum of A^T A over all blocks A: the columns' geometry, whatever their length."""
    factor: Tensor | None = None
    for block in blocks:
        rows = block.flatten(0, 1)
        factor = torch.linalg.qr(rows if factor is None else torch.cat([factor, rows]), mode="r").R
    if factor is None:
        raise ValueError("no blocks")
    return factor


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in parameter space, with the name of every coordinate.

    >>> print(Direction(("p[0,0]", "p[0,1]"), torch.tensor([0.6, -0.8])))
    -0.80 p[0,1] +0.60 p[0,0]
    """

    names: tuple[str, ...]
    vector: Tensor

    def weights(self) -> dict[str, float]:
        """Name -> coordinate, largest first, without those below 1e-6 of the largest."""
        size = self.vector.abs()
        kept = [i for i in size.argsort(descending=True).tolist() if size[i] > 1e-6 * size.max()]
        return {self.names[i]: float(self.vector[i]) for i in kept}

    def words(self, terms: int = 4) -> str:
        """The largest few coordinates in a line."""
        weights = self.weights()
        shown = " ".join(f"{w:+.2f} {name}" for name, w in list(weights.items())[:terms]).removeprefix("+")
        return shown + (f" and {len(weights) - terms} smaller" if len(weights) > terms else "")

    def __str__(self) -> str:
        return self.words()


@dataclass(frozen=True, eq=False)
class JacobianRank:
    """Singular values of the Jacobian in L2(mu), columns scaled to norm one, largest first, and what they annihilate.

    `null` (p, p - rank) spans the parameter changes that leave f as it is, in plain coordinates; each of its columns
    is 1 at a coordinate where the others are 0, so that separate symmetries stay apart.
    """

    names: tuple[str, ...]
    singular_values: Float64[Tensor, "p"]
    null: Float64[Tensor, "p nullity"]

    @property
    def rank(self) -> int:
        return len(self.names) - self.null.shape[1]

    @property
    def condition(self) -> float:
        """Largest over smallest singular value that counts."""
        return float(self.singular_values[0] / self.singular_values[self.rank - 1])

    @property
    def gap(self) -> tuple[float, float]:
        """The smallest singular value that counts and the largest that does not, relative to the largest of all."""
        relative = torch.cat([self.singular_values / self.singular_values[0], torch.zeros(1, dtype=torch.float64)])
        return float(relative[self.rank - 1]), float(relative[self.rank])

    @property
    def null_directions(self) -> list[Direction]:
        return [Direction(self.names, column / column.norm()) for column in self.null.mT]


def information(
    model: RegressionModel, theta: Float64[Tensor, "p"], covariates: Covariates | Nodes
) -> Float64[Tensor, "p p"]:
    """I(theta) = E[J^T J], summed over outputs; divide by s^2 for the Fisher information of one observation."""
    factor = tangent(model, theta, quadrature(covariates))
    return factor.mT @ factor


@torch.no_grad()
def tangent(model: RegressionModel, theta: Float64[Tensor, "p"], nodes: Nodes) -> Float64[Tensor, "rows p"]:
    """R with R^T R = I(theta)."""
    return triangular(root * model.jacobian(theta, points) for points, root in node_blocks(nodes))


def cramer_rao(information: Float64[Tensor, "p p"], noise: float, n: int) -> Float64[Tensor, "p p"]:
    """s^2 I^+ / n: the least covariance of an estimate from n observations with noise s, on what is identified.

    Where I is singular this is the pseudo-inverse: the covariance of the estimate's components orthogonal to the null
    directions. Directions that carry less than 1e-12 of the largest information, at unit diagonal, count as null.

    >>> cramer_rao(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)), noise=2.0, n=10).diagonal().tolist()
    [0.1, 0.0]
    """
    require(noise > 0 and n >= 1, f"a Cramer-Rao bound needs noise > 0 and n >= 1: got noise = {noise}, n = {n}.")
    diagonal = information.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * information * scale)
    null = scale[:, None] * vectors[:, values < 1e-12 * values[-1]]
    kept = torch.linalg.qr(null, mode="complete").Q[:, null.shape[1] :]
    return noise**2 / n * kept @ torch.linalg.inv(kept.mT @ information @ kept) @ kept.mT


def jacobian_rank(
    model: RegressionModel, theta: Float64[Tensor, "p"], covariates: Covariates | Nodes, tolerance: float = TOLERANCE
) -> JacobianRank:
    """Rank and null directions of theta -> f_theta in L2(mu), at theta."""
    return factor_rank(tangent(model, theta, quadrature(covariates)), parameter_names(model), tolerance)


def factor_rank(
    factor: Float64[Tensor, "rows p"], names: tuple[str, ...], tolerance: float = TOLERANCE
) -> JacobianRank:
    """Rank of columns that are given by their triangular factor."""
    unit, scale = _unit_columns(factor)
    _, values, rows = torch.linalg.svd(unit, full_matrices=True)
    values = torch.cat([values, values.new_zeros(len(names) - len(values))])
    null = rows[int((values > tolerance * values[0]).sum()) :].mT / scale[:, None]
    return JacobianRank(names, values, _separate(null))


def column_basis(factor: Float64[Tensor, "rows p"], tolerance: float = TOLERANCE) -> Float64[Tensor, "rows rank"]:
    """An orthonormal basis of the span of the columns."""
    left, values, _ = torch.linalg.svd(_unit_columns(factor)[0], full_matrices=False)
    return left[:, values > tolerance * values[0]]


@torch.no_grad()
def token_rank(model: RegressionModel, theta: Float64[Tensor, "p"], covariates: Covariates | Nodes) -> JacobianRank:
    """Rank and null directions of theta -> (b, keys and values of all prompts as functions of x), at theta.

    What it annihilates changes no prompt: the continuous symmetries of the way the family is written.
    """
    points, _ = quadrature(covariates, 256)
    some = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[: max(256, model.num_parameters)]
    jacobian = vmap(jacrev(lambda t, x: token_vector(model, t, x)), (None, 0))(theta, points[some])
    return factor_rank(triangular([jacobian]), parameter_names(model))


def token_vector(model: RegressionModel, theta: Float64[Tensor, "p"], x: Float64[Tensor, "dim"]) -> Tensor:
    """(b, key_1, ..., key_L, value_1, ..., value_L) at one covariate, as one vector."""
    b, parameters = model.unflatten(theta)
    tokens = functional_call(model.expert, parameters, (x.unflatten(0, (model.num_tokens, -1)),))
    return torch.cat([b if model.gating_bias else b[:0], tokens.key.flatten(), tokens.value.flatten()])


def parameter_names(model: RegressionModel) -> tuple[str, ...]:
    """One name for every entry of a parameter vector: "b[0]", "w1[0,1,2]"."""
    return tuple(
        f"{name}[{','.join(map(str, index))}]"
        for name, shape in model.shapes.items()
        for index in product(*map(range, shape))
    )


def _unit_columns(factor: Tensor) -> tuple[Tensor, Tensor]:
    norm = factor.norm(dim=0)
    scale = torch.where(norm > 0, norm, 1.0)
    return factor / scale, scale


def _separate(null: Tensor) -> Tensor:
    """The same span with the identity on some rows, chosen one by one where the rest is largest."""
    null = null.clone()
    for k in range(null.shape[1]):
        size = null[:, k:].norm(dim=1)
        pivot = int(size.argmax())
        mirror = torch.linalg.qr(null[pivot, k:][:, None], mode="complete").Q
        null[:, k:] = null[:, k:] @ mirror
        null[:, k] /= null[pivot, k].clone()
        null[:, :k] -= null[:, k : k + 1] * null[pivot, :k].clone()
    return torch.where(null.abs() > 1e-9, null, 0.0)
