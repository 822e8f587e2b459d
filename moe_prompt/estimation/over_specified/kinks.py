r"""Where a fit ends at a kink: no step lowers the objective, and yet its gradient is not zero.

A relu unit bends f at the covariates on its hyperplane, so that the objective has a kink wherever the hyperplane meets
an observation, one every 1/n or so. Many of its minima are at one. What vanishes there is not the gradient but a
convex combination of those on the sides, and the distance from that in standard errors is

    offset = min { sqrt(g' H^-1 g / (p s^2)) : g in the convex hull of the gradients nearby }

(gradient sampling: Burke, Lewis and Overton, SIAM J. Optim. 15, 2005, section 2), taken at points RADIUS times the
tolerance away, in standard errors: further than the trust region's last radius, nearer than the next kink. H is the
Hessian on the fit's side, its eigenvalues taken positive. Where the offset is no minimum's, -H^-1 g for that g is a
direction of descent across the kink, and the fit goes on along it if that lowers the objective.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from moe_prompt.estimation.least_squares import TINY
from moe_prompt.estimation.over_specified.trust_region import FLAT, NIL, TrustRegion

RADIUS = 10 * NIL  # of the tolerance
JUMP = 10.0  # radii: what changes less is smooth
HALVINGS, FAIR = 24, 1e-2  # lengths tried across a kink; of the gain that the gradient promises
SURE = 1e3  # weight of the equation sum of shares = 1, of the largest gradient


def leave_kinks(state: TrustRegion) -> bool:
    """Problems stuck at a kink that is no minimum go on from a lower point; whether there are such.

    The offset of every stuck problem is left in `state.kink`: infinite where there is no kink.
    """
    left = False
    for k in (state.stuck & state.kink.isnan() & ~state.at_minimum()).nonzero()[:, 0].tolist():
        kink = Kink(state, k)
        state.kink[k] = kink.offset
        if state.tolerance < kink.offset < torch.inf:
            point = kink.lower_point()
            if point is not None:
                state.go_on(torch.tensor([k]), point[None])
                left = True
    return left


class Kink:
    """The gradients about problem k, at the fit and at p points on either side of it, and the least of their hull.

    Gradients are H^-1/2 g / sqrt(p s^2), of the parameters that are free in the box.
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
        """A point along -H^-1 g where the objective is lower by a fair part of what g promises."""
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
