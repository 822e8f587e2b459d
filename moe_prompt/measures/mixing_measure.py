r"""Mixing measures: the prompts of a model as a discrete measure, which has no order (arXiv 2402.02952, 2501.18936).

A model with prompts j = 1..L, log-weights b_j and parameters theta_j is described by the measure

    G = sum_j exp(b_j) delta_{theta_j}

and by the parameters that all prompts share. A point theta_j is called an *atom* and exp(b_j) its *mass*. G does not
change when atoms are listed in another order, nor when an atom is replaced by two copies with the same total mass.

Each tensor may have leading batch axes, one entry per *replicate* (a repetition of one experiment on fresh data).
The *cell* of a true atom is the set of estimated atoms that lie nearest to it: a Voronoi cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_prompt.errors import require


@dataclass(frozen=True, eq=False)
class MixingMeasure:
    r"""The measure G = sum_j exp(b_j) delta_{theta_j} with L atoms, and the parameters that all atoms share.

    Shapes: `log_weights` (*batch, L); every tensor of `atoms` (*batch, L, ...); every tensor of `shared` (*batch, ...).
    Raises InputError when the leading axes differ or there is no atom.

    >>> g = MixingMeasure(torch.zeros(7, 2), {"p": torch.ones(7, 2, 3)}, {"w": torch.ones(7, 5)})
    >>> g.batch_shape, g.num_atoms, g.atom_vectors().shape, g.shared_vector().shape
    (torch.Size([7]), 2, torch.Size([7, 2, 3]), torch.Size([7, 5]))
    """

    log_weights: Float[Tensor, "*batch atoms"]
    atoms: Mapping[str, Tensor]
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.log_weights.shape)
        require(
            shape != () and shape[-1] > 0 and len(self.atoms) > 0,
            f"a mixing measure needs at least one atom with a parameter: got log-weights of shape {shape} and "
            f"parameters {sorted(self.atoms)}.",
        )
        for tensors, lead in ((self.atoms, shape), (self.shared, shape[:-1])):
            for name, tensor in tensors.items():
                require(
                    tuple(tensor.shape[: len(lead)]) == lead,
                    f"{name!r} needs leading axes {lead}, as the log-weights have: got shape {tuple(tensor.shape)}.",
                )

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the leading axes, one entry per replicate."""
        return self.log_weights.shape[:-1]

    @property
    def num_atoms(self) -> int:
        """Number of atoms L."""
        return self.log_weights.shape[-1]

    @property
    def weights(self) -> Float[Tensor, "*batch atoms"]:
        """Masses exp(b_j). A log-weight of minus infinity gives an atom without mass, which counts as absent."""
        return self.log_weights.exp()

    def atom_vectors(self) -> Float[Tensor, "*batch atoms q"]:
        """The vectors theta_j: each atom's parameters, flattened and joined in alphabetical order of their names."""
        flat = [_vectors(self.atoms[name], self.log_weights.shape) for name in sorted(self.atoms)]
        return torch.cat(flat, dim=-1)

    def shared_vector(self) -> Float[Tensor, "*batch s"]:
        """The shared parameters flattened and joined in the alphabetical order of their names."""
        flat = [_vectors(self.shared[name], self.batch_shape) for name in sorted(self.shared)]
        return torch.cat(flat, dim=-1) if flat else self.log_weights.new_zeros(*self.batch_shape, 0)

    def map(self, function: Callable[[Tensor], Tensor]) -> MixingMeasure:
        """The measure with `function` applied to every tensor; `function` may change batch axes only."""
        atoms = {name: function(tensor) for name, tensor in self.atoms.items()}
        shared = {name: function(tensor) for name, tensor in self.shared.items()}
        return MixingMeasure(function(self.log_weights), atoms, shared)

    def select(self, index: Any) -> MixingMeasure:
        """The replicates at `index`: an integer, a slice, a mask or an integer tensor over the batch axes."""
        return self.map(lambda tensor: tensor[index])

    def expand(self, batch_shape: tuple[int, ...]) -> MixingMeasure:
        """The same measure repeated over `batch_shape`; the repetitions share memory."""
        axes = len(self.batch_shape)
        return self.map(lambda tensor: tensor.expand(*batch_shape, *tensor.shape[axes:]))

    def flatten_batch(self) -> MixingMeasure:
        """The measure with one batch axis in place of all; a measure without batch axes becomes a batch of one."""
        axes, count = len(self.batch_shape), self.batch_shape.numel()
        return self.map(lambda tensor: tensor.reshape(count, *tensor.shape[axes:]))

    def take_atoms(self, index: Int[Tensor, "*batch taken"]) -> MixingMeasure:
        """The measure whose atom i is atom index[i] of this measure, in every replicate."""
        lead = len(self.log_weights.shape)

        def take(tensor: Tensor) -> Tensor:
            where = index.reshape(*index.shape, *[1] * (tensor.ndim - lead))
            return tensor.gather(lead - 1, where.expand(*index.shape, *tensor.shape[lead:]))

        return MixingMeasure(take(self.log_weights), {k: take(v) for k, v in self.atoms.items()}, self.shared)


def require_same_parameters(estimated: MixingMeasure, true: MixingMeasure) -> None:
    """Raise InputError unless both measures have parameters of the same names and shapes, and batch axes that fit."""
    for kind, left, right in (("atom", estimated.atoms, true.atoms), ("shared", estimated.shared, true.shared)):
        skip = int(kind == "atom")
        got = {name: tuple(t.shape[len(estimated.batch_shape) + skip :]) for name, t in sorted(left.items())}
        want = {name: tuple(t.shape[len(true.batch_shape) + skip :]) for name, t in sorted(right.items())}
        require(
            got == want,
            f"measures are compared if their {kind} parameters agree: the estimate has {got}, the truth {want}; "
            "compare different families by a function distance.",
        )
    require(
        true.batch_shape in ((), estimated.batch_shape),
        f"the true measure needs no batch axes or those of the estimate, {tuple(estimated.batch_shape)}: "
        f"got {tuple(true.batch_shape)}.",
    )


def differences(estimated: MixingMeasure, true: MixingMeasure) -> Float[Tensor, "*batch fitted atoms q"]:
    """Differences d_ij = theta_i - theta*_j of every estimated from every true atom; batch axes broadcast."""
    return estimated.atom_vectors()[..., :, None, :] - true.atom_vectors()[..., None, :, :]


def squared_distances(estimated: MixingMeasure, true: MixingMeasure) -> Float[Tensor, "*batch fitted atoms"]:
    """Squared distances |d_ij|^2 of every estimated from every true atom.

    They are computed from differences. The expansion by inner products would lose distances below 1e-8.
    """
    return differences(estimated, true).square().sum(-1)


def voronoi_cells(estimated: MixingMeasure, true: MixingMeasure) -> Int[Tensor, "*batch fitted"]:
    """The cell of each estimated atom: argmin_j |theta_i - theta*_j|, the lowest index if several are nearest.

    >>> atoms = lambda *p: MixingMeasure(torch.zeros(len(p)), {"p": torch.tensor(p)[:, None]})
    >>> voronoi_cells(atoms(0.1, 0.5, 9.0), atoms(0.0, 1.0)).tolist()
    [0, 0, 1]
    """
    return nearest_atoms(squared_distances(estimated, true))


def nearest_atoms(squared: Float[Tensor, "*batch fitted atoms"]) -> Int[Tensor, "*batch fitted"]:
    """The cell of each estimated atom, from squared distances; a failed fit (NaN) gets cell 0."""
    nearest = squared == squared.amin(-1, keepdim=True)
    # torch.argmin promises nothing about ties; cumsum finds the first True of a mask. The modulo gives NaN cell 0.
    return (nearest.cumsum(-1) == 0).sum(-1) % squared.shape[-1]


def _vectors(tensor: Tensor, lead: torch.Size) -> Tensor:
    """The axes after `lead` joined into one; -1 in reshape would fail on an empty batch."""
    return tensor.reshape(*lead, math.prod(tensor.shape[len(lead) :]))
