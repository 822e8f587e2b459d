r"""Rank of a set of columns, and what they annihilate: linear algebra on triangular factors.

Columns of L2(mu) are kept as one triangular factor R, whose inner products R^T R are theirs: singular values are then
exact down to 1e-15 of the largest, where a product J^T J would stop at 1e-8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

TOLERANCE = 1e-9
"""Of the largest singular value, below which one counts as zero: rounding leaves 1e-15, a family shows 1e-5."""


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
    def moves(self) -> Float64[Tensor, "p rank"]:
        """An orthonormal basis of the parameter changes that move f."""
        return torch.linalg.qr(self.null, mode="complete").Q[:, self.null.shape[1] :]

    @property
    def null_directions(self) -> list[Direction]:
        return [Direction(self.names, column / column.norm()) for column in self.null.mT]


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
