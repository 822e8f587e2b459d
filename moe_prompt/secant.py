r"""The part of the Hessian that Gauss-Newton leaves out, learned from the gradients of the steps taken.

The Hessian of 1/2 |r|^2 is J'J + sum_i r_i d2 r_i. Where residuals do not vanish, as in every misspecified fit, the
second term decides how fast a fit converges: Gauss-Newton is linear there, with this term superlinear. It is updated so
that it explains, in the direction just walked, the change of the gradient that J'J does not (Dennis, Gay & Welsch,
NL2SOL, ACM TOMS 1981), and used while it predicts the objective, or near the end the gradient, better than J'J alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SecantTerm:
    """S (K, p, p), one per problem, and whether each problem uses it."""

    def __init__(self, problems: int, parameters: int) -> None:
        self.s = torch.zeros(problems, parameters, parameters, dtype=torch.float64)
        self.used = torch.zeros(problems, dtype=torch.bool)

    def added(self, k: Tensor, hessian: Tensor) -> Tensor:
        """J'J of the problems k, plus S where it is used."""
        return hessian + self.used[k, None, None] * self.s[k]

    def learn(self, k: Tensor, step: Tensor, old: Tensor, new: Tensor, gained: Tensor, noise: Tensor) -> None:
        """Update from accepted steps (K, p) between Gram matrices `old` and `new` that lowered the objective by
        `gained`; where gains are near `noise`, rounding, the gradient says which model is better."""
        hessian, gradient = new[:, :-1, :-1], new[:, :-1, -1]
        s_step = _apply(self.s[k], step)
        without = -_dot(old[:, :-1, -1], step) - 0.5 * _dot(step, _apply(old[:, :-1, :-1], step))
        better = (without - 0.5 * _dot(step, s_step) - gained).abs() < (without - gained).abs()
        change = gradient - old[:, :-1, -1]
        left = change - _apply(old[:, :-1, :-1], step)
        unit = old.diagonal(dim1=1, dim2=2)[:, :-1].clamp(min=torch.finfo(old.dtype).tiny).rsqrt()
        closer = ((left - s_step) * unit).norm(dim=1) < (left * unit).norm(dim=1)
        self.used[k] = torch.where(gained > 100 * noise, better, closer)
        missing = change - _apply(hessian, step)  # what S has to explain
        curvature = _dot(step, s_step)
        size = torch.where(curvature != 0, (_dot(step, missing) / curvature).abs().clamp(max=1.0), 1.0)
        sized = size[:, None, None] * self.s[k]
        along = _dot(change, step)
        positive = along > 1e-12 * change.norm(dim=1) * step.norm(dim=1)
        v = change / torch.where(positive, along, 1.0)[:, None]
        w = missing - size[:, None] * s_step
        outer = w[:, :, None] * v[:, None]
        update = outer + outer.mT - _dot(w, step)[:, None, None] * v[:, :, None] * v[:, None]
        self.s[k] = sized + torch.where(positive[:, None, None], update, 0.0)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)
