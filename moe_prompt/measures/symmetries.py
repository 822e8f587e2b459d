r"""Symmetries: changes of a model's parameters that do not change its function.

Errors of parameters are meaningful only up to symmetries. A perfect fit of a hidden layer ``W_2 act(W_{1,j} x)``, for
example, may return its units in another order, with other signs or with other scales.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_prompt.attention.activations import Activation
from moe_prompt.errors import require
from moe_prompt.measures.alignment import Symmetry, assign
from moe_prompt.measures.mixing_measure import MixingMeasure

__all__ = ["HiddenUnits", "NoSymmetry", "Symmetry"]


@dataclass(frozen=True)
class NoSymmetry(Symmetry):
    """The trivial group: different parameters give different functions. This is a prompt expert's default."""

    def order(self, measure: MixingMeasure) -> int:
        return 1

    def orbit(self, measure: MixingMeasure) -> MixingMeasure:
        return measure.map(lambda tensor: tensor[None])

    def nearest(
        self, estimated: MixingMeasure, true: MixingMeasure, masses: Tensor, shared_mass: Tensor
    ) -> MixingMeasure:
        return estimated


@dataclass(frozen=True)
class HiddenUnits(Symmetry):
    r"""Symmetries of the r hidden units of W_2 act(W_{1,j} x) (arXiv 2501.18936, section 4).

    Each atom has its own incoming weights W_{1,j} (r, D); all atoms share the outgoing weights W_2 (d, r). For every
    activation the units may be permuted, in W_2 and in all W_{1,j} alike: r! elements. Some activations have more:

    | act         | what else leaves the function unchanged           | canonical coordinates                         |
    |-------------|---------------------------------------------------|-----------------------------------------------|
    | odd         | a sign per unit, in both weights: 2^r r! elements | the parameters themselves                     |
    | homogeneous | c_k > 0 on the incoming, 1/c_k on the outgoing    | mean_G |row k of W_1|^2 = 1, the scale in W_2 |
    | linear      | any invertible r x r mixing                       | the product W_2 W_{1,j} (d, D), an atom       |

    mean_G is the mean over atoms with weights exp(b_j) / sum exp(b), so two copies of an atom count as one. A unit with
    incoming weights of exactly zero has no effect; its outgoing weights are set to zero.

    Raises InputError for even activations. They have further symmetries, a sign per unit and atom, which this class
    does not cover.
    """

    incoming: str
    outgoing: str
    activation: Activation

    def __post_init__(self) -> None:
        z = torch.tensor([0.3, 0.7, 1.9], dtype=torch.float64)
        require(
            not torch.equal(self.activation(z), self.activation(-z)),
            f"hidden units need an activation that is not even: {self.activation.name!r} is even, so that the signs of "
            "incoming weights are lost; compare functions by a function distance.",
        )

    def canonical(self, measure: MixingMeasure) -> MixingMeasure:
        if self.activation.linear:
            return self._product(measure)
        return self._unit_rows(measure) if self.activation.homogeneous else measure

    def dimension(self, measure: MixingMeasure) -> int:
        d, r = measure.shared[self.outgoing].shape[-2:]
        if self.activation.linear:
            # dimension of the pairs (W_2, W_1) minus that of the d x (L D) matrices of rank at most min(r, d, L D)
            columns = measure.num_atoms * measure.atoms[self.incoming].shape[-1]
            rank = min(r, d, columns)
            return r * (d + columns) - rank * (d + columns - rank)
        return r if self.activation.homogeneous else 0

    def order(self, measure: MixingMeasure) -> int:
        if self.activation.linear:
            return 1
        r = measure.shared[self.outgoing].shape[-1]
        return math.factorial(r) * (2**r if self.activation.odd else 1)

    def orbit(self, measure: MixingMeasure) -> MixingMeasure:
        if self.activation.linear:
            return measure.map(lambda tensor: tensor[None])
        r, like = measure.shared[self.outgoing].shape[-1], measure.log_weights
        signs = list(itertools.product((1.0, -1.0), repeat=r)) if self.activation.odd else [(1.0,) * r]
        pairs = list(itertools.product(itertools.permutations(range(r)), signs))
        unit = torch.tensor([p for p, _ in pairs], device=like.device)
        sign = torch.tensor([s for _, s in pairs], dtype=like.dtype, device=like.device)
        copies = measure.map(lambda tensor: tensor.expand(len(pairs), *tensor.shape))
        incoming = (measure.atoms[self.incoming][..., unit, :] * sign[..., None]).movedim(-3, 0)
        outgoing = (measure.shared[self.outgoing][..., unit] * sign).movedim(-2, 0)
        return self._with(copies, incoming, outgoing)

    def nearest(
        self, estimated: MixingMeasure, true: MixingMeasure, masses: Tensor, shared_mass: Tensor
    ) -> MixingMeasure:
        if self.activation.linear:
            return estimated
        w1, w2 = estimated.atoms[self.incoming], estimated.shared[self.outgoing]
        gain = torch.einsum("ni,niax,nibx->nab", masses, true.atoms[self.incoming], w1)
        gain = gain + torch.einsum("n,nda,ndb->nab", shared_mass, true.shared[self.outgoing], w2)
        # No assignment changes the squared norms, so the least distance has the largest inner product.
        unit = assign(-gain.abs() if self.activation.odd else -gain)
        sign = torch.ones_like(gain[..., 0])
        if self.activation.odd:
            sign = torch.where(gain.gather(2, unit[..., None])[..., 0] < 0, -sign, sign)
        w1 = w1.gather(2, unit[:, None, :, None].expand_as(w1)) * sign[:, None, :, None]
        return self._with(estimated, w1, w2.gather(2, unit[:, None].expand_as(w2)) * sign[:, None])

    def _with(self, measure: MixingMeasure, incoming: Tensor, outgoing: Tensor) -> MixingMeasure:
        atoms, shared = {**measure.atoms, self.incoming: incoming}, {**measure.shared, self.outgoing: outgoing}
        return MixingMeasure(measure.log_weights, atoms, shared)

    def _unit_rows(self, measure: MixingMeasure) -> MixingMeasure:
        w1, w2 = measure.atoms[self.incoming], measure.shared[self.outgoing]
        mass = measure.log_weights.softmax(-1)
        norm = torch.einsum("...j,...jrx->...r", mass, w1.square()).sqrt()
        scale = torch.where(norm > 0, norm, torch.ones_like(norm))
        return self._with(measure, w1 / scale[..., None, :, None], w2 * norm[..., None, :])

    def _product(self, measure: MixingMeasure) -> MixingMeasure:
        if self.incoming not in measure.atoms:  # `measure` already holds the product
            return measure
        atoms, shared = dict(measure.atoms), dict(measure.shared)
        atoms["product"] = torch.einsum("...dr,...jrx->...jdx", shared.pop(self.outgoing), atoms.pop(self.incoming))
        return MixingMeasure(measure.log_weights, atoms, shared)
