r"""Alignment: the member of an estimate's symmetry class that lies nearest to the truth.

A symmetry changes the parameters of a family and leaves every function of it as it is; the groups themselves are in
:mod:`moe_prompt.measures.symmetries`. Each has a continuous part, which :meth:`Symmetry.canonical` removes by a choice
of coordinates, and a finite part, over which alignment and losses take the minimum. Relabelling the atoms is no
symmetry here: a mixing measure does not see it.
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
"""Finite groups of up to this many elements are searched exhaustively."""
_BLOCK = 300_000  # numbers: what stays in cache
_MAX_RELABELLED = 7


class Symmetry(ABC):
    """A group that acts on the parameters of a measure; `canonical`, `order`, `orbit` and `nearest` define it."""

    def canonical(self, measure: MixingMeasure) -> MixingMeasure:
        """Coordinates without the continuous part of the group; they depend on G alone, not on its list of atoms."""
        return measure

    def dimension(self, measure: MixingMeasure) -> int:
        """Number of directions in parameter space along which the continuous part of the group moves `measure`."""
        return 0

    @abstractmethod
    def order(self, measure: MixingMeasure) -> int:
        """Number of elements of the finite part."""

    @abstractmethod
    def orbit(self, measure: MixingMeasure) -> MixingMeasure:
        """A canonical measure moved by every element of the finite part, on a new leading axis; the identity first."""

    @abstractmethod
    def nearest(
        self, estimated: MixingMeasure, true: MixingMeasure, masses: Tensor, shared_mass: Tensor
    ) -> MixingMeasure:
        r"""The g `estimated` with least sum_i m_i |g theta_i - theta*_i|^2 + m_0 |g shared - shared*|^2.

        Both measures are canonical, with one batch axis and as many atoms, atom i compared with atom i; `masses` is
        m, (n, L), and `shared_mass` is m_0, (n,).
        """

    def align(self, estimated: MixingMeasure, true: MixingMeasure, atoms: bool = False) -> MixingMeasure:
        r"""The canonical form of `estimated`, moved next to the canonical form of `true`: compare it with that.

        Without `atoms`, over the symmetry alone: atom i is compared with the nearest true atom, weighted by exp(b_i),
        and the shared parameters are weighted by the total. The minimum is exact for groups of up to ENUMERATED
        elements; for larger ones cells and group element alternate from several starts until neither changes.

        With `atoms`, over relabellings as well, for as many atoms as the truth has (at most 7 beyond NoSymmetry): the
        exact minimum of |theta_hat - theta*|^2 + |exp(b_hat) - exp(b*)|^2, atom by atom, so that differences of
        parameters are the vector whose covariance the Cramer-Rao bound concerns.
        """
        require_same_parameters(estimated, true)
        batch_shape = estimated.batch_shape
        estimated = self.canonical(estimated).flatten_batch()
        true = self.canonical(true).expand(batch_shape).flatten_batch()
        moved = self._relabel(estimated, true) if atoms else self._to_cells(estimated, true)
        return moved.map(lambda tensor: tensor.reshape(*batch_shape, *tensor.shape[1:]))

    def _relabel(self, estimated: MixingMeasure, true: MixingMeasure) -> MixingMeasure:
        """Exact minimum over atoms and group: one assignment when the group is trivial, else every permutation."""
        count, n = true.num_atoms, len(true.log_weights)
        require(
            estimated.num_atoms == count,
            f"aligning atoms one to one needs as many as the truth has, {count}: got {estimated.num_atoms}.",
        )
        if self.order(true) == 1:
            mass_error = estimated.weights[:, :, None] - true.weights[:, None, :]
            cost = squared_distances(estimated, true) + mass_error.square()
            return estimated.take_atoms(assign(cost.mT))
        require(count <= _MAX_RELABELLED, f"aligning relabels at most {_MAX_RELABELLED} atoms: got {count}.")
        ones = torch.ones_like(true.log_weights)
        moved = []
        for permutation in itertools.permutations(range(count)):
            index = torch.tensor(permutation, device=ones.device).expand(n, count)
            moved.append(self.nearest(estimated.take_atoms(index), true, ones, ones[:, 0]))
        return _best(moved, [_paired_cost(m, true, ones, ones[:, 0], masses_too=True) for m in moved])

    def _to_cells(self, estimated: MixingMeasure, true: MixingMeasure) -> MixingMeasure:
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
        """Cells, then the group element that fits them, until the cells stay: every step lowers the cost."""
        cells = voronoi_cells(moved, true)
        for _ in range(100):
            moved = self.nearest(estimated, true.take_atoms(cells), estimated.weights, estimated.weights.sum(-1))
            previous, cells = cells, voronoi_cells(moved, true)
            if cells.equal(previous):
                break
        return moved

    def _best_cells(self, estimated: MixingMeasure, true: MixingMeasure) -> Tensor:
        """Cells of the estimate about the group's best image of the truth: the group preserves distances."""
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
    """Slices of the replicates that keep an intermediate of `numbers_each` numbers per replicate within memory."""
    step = max(1, _BLOCK // max(1, numbers_each))
    return [slice(start, start + step) for start in range(0, replicates, step)]


def assign(cost: Float[Tensor, "n rows columns"]) -> Tensor:
    """Column for every row with the least total cost, in every problem; a failed fit (NaN) gets any assignment."""
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
    """In every replicate the candidate of least cost, the first of equals."""
    best = torch.stack(costs).nan_to_num(nan=math.inf).argmin(0)
    rows = torch.arange(len(best), device=best.device)

    def pick(*tensors: Tensor) -> Tensor:
        return torch.stack(tensors)[best, rows]

    first = candidates[0]
    atoms = {name: pick(*(c.atoms[name] for c in candidates)) for name in first.atoms}
    shared = {name: pick(*(c.shared[name] for c in candidates)) for name in first.shared}
    return MixingMeasure(pick(*(c.log_weights for c in candidates)), atoms, shared)


def _first_atoms(true: MixingMeasure, estimated: MixingMeasure) -> MixingMeasure:
    """The truth with as many atoms as the estimate, all copies of the first: for costs in which atoms do not count."""
    return true.take_atoms(torch.zeros_like(estimated.log_weights, dtype=torch.long))
