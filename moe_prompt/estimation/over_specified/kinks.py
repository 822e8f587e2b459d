r"""Minima at kinks, where no step lowers the objective although its gradient is not zero.

A relu unit bends f at covariates on its hyperplane. The objective therefore has a kink wherever the hyperplane meets an
observation. Kinks lie about 1/n apart, and many of its minima are at kinks. At such a minimum a convex
combination of the gradients on its sides is zero. The offset of a fit from a minimum, in standard errors, is

    offset = min { sqrt(g' H^-1 g / (p s^2)) : g in the convex hull of the gradients nearby }

(gradient sampling: Burke, Lewis and Overton, SIAM J. Optim. 15, 2005, section 2). The nearby points are RADIUS times
the tolerance away, in standard errors: further than the trust region's last radius, nearer than the next kink. H is the
Hessian on the fit's side, with eigenvalues replaced by their absolute values. If the offset is above the tolerance,
-H^-1 g for the minimising g is a direction of descent across the kink, and the fit continues along it if the objective
falls.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from moe_prompt.estimation.least_squares import TINY
from moe_prompt.estimation.over_specified.trust_region import FLAT, NIL, Status, TrustRegion

RADIUS = 10 * NIL  # gradients are sampled at this distance, as a share of the tolerance
JUMP = 10.0  # a gradient that changes by less than this many radii has no kink
HALVINGS = 24  # this many lengths are tried across a kink, each half of the one before
FAIR = 1e-2  # a step across a kink must gain this share of what the gradient predicts
SURE = 1e3  # weight of the equation "shares sum to 1", relative to the largest gradient


def leave_kinks(state: TrustRegion) -> bool:
    """Move problems that are stuck at a kink, but not at a minimum, to a lower point; True if there were any.

    Writes the offset of every stuck problem to `state.kink`, infinity if there is no kink.
    """
    left = False
    for k in (state.at(Status.STUCK) & state.kink.isnan() & ~state.at_minimum()).nonzero()[:, 0].tolist():
        kink = Kink(state, k)
        state.kink[k] = kink.offset
        if state.tolerance < kink.offset < torch.inf:
            point = kink.lower_point()
            if point is not None:
                state.go_on(torch.tensor([k]), point[None])
                left = True
    return left


class Kink:
    """Gradients around the fit of problem k, and the shortest vector in their convex hull.

    Gradients are taken at the fit and at p pairs of points on opposite sides of it. They are scaled as
    H^-1/2 g / sqrt(p s^2), for the parameters that are free in the box.
    """

    def __init__(self, state: TrustRegion, k: int) -> None:
        self.state, self.k, self.free = state, k, state.free()[k]
        theta, gram, p = state.theta[k], state.gram[k], state.theta.shape[1]
        self.unit, self.offset = state.unit(torch.tensor([k])), torch.inf
        if not bool(self.free.any()):
            return
        self.scale = gram.diagonal()[:p].clamp(min=TINY).rsqrt()
        directions = torch.randn(p, p, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
        near = RADIUS * state.tolerance * self.unit * self.scale * directions / directions.norm(dim=1, keepdim=True)
        points = torch.cat([theta[None], theta + near, theta - near]).clamp(-state.box, state.box)
        gradients = state.problem.gram(points, torch.full((len(points),), k))[:, :p, -1] * self.scale
        hessian = (gram[:p, :p] + state.second[k]) * self.scale[:, None] * self.scale
        values, self.vectors = torch.linalg.eigh(hessian[self.free][:, self.free])
        self.size = values.abs().clamp(min=FLAT * float(values.abs().max())).sqrt()
        rows = (gradients[:, self.free] @ self.vectors / (self.size * self.unit)).numpy()
        if np.isfinite(rows).all() and np.abs(rows - rows[0]).max() > JUMP * RADIUS * state.tolerance:
            self.least = torch.from_numpy(least_combination(rows))
            self.offset = float(self.least.norm())

    def lower_point(self) -> Tensor | None:
        """A point along -H^-1 g with a fair share of the predicted gain; None if there is none."""
        state, k = self.state, torch.tensor([self.k])
        step = torch.zeros_like(self.scale)
        step[self.free] = -(self.vectors @ (self.least * self.unit / self.size)) * self.scale[self.free]
        promised = float((self.offset * self.unit).square())
        lengths = 0.5 ** torch.arange(HALVINGS, dtype=step.dtype)
        points = (state.theta[k] + lengths[:, None] * step).clamp(-state.box, state.box)
        gain = state.objective[k] - state.problem.objective(points, k.expand(HALVINGS))
        fair = (gain > FAIR * lengths * promised).nonzero()[:, 0]
        return points[fair[0]] if len(fair) else None


def least_combination(rows: np.ndarray) -> np.ndarray:
    """The shortest vector in the convex hull of the rows (m, q), by nonnegative least squares."""
    sure = SURE * max(float(np.abs(rows).max()), TINY)
    equations = np.vstack([rows.T, np.full(len(rows), sure)])
    shares, _ = nnls(equations, np.append(np.zeros(rows.shape[1]), sure))
    return shares @ rows / shares.sum()
