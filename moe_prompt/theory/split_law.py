r"""What an over-specified fit tends to: the law of its split, with constants.

Near the truth f_G - f_* = J u + sum_j e^{b_j} <M_j, 1/2 d2W_j> to the order that n samples see, M_j >= 0 of as many
ranks in all as there are atoms too many. In coordinates of L2(mu) the sample's noise is z ~ N(0, s^2/n I), and least
squares minimises

    | z - J u - sum_k e^{b_{j(k)}} 1/2 d2W_{j(k)}[a_k, a_k] |^2     over u, the cells j(k) that are split, and a_k.

So a_k is n^{-1/4} sqrt(s) times a variable whose law does not depend on n or s, and with it

    split error of cell j      t_j = |sum a_k a_k'|^{1/2} in the trace norm,          n^{-1/4}
    mass and first moment      c_j = e^{b_j} u_{b_j},  m_j = e^{b_j} u_{theta_j},     n^{-1/2}
    D = sum_j |c_j| + sum_{j not split} |m_j| + sum_{j split} e^{b_j} t_j^2 + (sum_j e^{b_j}) |u_shared|
    |f_G - f_*|                the length of the fitted part of z,                    n^{-1/2}

This module draws z and solves the small problem; nothing here looks at a fit. It holds for masses bounded below: a fit
that may give an atom a vanishing mass can put it anywhere. With one atom too many it needs sigma_2 > 0, the part of
1/2 d2W orthogonal to the tangent space being at least sigma_2 |a|^2; with more, that no sum of splits cancels:
joint_sigma_2 > 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.models.regression import RegressionModel
from moe_prompt.theory.local_geometry import LocalGeometry, symmetric
from moe_prompt.theory.quartic_forms import least, nearest_squares, relaxed
from moe_prompt.theory.sigma2 import sigma_2

DRAWS, STARTS = 2000, 24  # the Monte Carlo error of a mean is a percent or less


@dataclass(frozen=True)
class SplitLaw:
    """Means under the law at s = n = 1: what multiplies s^{1/2} n^{-1/4} (split) or s n^{-1/2} (the others)."""

    sigma_2: float  # the least of the atoms
    joint_sigma_2: (
        float  # min |sum_j Proj_perp 1/2 d2W_j[M_j]| over M_j >= 0 of total trace 1, in as many ranks as there are
    )
    split: float
    function: float
    loss: float | None  # None where the family has a continuous symmetry: parameters have other coordinates
    moments: float | None  # sum_j |c_j| + |m_j|

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Parts:
    """J and every e^b 1/2 d2W in coordinates of L2(mu): a tangent part and a part orthogonal to the tangent space."""

    tangent: Tensor  # (rank, p): J
    bent: list[Tensor]  # per atom (q, q, rank): the tangent part of e^b 1/2 d2W
    forms: list[Tensor]  # per atom (q, q, m): the orthogonal part

    @classmethod
    def of(cls, geometry: LocalGeometry) -> _Parts:
        basis, width = geometry.tangent_basis, geometry.atoms.width
        weights = geometry.model.unflatten(geometry.theta)[0].exp()
        second = [w * geometry.second(j) for j, w in enumerate(weights)]
        rows = torch.linalg.qr(geometry.off_tangent(torch.cat(second, 1)), mode="r").R
        return cls(
            basis.mT @ geometry.split_factor[:, : len(geometry.theta)],
            [symmetric(basis.mT @ columns, width) for columns in second],
            [symmetric(columns, width) for columns in rows.split(second[0].shape[1], 1)],
        )


def split_law(geometry: LocalGeometry, extra: int, draws: int = DRAWS, seed: int = 0) -> SplitLaw:
    """The law for `extra` atoms more than the truth's, split ~ s^{1/2} n^{-1/4}, by Monte Carlo over the noise."""
    model, theta = geometry.model, geometry.theta
    indices = [sigma_2(geometry, j) for j in range(model.num_atoms)]
    require(
        not any(index.vanishes for index in indices),
        "the law of a split needs sigma_2 > 0 at every atom: here a split is invisible to second order; do not name "
        "this truth smooth.",
    )
    parts = _Parts.of(geometry)
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.standard_normal((draws, parts.forms[0].shape[2])))
    along = torch.from_numpy(rng.standard_normal((draws, len(parts.tangent))))
    cells, a = _solve(parts.forms, z, extra, rng)
    fitted = _sum(parts.forms, cells, a)
    sizes = _sizes(geometry, cells, a)
    u = _tangent_moves(parts, along, cells, a)
    loss = moments = None
    if model.symmetry.dimension(model.measure(theta)) == 0:
        loss, moments = _losses(model, theta, u, sizes)
    return SplitLaw(
        min(index.sigma_2 for index in indices),
        joint_sigma_2(parts.forms, model.unflatten(theta)[0].exp()),
        float(sizes.amax(1).mean()),
        float((along.square().sum(1) + fitted.square().sum(1)).sqrt().mean()),
        loss,
        moments,
    )


def joint_sigma_2(forms: list[Tensor], weights: Tensor) -> float:
    """The least length of a sum of splits of unit size, in any cells and ranks."""
    q, rows = len(forms[0]), len(forms) * len(forms[0])
    joint = forms[0].new_zeros(rows, rows, forms[0].shape[2])
    directions = []
    for j, (form, weight) in enumerate(zip(forms, weights, strict=True)):
        own = slice(j * q, (j + 1) * q)
        joint[own, own] = form / weight
        ends = least(form / weight)[2]
        directions.append(torch.nn.functional.pad(ends, (j * q, (len(forms) - 1 - j) * q)))
    return relaxed(joint, torch.cat(directions))[0]


def _solve(forms: list[Tensor], z: Tensor, extra: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The cells (draws, extra) and vectors a (draws, extra, q) nearest to every z, over all choices of cells."""
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for choice in combinations_with_replacement(range(len(forms)), extra):
        start = torch.from_numpy(rng.standard_normal((len(z), STARTS, extra, len(forms[0]))))
        a, value = nearest_squares([forms[j] for j in choice], z, start)
        cells = torch.tensor(choice).expand(len(z), extra)
        if best is None:
            best = (value, cells, a)
            continue
        better = value < best[0]
        best = (
            torch.where(better, value, best[0]),
            torch.where(better[:, None], cells, best[1]),
            torch.where(better[:, None, None], a, best[2]),
        )
    assert best is not None
    return best[1], best[2]


def _sum(forms: list[Tensor], cells: Tensor, a: Tensor) -> Tensor:
    """sum_k T_{j(k)}[a_k a_k'] (draws, m)."""
    stacked = torch.stack(forms)[cells]
    return torch.einsum("nkabm,nka,nkb->nm", stacked, a, a)


def _sizes(geometry: LocalGeometry, cells: Tensor, a: Tensor) -> Tensor:
    """t_j of every cell (draws, L), measured in the family's canonical coordinates."""
    sizes = a.new_zeros(len(a), geometry.model.num_atoms)
    for j in range(geometry.model.num_atoms):
        change = _canonical_slope(geometry, j)
        squares = (a @ change.mT).square().sum(2)
        sizes[:, j] = (squares * (cells == j)).sum(1).sqrt()
    return sizes


def _canonical_slope(geometry: LocalGeometry, j: int, h: float = 1e-6) -> Tensor:
    """d (canonical coordinates of atom j) / d (its own parameters), by differences; the identity without a gauge."""
    model, theta = geometry.model, geometry.theta
    moves = h * torch.eye(len(theta), dtype=theta.dtype)[geometry.atoms.own[j]]
    ends = [model.symmetry.canonical(model.measure(theta + sign * moves)).atom_vectors()[:, j] for sign in (1, -1)]
    return ((ends[0] - ends[1]) / (2 * h)).mT


def _tangent_moves(parts: _Parts, along: Tensor, cells: Tensor, a: Tensor) -> Tensor:
    """u (draws, p): what the other parameters do, given the noise along the tangent space and the splits."""
    target = along - _sum(parts.bent, cells, a)
    return target @ torch.linalg.pinv(parts.tangent).mT


def _losses(model: RegressionModel, theta: Tensor, u: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Means of D and of the drift of masses and first moments."""
    weights = model.unflatten(theta)[0].exp()
    b, blocks = model.unflatten(u)
    own = torch.cat([v.flatten(2) for n, v in blocks.items() if not model.expert.is_shared(n)], 2)
    shared = [v.flatten(1) for n, v in blocks.items() if model.expert.is_shared(n)]
    drift = own.norm(dim=2)
    split = sizes > 0
    loss = (weights * b).abs().sum(1) + (weights * torch.where(split, sizes.square(), drift)).sum(1)
    if shared:
        loss = loss + weights.sum() * torch.cat(shared, 1).norm(dim=1)
    return float(loss.mean()), float((weights * (b.abs() + drift)).sum(1).mean())
