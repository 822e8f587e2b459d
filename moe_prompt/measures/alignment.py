r"""Alignment: moves an estimate by the symmetries of its family until it is nearest to the truth.

A *symmetry* changes the parameters of a model and leaves its function unchanged. All symmetries of a family form a
group; `measures.symmetries` has the groups. A group has a continuous part and a finite part.
:meth:`Symmetry.canonical` removes the continuous part by a choice of coordinates. Alignment and losses take the minimum
over the finite part. Relabelling atoms is not counted as a symmetry, since a mixing measure has no order.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.measures.mixing_measure import MixingMeasure, require_same_parameters, squared_distances, voronoi_cells

ENUMERATED = 5000
"""A finite group with at most this many elements is searched exhaustively."""
_BLOCK = 300_000  # an intermediate tensor has about this many numbers, which fit in the cache
_MAX_RELABELLED = 7  # all orders of at most this many atoms are tried


class Symmetry(ABC):
    """A group of changes of a measure's parameters; a subclass defines it by the methods before `align`."""

    def canonical(self, measure: MixingMeasure) -> MixingMeasure:
        """The measure in coordinates in which the continuous part of the group is fixed.

        The coordinates depend on G alone: neither the order of atoms nor copies of an atom change them.
        """
        return measure

    def dimension(self, measure: MixingMeasure) -> int:
        """Dimension of the set of parameters that the continuous part of the group reaches from `measure`."""
        return 0

    @abstractmethod
    def order(self, measure: MixingMeasure) -> int:
        """Number of elements of the finite part."""

    @abstractmethod
    def orbit(self, measure: MixingMeasure) -> MixingMeasure:
        """A canonical measure moved by each element of the finite part, the identity first.

        The result has a new leading axis, one entry per element.
        """

    @abstractmethod
    def nearest(
        self, estimated: MixingMeasure, true: MixingMeasure, masses: Tensor, shared_mass: Tensor
    ) -> MixingMeasure:
        r"""The image g(estimated) by the group element g that minimises, in each replicate,

            sum_i m_i |g theta_i - theta*_i|^2 + m_0 |g shared - shared*|^2.

        Both measures are canonical, have one batch axis and as many atoms; atom i is compared with atom i. The weights
        are m = `masses` (n, L) and m_0 = `shared_mass` (n,).
        """

    def align(self, estimated: MixingMeasure, true: MixingMeasure, atoms: bool = False) -> MixingMeasure:
        r"""The canonical form of `estimated`, moved by the group as near as possible to the canonical form of `true`.

        Without `atoms`, estimated atom i is compared with the true atom nearest to it, with weight exp(b_i); the shared
        parameters have the total weight. The minimum is exact for groups of at most 5000 elements. For larger groups
        the algorithm alternates between cells and group elements, from two starts, until neither changes.

        With `atoms`, the atoms of the estimate are put in the order of the true ones as well. The result minimises
        |theta_hat - theta*|^2 + |exp(b_hat) - exp(b*)|^2 exactly, over the group and all orders. Its difference from
        the truth is the vector whose covariance the Cramer-Rao bound is about.

        Raises:
            InputError: measures with other parameters; with `atoms`, another number of atoms than the truth has, or
                more than 7 atoms for a group that is not trivial.
        """
        require_same_parameters(estimated, true)
        batch_shape = estimated.batch_shape
        estimated = self.canonical(estimated).flatten_batch()
        true = self.canonical(true).expand(batch_shape).flatten_batch()
        moved = self._relabel(estimated, true) if atoms else self._to_cells(estimated, true)
        return moved.map(lambda tensor: tensor.reshape(*batch_shape, *tensor.shape[1:]))

    def _relabel(self, estimated: MixingMeasure, true: MixingMeasure) -> MixingMeasure:
        """Exact minimum over orders and group: one assignment if the group is trivial, else over all permutations."""
        count, n = true.num_atoms, len(true.log_weights)
        require(
            estimated.num_atoms == count,
            f"aligning atoms one to one needs as many as the truth has, {count}: got {estimated.num_atoms}.",
        )
        if self.order(true) == 1:
            mass_error = estimated.weights[:, :, None] - true.weights[:, None, :]
            cost = squared_distances(estimated, true) + mass_error.square()
            return estimated.take_atoms(assign(cost.mT))
        require(
            count <= _MAX_RELABELLED,
            f"aligning relabels at most {_MAX_RELABELLED} atoms: got {count}; align without `atoms`.",
        )
        ones = torch.ones_like(true.log_weights)
        moved = []
        for permutation in itertools.permutations(range(count)):
            index = torch.tensor(permutation, device=ones.device).expand(n, count)
            moved.append(self.nearest(estimated.take_atoms(index), true, ones, ones[:, 0]))
        return _best(moved, [_paired_cost(m, true, ones, ones[:, 0], masses_too=True) for m in moved])

    def _to_cells(self, estimated: MixingMeasure, true: MixingMeasure) -> MixingMeasure:
        """Minimum over the group, every estimated atom compared with the true atom of its cell."""
        masses = estimated.weights
        total = masses.sum(-1)
        if self.order(true) == 1:
            return estimated
        if self.order(true) <= ENUMERATED:
            paired = true.take_atoms(self._best_cells(estimated, true))
            return self.nearest(estimated, paired, masses, total)
        zero, ends = torch.zeros_like(masses), []
        for start in (estimated, self.nearest(estimated, _first_atoms(true, estimated), zero, torch.ones_like(total))):
            ends.append(self._alternate(estimated, start, true))
        costs = [_paired_cost(end, true.take_atoms(voronoi_cells(end, true)), masses, total) for end in ends]
        return _best(ends, costs)

    def _alternate(self, estimated: MixingMeasure, moved: MixingMeasure, true: MixingMeasure) -> MixingMeasure:
        """Alternates between cells and the best group element for them until cells stay; every step lowers the cost."""
        cells = voronoi_cells(moved, true)
        for _ in range(100):
            moved = self.nearest(estimated, true.take_atoms(cells), estimated.weights, estimated.weights.sum(-1))
            previous, cells = cells, voronoi_cells(moved, true)
            if cells.equal(previous):
                break
        return moved

    def _best_cells(self, estimated: MixingMeasure, true: MixingMeasure) -> Tensor:
        """Cells around the truth's best image: the group preserves distances, so it may move the truth instead."""
        found = []
        for block in blocks(
            self.order(true) * estimated.num_atoms * true.atom_vectors().shape[1:].numel(), len(true.weights)
        ):
            part, images = estimated.select(block), self.orbit(true.select(block))
            paired = images.take_atoms(voronoi_cells(part, images))
            cost = _paired_cost(part, paired, part.weights, part.weights.sum(-1))
            best = cost.nan_to_num(nan=math.inf).argmin(0)
            found.append(voronoi_cells(part, images.select((best, torch.arange(len(best), device=best.device)))))
        return torch.cat(found)


def blocks(numbers_each: int, replicates: int) -> list[slice]:
    """Slices of the replicates so short that intermediates of `numbers_each` numbers per replicate stay in cache."""
    step = max(1, _BLOCK // max(1, numbers_each))
    return [slice(start, start + step) for start in range(0, replicates, step)]


def assign(cost: Float[Tensor, "n rows columns"]) -> Tensor:
    """The column of each row, (n, rows), with the least total cost per problem; any column where costs are NaN."""
    tables = np.nan_to_num(cost.detach().cpu().numpy(), nan=0.0, posinf=1e300, neginf=-1e300)
    columns = np.stack([linear_sum_assignment(table)[1] for table in tables]) if len(tables) else tables[:, :, 0]
    return torch.from_numpy(columns.astype(np.int64)).to(cost.device)


def _paired_cost(
    estimated: MixingMeasure, true: MixingMeasure, masses: Tensor, shared_mass: Tensor, masses_too: bool = False
) -> Tensor:
    """sum_i m_i |theta_i - theta*_i|^2 + m_0 |shared - shared*|^2 [+ |exp(b) - exp(b*)|^2]; batch axes broadcast."""
    squared = (estimated.atom_vectors() - true.atom_vectors()).square().sum(-1)
    shared = (estimated.shared_vector() - true.shared_vector()).square().sum(-1)
    cost = (masses * squared).sum(-1) + shared_mass * shared
    return cost + (estimated.weights - true.weights).square().sum(-1) if masses_too else cost


def _best(candidates: list[MixingMeasure], costs: list[Tensor]) -> MixingMeasure:
    """The candidate of least cost in every replicate; of equal ones the first."""
    best = torch.stack(costs).nan_to_num(nan=math.inf).argmin(0)
    rows = torch.arange(len(best), device=best.device)

    def pick(*tensors: Tensor) -> Tensor:
        return torch.stack(tensors)[best, rows]

    first = candidates[0]
    atoms = {name: pick(*(c.atoms[name] for c in candidates)) for name in first.atoms}
    shared = {name: pick(*(c.shared[name] for c in candidates)) for name in first.shared}
    return MixingMeasure(pick(*(c.log_weights for c in candidates)), atoms, shared)


def _first_atoms(true: MixingMeasure, estimated: MixingMeasure) -> MixingMeasure:
    """Copies of the first true atom, as many as the estimate has atoms: for costs in which atoms have no weight."""
    return true.take_atoms(torch.zeros_like(estimated.log_weights, dtype=torch.long))
