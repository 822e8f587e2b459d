r"""The distance of a split measure from the truth, by direct minimisation: what sigma_2 predicts without minimising.

    rho(t) = min |f_G - f_*|_{L2(mu)}  over G with L + 1 atoms, two of them, theta_1 and theta_2, in place of atom j,
    t^2 = sum_{i = 1, 2} e^{b_i} |theta_i - c|^2 / sum_i e^{b_i},  c their barycentre,

everything else free: c, the masses, the other atoms, the shared parameters. (About theta*_j instead of c the size is
the same up to O(t^2) of itself.) Two things that are no split are kept out: the halves each keep a quarter of their
mass or more, for an atom of vanishing mass may go anywhere at any t; and theta moves orthogonally to the null
directions of the Jacobian, for along those a symmetry rescales t.

rho(t) / (e^{b_j} t^2) tends to sigma_2 as t -> 0; rho(t) = 0 at a finite t: the split is invisible in data of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import least_squares
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.models.atoms import AtomLayout
from moe_prompt.models.gating import exponential
from moe_prompt.models.regression import RegressionModel
from moe_prompt.theory.local_geometry import LocalGeometry


@dataclass(frozen=True, eq=False)
class SplitDistance:
    """The nearest split of size t: its distance, the same in units of e^b t^2, and its parameters (L + 1 atoms)."""

    distance: float
    ratio: float
    model: RegressionModel
    theta: Float64[Tensor, "p"]


@dataclass(frozen=True, eq=False)
class AtomSplit:
    """Measures in which one atom is split by exactly t, as a function of a free vector.

    The vector holds the direction of the split (q), the logit of the first half's share, and how the truth moves
    before it is split: coordinates in `geometry.rank.moves` (p, rank).
    """

    geometry: LocalGeometry
    atom: int
    t: float | Tensor

    def __post_init__(self) -> None:
        assert len(self._halves)  # made here, as no model can be made while functions are differentiated

    @property
    def model(self) -> RegressionModel:
        """The family with one atom more; the second half is the last."""
        return self.geometry.atoms.bigger

    @cached_property
    def _halves(self) -> tuple[Tensor, Tensor]:
        """Where the log-weights (2,) and the parameters (2, q) of the halves stand."""
        bigger, halves = AtomLayout.of(self.model), self.geometry.atoms.halves(self.atom)
        return bigger.log_weights[halves], bigger.own[halves]

    def theta(self, free: Tensor) -> Tensor:
        """Parameters of the L + 1 atoms."""
        q, (b, own) = self.geometry.atoms.width, self._halves
        offset = self.t * free[:q] / free[:q].norm()
        share = 0.25 + 0.5 * torch.sigmoid(free[q])
        shares = torch.stack([share, 1 - share])
        odds = ((1 - share) / share).sqrt()
        moved = self.geometry.theta + self.geometry.rank.moves @ free[q + 1 :]
        doubled = self.geometry.atoms.doubled(moved, self.atom)
        change = torch.zeros_like(doubled).index_put((own,), torch.stack([offset * odds, -offset / odds]))
        return doubled + change.index_put((b,), (2 * shares).log())

    def theta_jacobian(self, free: Float64[Tensor, "m"]) -> Float64[Tensor, "p m"]:
        """d theta / d free: the halves move apart or share otherwise, and the truth moves before it is split."""
        q, (b, own) = self.geometry.atoms.width, self._halves
        size, sigmoid = free[:q].norm(), torch.sigmoid(free[q])
        unit, share = free[:q] / size, 0.25 + 0.5 * sigmoid
        odds, bend = ((1 - share) / share).sqrt(), 0.5 * sigmoid * (1 - sigmoid)
        turn = (torch.eye(q, dtype=free.dtype) - torch.outer(unit, unit)) * (self.t / size)
        widen = -bend / (2 * share.square() * odds)  # d odds
        out = free.new_zeros(self.model.num_parameters, len(free))
        out[own[0], :q], out[own[1], :q] = odds * turn, -turn / odds
        out[own[0], q], out[own[1], q] = self.t * unit * widen, self.t * unit * widen / odds.square()
        out[b, q] = torch.stack([bend / share, -bend / (1 - share)])
        return torch.cat([out[:, : q + 1], self._moves], 1)

    @cached_property
    def _moves(self) -> Float64[Tensor, "p rank"]:
        """What the moves of the truth do to the L + 1 atoms."""
        atoms, moves = self.geometry.atoms, self.geometry.rank.moves
        return (atoms.doubled(moves.mT, self.atom) - atoms.doubled(torch.zeros_like(moves.mT), self.atom)).mT

    def start(self, direction: Tensor, noise: Tensor | None = None) -> Tensor:
        """Halves of equal mass along a direction, everything else as in the truth, up to noise of order t^2."""
        rest = direction.new_zeros(1 + self.geometry.rank.rank)
        return torch.cat([direction, rest if noise is None else self.t**2 * noise])


def split_distance(
    geometry: LocalGeometry,
    atom: int,
    t: float,
    direction: Float64[Tensor, "q"] | None = None,
    starts: int = 4,
    seed: int = 0,
) -> SplitDistance:
    """rho(t) by Levenberg-Marquardt on quadrature nodes: from `direction` if given, and from `starts` random ones.

    >>> from moe_prompt.theory.families import FAMILIES
    >>> geometry = LocalGeometry.of(FAMILIES["linear gate + linear expert"].build(), size=256)
    >>> split_distance(geometry, atom=0, t=0.5).ratio < 1e-6
    True
    """
    model = geometry.model
    exponential(model.gate, "the distance of a split")
    require(t > 0, f"a split needs a size t > 0: got t = {t}.")
    require(model.gating_bias, "splitting an atom shares its mass: set gating_bias=True.")
    require(direction is not None or starts > 0, "the search needs a direction or at least one random start.")
    split, rng = AtomSplit(geometry, atom, t), np.random.default_rng(seed)
    width = geometry.atoms.width
    free = [] if direction is None else [split.start(direction)]
    for _ in range(starts):
        draw = torch.from_numpy(rng.standard_normal(width + 1 + geometry.rank.rank))
        free.append(split.start(*draw.tensor_split([width])))
    ends = [_descend(split, start) for start in free]
    distance, best = min(ends, key=lambda end: end[0])
    mass = float(model.unflatten(geometry.theta)[0][atom].exp())
    return SplitDistance(distance, distance / (mass * t**2), split.model, split.theta(best))


@torch.no_grad()
def _descend(split: AtomSplit, start: Tensor) -> tuple[float, Tensor]:
    """The nearest local minimum of |f_G - f_*| and its free vector."""
    nodes = split.geometry.prepared
    root, truth = split.geometry.nodes[1].sqrt()[:, None], split.geometry.mean_and_log_denominator[0]

    def residual(free: np.ndarray) -> np.ndarray:
        return (root * (split.model.mean(split.theta(torch.from_numpy(free)), nodes) - truth)).flatten().numpy()

    def jacobian(free: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(free)
        rows = root[..., None] * split.model.jacobian(split.theta(vector), nodes)
        return (rows.flatten(0, 1) @ split.theta_jacobian(vector)).numpy()

    scale = split.t**2
    end = least_squares(
        lambda free: residual(free) / scale, start.numpy(), lambda free: jacobian(free) / scale,
        method="trf", x_scale="jac", ftol=1e-14, xtol=1e-14, gtol=None, max_nfev=300,
    )  # fmt: skip
    return float(np.linalg.norm(residual(end.x))), torch.from_numpy(end.x)
