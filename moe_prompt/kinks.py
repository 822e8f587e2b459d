r"""Where a fit ends at a kink: no step lowers the objective, and yet its gradient is not zero.

A relu unit bends f at the covariates on its hyperplane, so that the objective has a kink wherever the hyperplane meets
an observation, one every 1/n or so. Many of its minima are at one. What vanishes there is not the gradient but a
convex combination of those on the sides, and the distance from that in standard errors is

    offset = min { sqrt(g' H^-1 g / (p s^2)) : g in the convex hull of the gradients nearby }

(gradient sampling: Burke, Lewis and Overton, SIAM J. Optim. 15, 2005, section 2), taken at points RADIUS times the
tolerance away, in standard errors: further than the trust region's last radius, nearer than the next kink. H is the
Hessian on the fit's side, its eigenvalues taken positive.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import nnls
from torch import Tensor

from moe_prompt.estimators import TINY
from moe_prompt.trust_region import FLAT, NIL, TrustRegion

RADIUS = 10 * NIL  # of the tolerance
JUMP = 10.0  # radii: what changes less is smooth
SURE = 1e3  # weight of the equation sum of shares = 1, of the largest gradient


def kink_offsets(state: TrustRegion, index: Tensor) -> Float64[Tensor, " kept"]:
    """The offset of every problem in `index` (kept,) from a minimum at a kink; infinite where there is no kink."""
    return torch.tensor([_offset(state, k) for k in index.tolist()], dtype=torch.float64)


def _offset(state: TrustRegion, k: int) -> float:
    if not bool(state.free()[k].any()):
        return np.inf
    rows = _whitened(state, k)
    if not np.isfinite(rows).all() or np.abs(rows - rows[0]).max() <= JUMP * RADIUS * state.tolerance:
        return np.inf
    return float(np.linalg.norm(least_combination(rows)))


def _whitened(state: TrustRegion, k: int) -> np.ndarray:
    """H^-1/2 g / sqrt(p s^2) at the fit and at 2 p points about it, of what is free in the box."""
    theta, gram, problem, p = state.theta[k], state.gram[k], state.problem, state.theta.shape[1]
    free, unit = state.free()[k], state.unit(torch.tensor([k]))
    scale = gram.diagonal()[:p].clamp(min=TINY).rsqrt()
    directions = torch.randn(2 * p, p, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    directions /= directions.norm(dim=1, keepdim=True)
    near = RADIUS * state.tolerance * unit * scale * directions
    points = torch.cat([theta[None], theta + near]).clamp(-state.box, state.box)
    gradients = problem.gram(points, torch.full((len(points),), k))[:, :p, -1] * scale
    hessian = (gram[:p, :p] + state.second[k]) * scale[:, None] * scale
    values, vectors = torch.linalg.eigh(hessian[free][:, free])
    size = values.abs().clamp(min=FLAT * float(values.abs().max()))
    return (gradients[:, free] @ vectors / (size.sqrt() * unit)).numpy()


def least_combination(rows: np.ndarray) -> np.ndarray:
    """The shortest vector in the convex hull of the rows (m, q), by nonnegative least squares."""
    sure = SURE * max(float(np.abs(rows).max()), TINY)
    equations = np.vstack([rows.T, np.full(len(rows), sure)])
    shares, _ = nnls(equations, np.append(np.zeros(rows.shape[1]), sure))
    return shares @ rows / shares.sum()
