r"""Losses: distances of an estimated mixing measure from the true one, in parameters or in function values.

Every loss maps an estimate with leading axes *batch, and a truth with the same axes or none, to one number per
replicate. A loss of parameters is zero exactly if both measures are equal up to the family's symmetry; a loss of
functions is zero exactly if both functions agree at the quadrature nodes. A failed fit (NaN) has loss NaN, and the
other replicates are not affected.

References: arXiv 2410.02200, 2501.18936 (Voronoi losses); 2402.02952 (least squares over mixing measures).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.measures.alignment import ENUMERATED, blocks
from moe_prompt.measures.mixing_measure import (
    MixingMeasure,
    differences,
    nearest_atoms,
    require_same_parameters,
    squared_distances,
    voronoi_cells,
)
from moe_prompt.measures.symmetries import NoSymmetry, Symmetry

__all__ = [
    "ExcessRisk",
    "FunctionDistance",
    "Loss",
    "VoronoiLoss",
    "barycentre_error",
    "first_moment_error",
    "split_error",
    "voronoi_cells",
]

P = TypeVar("P")


class Loss(ABC, Generic[P]):
    """A number per replicate. P is the type that is compared: a mixing measure, or the parameters of a function."""

    @abstractmethod
    def __call__(self, estimated: P, true: P) -> Float[Tensor, "*batch"]:
        """The loss of every replicate."""


@dataclass(frozen=True)
class VoronoiLoss(Loss[MixingMeasure]):
    r"""The Voronoi loss D of arXiv 2410.02200 and 2501.18936, minimised over a symmetry group of the parameters.

    With cells V_j = {i : theta_i is nearest to theta*_j} and d_ij = theta_i - theta*_j,

        D = min_g  sum_j | sum_{i in V_j} exp(b_i) - exp(b*_j) |
                 + sum_{|V_j| = 1} sum_{i in V_j} exp(b_i) |d_ij|^singleton_power
                 + sum_{|V_j| > 1} sum_{i in V_j} exp(b_i) |d_ij|^split_power
                 + (sum_j exp(b*_j)) |w - w*|^singleton_power,

    where w are the parameters that all prompts share. They have the total true mass as weight, because every atom's
    function depends on them. An empty cell costs its true mass. An atom without mass is not counted in |V_j|, so D
    depends on the measures alone.

    The minimum over g is exact for groups of at most 5000 elements. For larger groups g is that of
    :meth:`Symmetry.align`: D is then an upper bound of the minimum, and equal to it near the truth.

    Raises InputError if two true atoms are equal: they are one atom of the measure.

    >>> atoms = lambda weights, *p: MixingMeasure(torch.tensor(weights).log(), {"p": torch.tensor(p)[:, None]})
    >>> round(float(VoronoiLoss()(atoms([0.5, 0.5, 1.0], -0.1, 0.1, 2.0), atoms([1.0, 1.0], 0.0, 2.0))), 6)
    0.01
    """

    symmetry: Symmetry = field(default_factory=NoSymmetry)
    split_power: float = 2.0
    singleton_power: float = 1.0

    @classmethod
    def of_order(cls, r: float, symmetry: Symmetry | None = None) -> VoronoiLoss:
        """The loss D_{1,r}, which has the power r in every cell."""
        return cls(symmetry or NoSymmetry(), split_power=r, singleton_power=r)

    def __call__(self, estimated: MixingMeasure, true: MixingMeasure) -> Float[Tensor, "*batch"]:
        require_same_parameters(estimated, true)
        _require_distinct(true)
        estimated, true = self.symmetry.canonical(estimated), self.symmetry.canonical(true)
        if self.symmetry.order(true) > ENUMERATED:
            return self._distance(self.symmetry.align(estimated, true), true)
        shape = estimated.batch_shape
        estimated, true = estimated.flatten_batch(), true.flatten_batch()
        each = self.symmetry.order(true) * estimated.num_atoms * true.atom_vectors().shape[1:].numel()
        # The group preserves distances, so it may move the truth instead of the estimates: often one truth serves all.
        one = self.symmetry.orbit(true) if len(true.log_weights) == 1 else None
        parts = [
            self._distance(estimated.select(block), one or self.symmetry.orbit(true.select(block))).amin(0)
            for block in blocks(each, len(estimated.log_weights))
        ]
        return torch.cat(parts).reshape(shape) if parts else estimated.log_weights.new_zeros(shape)

    def _distance(self, estimated: MixingMeasure, true: MixingMeasure) -> Tensor:
        """The sums of D for one group element; batch axes broadcast."""
        squared = squared_distances(estimated, true)
        mass, far = _cell_masses(estimated, squared), squared.sqrt()
        many = (mass > 0).sum(-2, keepdim=True) > 1
        spread = torch.where(many, far**self.split_power, far**self.singleton_power)
        shared = (estimated.shared_vector() - true.shared_vector()).square().sum(-1).sqrt()
        masses = (mass.sum(-2) - true.weights).abs().sum(-1)
        return masses + (mass * spread).sum((-1, -2)) + true.weights.sum(-1) * shared**self.singleton_power


def split_error(
    estimated: MixingMeasure, true: MixingMeasure, symmetry: Symmetry | None = None
) -> Float[Tensor, "*batch atoms"]:
    r"""Split error of each cell, t_j = sqrt( exp(-b*_j) sum_{i in V_j} exp(b_i) |d_ij|^2 ); 0 for an empty cell.

    The estimate is aligned by the symmetry first. In an over-specified cell, one with two or more fitted atoms, this is
    the quantity that falls as n^{-1/4}; :func:`barycentre_error` is the one that falls faster.
    """
    estimated, true, mass = _aligned(estimated, true, symmetry)
    return _per_mass((mass * squared_distances(estimated, true)).sum(-2), true).sqrt()


def barycentre_error(
    estimated: MixingMeasure, true: MixingMeasure, symmetry: Symmetry | None = None
) -> Float[Tensor, "*batch atoms"]:
    r"""Error of each cell's centre of mass, exp(-b*_j) | sum_{i in V_j} exp(b_i) d_ij |; 0 for an empty cell.

    Two atoms that part symmetrically around the true one have barycentre error zero. The sum is the term through which
    the cell changes the model's function at first order. The barycentre error is at most :func:`split_error` times the
    square root of (mass of the cell) / (true mass).
    """
    estimated, true, mass = _aligned(estimated, true, symmetry)
    drift = torch.einsum("...ij,...ijq->...jq", mass, differences(estimated, true))
    return _per_mass(drift.square().sum(-1).sqrt(), true)


def first_moment_error(
    estimated: MixingMeasure, true: MixingMeasure, symmetry: Symmetry | None = None
) -> Float[Tensor, "*batch"]:
    r"""Error of masses and first moments, the least over all assignments A of fitted atoms to true atoms:

        min_A sum_j { | sum_{i in A_j} exp(b_i) - exp(b*_j) | + | sum_{i in A_j} exp(b_i) d_ij | }.

    If splits are small, the best assignment is that of the Voronoi cells. If a family is not identifiable, splits can
    be long, and an atom may lie in the cell of a true atom that it does not belong to. The minimum over assignments
    then still finds the masses and centres.

    Raises InputError if there are more than 5000 assignments.
    """
    symmetry = symmetry or NoSymmetry()
    estimated, true = symmetry.align(estimated, true), symmetry.canonical(true)
    weights, apart = estimated.weights, differences(estimated, true)
    count, cells = estimated.num_atoms, true.num_atoms
    require(
        cells**count <= ENUMERATED,
        f"assigning {count} atoms to {cells} takes {cells}^{count} trials, above {ENUMERATED}: use barycentre_error.",
    )
    best: Tensor | None = None
    for labels in product(range(cells), repeat=count):
        member = torch.nn.functional.one_hot(torch.tensor(labels), cells).to(weights)
        masses = (torch.einsum("...i,ij->...j", weights, member) - true.weights).abs()
        moments = torch.einsum("...i,ij,...ijq->...jq", weights, member, apart)
        cost = (masses + moments.square().sum(-1).sqrt()).sum(-1)
        best = cost if best is None else torch.minimum(best, cost)
    assert best is not None
    return best


@dataclass(frozen=True, eq=False)
class FunctionDistance(Loss[P]):
    r"""The L2 distance of functions, sqrt( E |f_G(X) - f_*(X)|^2 ) = sqrt( sum_m w_m |f_G(x_m) - f_*(x_m)|^2 ).

    |.| is the Euclidean norm over outputs; `points` x_m (m, dim) and `weights` w_m (m,) are quadrature nodes of X.
    `function(parameters, points)` returns the values f_G(x_m), (*batch, m, outputs). The parameters may be of any type
    that it understands, such as a mixing measure or a flat vector. `true_function` does the same for the truth if it is
    of another family (a misspecified fit); None uses `function` for both.

    Raises InputError if the values of the two functions have shapes that do not fit together or to the points.

    >>> line = lambda slope, x: slope[..., None, None] * x
    >>> loss = FunctionDistance(line, torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.5]))
    >>> loss(torch.tensor([2.0, 5.0]), torch.tensor(1.0))
    tensor([1., 4.])
    """

    function: Callable[[P, Tensor], Tensor]
    points: Float[Tensor, "m dim"]
    weights: Float[Tensor, " m"]
    true_function: Callable[[P, Tensor], Tensor] | None = None

    def __call__(self, estimated: P, true: P) -> Float[Tensor, "*batch"]:
        return self.squared(estimated, true).sqrt()

    def squared(self, estimated: P, true: P) -> Float[Tensor, "*batch"]:
        """The squared distance E |f_G(X) - f_*(X)|^2."""
        fitted = self.function(estimated, self.points)
        target = (self.true_function or self.function)(true, self.points)
        require(
            fitted.shape[-2:] == target.shape[-2:] and fitted.shape[-2] == len(self.points),
            f"both functions need values (*batch, points, outputs) at the {len(self.points)} points, with as many "
            f"outputs: got shapes {tuple(fitted.shape)} and {tuple(target.shape)}.",
        )
        return (fitted - target).square().sum(-1) @ self.weights


class ExcessRisk(FunctionDistance[P]):
    r"""Excess risk E |f_G(X) - f_*(X)|^2, the square of :class:`FunctionDistance`.

    The mean squared error of predicting a new observation is larger by this amount than that of the truth.
    """

    def __call__(self, estimated: P, true: P) -> Float[Tensor, "*batch"]:
        return self.squared(estimated, true)


def _cell_masses(estimated: MixingMeasure, squared: Float[Tensor, "*batch fitted atoms"]) -> Tensor:
    """Mass of fitted atom i in the cell of true atom j, (*batch, fitted, atoms): exp(b_i) if i is in cell j, else 0."""
    labels = torch.arange(squared.shape[-1], device=squared.device)
    return torch.where(nearest_atoms(squared)[..., None] == labels, estimated.weights[..., None], 0.0)


def _aligned(
    estimated: MixingMeasure, true: MixingMeasure, symmetry: Symmetry | None
) -> tuple[MixingMeasure, MixingMeasure, Tensor]:
    """The aligned estimate, the canonical truth, and the masses of the cells."""
    symmetry = symmetry or NoSymmetry()
    estimated, true = symmetry.align(estimated, true), symmetry.canonical(true)
    return estimated, true, _cell_masses(estimated, squared_distances(estimated, true))


def _per_mass(values: Tensor, true: MixingMeasure) -> Tensor:
    """Values divided by the true masses; 0 for a true atom without mass."""
    return torch.where(true.weights > 0, values / true.weights, torch.zeros_like(values))


def _require_distinct(true: MixingMeasure) -> None:
    apart = differences(true, true).abs().amax(-1)
    pairs = torch.triu(torch.ones_like(apart, dtype=torch.bool), diagonal=1)
    require(
        not bool(((apart == 0) & pairs).any()),
        "the atoms of the true measure need to be distinct: got two equal ones; join them and add their weights.",
    )
