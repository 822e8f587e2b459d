r"""EM and Newton steps on the likelihood of a latent mixture, for many problems at once.

A problem is the fit of one replicate from one start. With the score g, the complete information C and the observed
information H, an EM step is C^-1 g and a Newton step (H + damping C)^-1 g. `likelihood.expectation_maximization` says
when which is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_prompt.likelihood.louis_information import Observations, Sums
from moe_prompt.likelihood.m_steps import FLAT, positive_solve, scoring_step

ROUNDING = torch.finfo(torch.float64).eps  # relative rounding error of one operation
SHORT = 0.1  # a refused Newton step with more damping than this is replaced by an EM step
ATTEMPTS = 6  # at most this many dampings are tried in one step


class Climb:
    """State of all problems: parameters, the sums of the last pass, damping, and which problems are done."""

    def __init__(self, sample: Observations, theta: Tensor, replicates: Tensor, bounds: tuple[Tensor, Tensor]) -> None:
        self.sample, self.replicates, (self.low, self.high) = sample, replicates, bounds
        self.theta = theta.clamp(self.low, self.high)
        self.sums = sample.sums(self.theta, replicates)
        count = len(theta)
        self.damping = self.theta.new_full((count,), 1e-2)
        self.growth, self.pace = self.theta.new_full((count,), 4.0), self.theta.new_ones(count)
        self.refused = torch.zeros(count, dtype=torch.bool)
        self.stuck = torch.zeros(count, dtype=torch.bool)
        self.steps = torch.zeros(count, dtype=torch.int64)
        self.offset = self.theta.new_full((count,), torch.inf)
        self.done = ~self.sums.finite()

    def on_bound(self) -> Tensor:
        """True for parameters on the boundary of the box, (problems, p)."""
        return (self.theta <= self.low) | (self.theta >= self.high)

    def free(self) -> Tensor:
        """True for parameters inside the box, or on its boundary if the score points inwards."""
        score = self.sums.score
        return ~(((self.theta <= self.low) & (score < 0)) | ((self.theta >= self.high) & (score > 0)))

    def look(self, tolerance: float) -> None:
        """Compute the offsets of the problems that are not done; those within the tolerance are done."""
        k = (~self.done).nonzero()[:, 0]
        sums, free = self.sums.of(k), self.free()[k]
        newton = positive_solve(sums.observed, sums.complete, FLAT, sums.score, free)
        self.offset[k] = ((sums.score * newton).sum(1).clamp(min=0) / newton.shape[1]).sqrt().nan_to_num(nan=torch.inf)
        self.done[k] |= self.offset[k] <= tolerance

    def advance(self, em_only: bool) -> None:
        """One step of every problem that is not done; a step is kept if it raises the likelihood."""
        k = (~self.done).nonzero()[:, 0]
        sums, free = self.sums.of(k), self.free()[k]
        newton = self._newton(k, sums, free)
        concave = newton.isfinite().all(1)
        use_em = ~concave | (self.refused[k] & (self.damping[k] > SHORT)) | em_only
        em = self.pace[k, None] * scoring_step(self.sample.model, sums, free)
        trial = (self.theta[k] + torch.where(use_em[:, None], em, newton)).clamp(self.low, self.high)
        step = trial - self.theta[k]
        predicted = (step * (sums.score - 0.5 * torch.einsum("kab,kb->ka", sums.observed, step))).sum(1)
        found = self.sample.sums(trial, self.replicates[k])
        gained = found.log_likelihood - sums.log_likelihood
        noise = 32 * ROUNDING * (sums.log_likelihood.abs() + self.sample.n)
        told = (predicted > 10 * noise) & ~use_em  # elsewhere gains are rounding errors, and the step is taken
        accept = found.finite() & (gained > torch.where(told, 1e-4 * predicted, -noise))
        self._damp(k, use_em, accept, torch.where(told, gained / predicted, 0.9))
        self.theta[k[accept]] = trial[accept]
        self.sums.put(k[accept], found.of(accept))

    def _newton(self, k: Tensor, sums: Sums, free: Tensor) -> Tensor:
        """(H + damping C)^-1 g, with damping increased until the matrix is positive definite, cut short at the box."""
        step = torch.full_like(sums.score, torch.nan)
        todo = torch.arange(len(k))
        for _ in range(ATTEMPTS):
            part, damping = sums.of(todo), self.damping[k[todo]]
            damped = part.observed + damping[:, None, None] * part.complete
            step[todo] = self._inside(self.theta[k[todo]], damped, part, free[todo])
            todo = todo[~step[todo].isfinite().all(1)]
            if len(todo) == 0:
                break
            self.damping[k[todo]] = (10 * self.damping[k[todo]]).clamp(min=1e-5)
        return step

    def _inside(self, theta: Tensor, damped: Tensor, sums: Sums, free: Tensor) -> Tensor:
        """The step with parameters that it would push out of the box held fixed, shortened to end in the box."""
        step = positive_solve(damped, sums.complete, 1e-14, sums.score, free)
        outward = ((theta >= self.high) & (step > 0)) | ((theta <= self.low) & (step < 0))
        if bool(outward.any()):
            step = positive_solve(damped, sums.complete, 1e-14, sums.score, free & ~outward)
        room = torch.where(step > 0, self.high - theta, theta - self.low) / step.abs()
        return step * torch.where(room > 0, room, 1.0).amin(1, keepdim=True).clamp(max=1)

    def _damp(self, k: Tensor, em: Tensor, accept: Tensor, ratio: Tensor) -> None:
        """Less damping after a good Newton step, more after a refused one; a refused EM step is halved next time."""
        damping, growth, pace = self.damping[k], self.growth[k], self.pace[k]
        eased = damping * torch.where(ratio > 0.75, 0.05, (1 - (2 * ratio - 1) ** 3).clamp(min=0.1))
        changed = torch.where(accept, eased, damping * growth)
        self.damping[k] = torch.where(em, damping, changed).clamp(1e-15, 1e9)
        self.growth[k] = torch.where(accept, 4.0, torch.where(em, growth, 2 * growth))
        self.pace[k] = torch.where(em, torch.where(accept, (2 * pace).clamp(max=1.0), 0.5 * pace), pace)
        self.refused[k] = ~accept & ~em
        self.steps[k] += 1
        self.stuck[k] = ~accept & (self.pace[k] < 1e-12)
        self.done |= self.stuck
