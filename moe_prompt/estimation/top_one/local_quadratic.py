r"""A local model of the objective of a top-1 gate around one theta, with f linearised in theta.

    1/2 h'Hh + g'h + sum_i price_i [observation i has changed its side at theta + h]

The *side* of an observation is the prompt that it is assigned to, and its *price* is what a change of side adds to the
objective. On given sides the constraints are linear in h, so that the minimising h solves a least-distance problem
(Lawson & Hanson 1974, chapter 23). Along a line the model is quadratic between changes of side, and its minimum is
found exactly, piece by piece.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from moe_prompt.estimation.top_one.sample import Sample, own_equations

DECIDED = 20.0  # s^2: an observation whose change of side costs more keeps the prompt that fits it best
MARGIN = 1e-10  # lead in score that an observation's own prompt must keep, since rounding decides on the boundary
NEAR = 300  # a step is sought with this many of the most violated constraints at a time
REACH = 15.0  # s^2: a line is searched until the quadratic has risen this far


class Local:
    """The local model around theta (L, a): the quadratic H, g, and the price of every observation's change of side.

    With `held`, every observation keeps the side that the gate chooses at theta. Without, the decided ones are kept on
    the side that fits them best.
    """

    def __init__(self, sample: Sample, theta: Tensor, held: bool, box: float) -> None:
        residual, slopes = sample.linear(theta[None])
        squares, scores = residual[0].square().sum(1), theta @ sample.rows
        chosen, best, least = scores.argmax(0), squares.argmin(0), squares.amin(0)
        self.theta, self.rows, self.box = theta, sample.rows, box
        self.variance = float(least.sum()) / max(1, sample.y.numel() - theta.numel())
        others = squares.scatter(0, best[None], torch.inf).amin(0)
        decided = torch.ones_like(chosen, dtype=torch.bool) if held else others - least > DECIDED * self.variance
        self.side, self.kept = chosen if held else torch.where(decided, best, chosen), decided
        gram, gradient = own_equations(residual, slopes, self.side[None])
        self.gram, self.gradient = torch.block_diag(*gram[0]), gradient[0].flatten()
        rival = scores.scatter(0, self.side[None], -torch.inf).argmax(0)
        own, other = (squares.gather(0, k[None])[0] for k in (self.side, rival))
        self.rival, self.price = rival, 0.5 * (other - own)

    def step(self) -> tuple[Tensor | None, float]:
        """The best step (L, a) on the required sides (None: there is none), and its length in standard errors."""
        constraints = _constraints(self.theta, self.rows[:, self.kept], self.side[self.kept], self.box)
        move = _least_distance(self.gram, self.gradient, *constraints)
        if move is None:
            return None, math.inf
        length = float(move @ self.gram @ move / (len(move) * self.variance)) ** 0.5
        return move.unflatten(0, self.theta.shape), length

    def search(self, rng: np.random.Generator, lines: int) -> Tensor:
        """The move (L, a) found by exact searches along random lines, `lines` at a time, until none gains."""
        root = torch.linalg.cholesky(self.gram).mH
        reach, u = (2 * REACH * self.variance) ** 0.5, torch.zeros_like(self.gradient)
        slope = torch.linalg.solve_triangular(root.mT, self.gradient[:, None], upper=False)[:, 0]
        ahead = self.rows.mT.new_zeros(self.rows.shape[1], *self.theta.shape)
        every = torch.arange(len(ahead))
        ahead[every, self.side] += self.rows.mT
        ahead[every, self.rival] -= self.rows.mT
        margin = (ahead * self.theta).sum((1, 2))
        pace = torch.linalg.solve_triangular(root, ahead.flatten(1), upper=True, left=False)
        near = margin <= 2 * reach * pace.norm(dim=1)
        margin, pace, price = margin[near], pace[near], self.price[near]
        for _ in range(50):
            z = torch.from_numpy(rng.standard_normal((len(u), lines)))
            z = z / z.norm(dim=0)
            rays = [_ray(margin + pace @ u, pace @ (s * z), price, (s * z).mT @ (slope + u), reach) for s in (1, -1)]
            sign, (gain, t, line) = min(zip((1, -1), rays, strict=True), key=lambda ray: ray[1][0])
            if gain >= -1e-9 * self.variance:
                break
            u = u + sign * t * z[:, line]
        move = torch.linalg.solve_triangular(root, u[:, None], upper=True)[:, 0].unflatten(0, self.theta.shape)
        return (self.theta + move).clamp(-self.box, self.box) - self.theta


def _constraints(theta: Tensor, rows: Tensor, side: Tensor, box: float) -> tuple[Tensor, Tensor]:
    """A and c such that A move >= c keeps every prompt ahead at its own observations, and parameters in the box."""
    atoms, a = theta.shape
    eye = torch.eye(theta.numel(), dtype=theta.dtype)
    matrix, least = [eye, -eye], [-box - theta.flatten(), theta.flatten() - box]
    for j in range(atoms):
        for k in set(range(atoms)) - {j}:
            x = rows[:, side == j].mT
            block = x.new_zeros(len(x), atoms, a)
            block[:, j], block[:, k] = x, -x
            matrix.append(block.flatten(1))
            least.append(MARGIN - x @ (theta[j] - theta[k]))
    return torch.cat(matrix), torch.cat(least)


def _least_distance(gram: Tensor, gradient: Tensor, matrix: Tensor, least: Tensor) -> Tensor | None:
    """argmin h'Hh / 2 + g'h subject to A h >= c; None if no h satisfies the constraints.

    With H = R'R this is the least |u| for u = R h + R^-T g.
    """
    root = torch.linalg.cholesky(gram + 1e-13 * torch.diag(gram.diagonal())).mH
    centre = torch.linalg.solve_triangular(root.mT, gradient[:, None], upper=False)[:, 0]
    slack = lambda u: matrix @ torch.linalg.solve_triangular(root, (u - centre)[:, None], upper=True)[:, 0] - least  # noqa: E731
    u, active = torch.zeros_like(centre), torch.zeros(len(matrix), dtype=torch.bool)
    for _ in range(100):
        gap = slack(u)
        if bool((gap >= -MARGIN / 2).all()):
            return torch.linalg.solve_triangular(root, (u - centre)[:, None], upper=True)[:, 0]
        active[gap.argsort()[:NEAR]] = True
        rows = torch.linalg.solve_triangular(root, matrix[active], upper=True, left=False)
        nearest = _nearest(rows.numpy(), (least[active] + rows @ centre).numpy())
        if nearest is None:
            return None
        u = torch.from_numpy(nearest)
    return None


def _nearest(rows: np.ndarray, least: np.ndarray) -> np.ndarray | None:
    """The shortest u with rows u >= least (None: there is none), by non-negative least squares on the dual."""
    length = np.linalg.norm(rows, axis=1)
    rows, least = rows / length[:, None], least / length
    scale = max(float(np.abs(least).max()), 1e-300)
    dual = np.vstack([rows.T, least / scale])
    target = np.zeros(len(dual))
    target[-1] = 1.0
    try:
        weights, _ = nnls(dual, target, maxiter=30 * dual.shape[1])
    except RuntimeError:
        return None
    rest = dual @ weights - target
    return None if -rest[-1] < 1e-10 else -scale * rest[:-1] / rest[-1]


def _ray(margin: Tensor, pace: Tensor, price: Tensor, slope: Tensor, reach: float) -> tuple[float, float, int]:
    """The least slope t + t^2 / 2 + (prices of sides changed up to t) over lines, 0 < t < reach; t and line."""
    when = torch.where(pace != 0, -margin[:, None] / pace, torch.inf).mT
    cost = torch.where(margin >= 0, price, -price)
    when, order = torch.where((when > 0) & (when < reach), when, reach).sort(1)
    paid = torch.nn.functional.pad(torch.where(when < reach, cost[order], 0.0).cumsum(1), (1, 0))
    edges = torch.nn.functional.pad(when, (1, 1))
    edges[:, -1] = reach
    low, high = edges[:, :-1], edges[:, 1:]
    inside = 1e-6 * (high - low)
    t = (-slope[:, None]).maximum(low + inside).minimum(high - inside)
    value = torch.where(high > low, slope[:, None] * t + 0.5 * t.square() + paid, torch.inf)
    line, piece = divmod(int(value.argmin()), value.shape[1])
    return float(value[line, piece]), float(t[line, piece]), line
