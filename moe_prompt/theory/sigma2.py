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

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.models.gating import exponential
from moe_prompt.theory.local_geometry import LocalGeometry, symmetric
from moe_prompt.theory.quartic_forms import least, relaxed
from moe_prompt.theory.rank import Direction

ZERO = 1e-7
"""A projected second derivative below this share of the unprojected one is a zero."""


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """sigma_2 of one atom, in the units of f per squared unit of theta."""

    atom: int
    sigma_2: float
    unprojected: float  # root mean square of |1/2 a^T d2W a| over unit a in the axes: the scale of sigma_2
    direction: Direction  # the a of sigma_2
    form: Float64[Tensor, "q q m"] = field(repr=False)  # Proj_perp(1/2 d2W)
    ends: Float64[Tensor, "s q"] = field(repr=False)  # where the search for the direction ended from every start

    @property
    def vanishes(self) -> bool:
        return self.sigma_2 <= ZERO * self.unprojected

    @cached_property
    def relaxed(self) -> float:
        """The same over M >= 0 with trace 1, splits into any number of atoms: at most sigma_2."""
        return min(relaxed(self.form, self.ends)[0], self.sigma_2)


def sigma_2(geometry: LocalGeometry, atom: int = 0, starts: int = 64) -> SplitIndex:
    """sigma_2 = min_{|a| = 1} | Proj_perp(1/2 a^T d2W_j a) | of atom j = `atom` of a truth, with its minimising a.

    The expert must be twice differentiable in its parameters and the model must have free log-weights b and an
    exponential gate: why others have no such splits is told in :mod:`moe_prompt.models.gating`.
    """
    model = geometry.model
    exponential(model.gate, "sigma_2")
    require(0 <= atom < model.num_atoms, f"atom must be one of 0..{model.num_atoms - 1}: got {atom}.")
    require(
        model.gating_bias,
        "splitting an atom shares its mass, so the log-weights b must be parameters: set gating_bias=True.",
    )
    form, unprojected = projected_form(geometry, atom)
    value, a, ends = least(form, starts)
    names = tuple(geometry.names[i] for i in geometry.atoms.own[atom].tolist())
    return SplitIndex(atom, value, unprojected, Direction(names, a), form, ends)


def projected_form(geometry: LocalGeometry, atom: int) -> tuple[Float64[Tensor, "q q m"], float]:
    """The vectors Proj_perp(1/2 d2W / d theta_k d theta_l) in coordinates that keep L2(mu), and their scale before."""
    second, width = geometry.second(atom), geometry.atoms.width
    rows = torch.linalg.qr(geometry.off_tangent(second), mode="r").R
    k, l = torch.triu_indices(width, width)  # noqa: E741
    return symmetric(rows, width), float(second[:, k == l].square().sum(0).mean().sqrt())
