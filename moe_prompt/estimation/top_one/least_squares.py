r"""Least squares under a gate that chooses one prompt of several, whose objective jumps where the choice changes.

    y_i = f_{c(i)}(x_i) + e_i,    c(i) = argmax_j s_j(x_i) + b_j,    f_j the frozen experts and prompt j alone

1. Without the choice: every observation goes to the prompt that fits it best, each prompt is fitted to its own
   (Levenberg-Marquardt; the sum of the least squares falls), from every start on part of the sample.
2. To the choice: least squares over the theta that choose every decided observation's own prompt. Decided is one whose
   change of sides costs more than 20 s^2: the choice raises the objective by 1/2 s^2 chi^2_q, q being what it can know
   of theta, and giving up a decided observation pays with probability P(chi^2_3 > 20) = 2e-4 at most.
3. Across choices: to the minimum on the sides as they are, then exactly along random lines across sides, until neither
   lowers the objective.

The sum without the choice is a lower bound of the objective near it, by which candidates are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator, FitResult
from moe_prompt.estimation.least_squares import check
from moe_prompt.estimation.top_one.local_quadratic import Local
from moe_prompt.estimation.top_one.sample import Sample
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset


@dataclass(frozen=True)
class TopOneLeastSquares(Estimator):
    """Starts are searched on `search` observations; the best `keep` go on to the whole sample."""

    tolerance: float = 1e-4
    box: float = 3.0
    search: int = 1000
    search_steps: int = 60
    keep: int = 3
    max_steps: int = 50
    lines: int = 32

    def fit(self, model: RegressionModel, data: Dataset, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        check(model, data, starts)
        require(data.weights is None, "the choice of prompts is fitted to observations without weights: drop them.")
        ends = [self._one(model, x, y, some) for x, y, some in zip(data.x, data.y, starts, strict=True)]
        theta, objective = torch.stack([end.theta for end in ends]), torch.stack([end.objective for end in ends])
        return FitResult(
            model,
            theta,
            objective,
            torch.tensor([end.message == "converged" for end in ends]),
            (theta.abs() >= self.box * (1 - 1e-9)).any(1),
            torch.tensor([end.steps for end in ends]),
            torch.full_like(objective, torch.nan),  # no measure of success at a jump
            theta.new_tensor([end.offset for end in ends]),
            tuple(end.message for end in ends),
        )

    def _one(self, model: RegressionModel, x: Tensor, y: Tensor, starts: Tensor) -> _End:
        stride, rng = max(1, len(x) // self.search), np.random.default_rng(0)
        few, whole = Sample(model, x[::stride], y[::stride]), Sample(model, x, y)
        theta, cost = few.sort(starts.clamp(-self.box, self.box)[:, few.places], self.search_steps, self.box)
        theta, cost = whole.sort(theta[cost.argsort()[: self.keep]], self.max_steps, self.box)
        ends: list[_End] = []
        for k in cost.argsort().tolist():  # without the choice an objective is lower than with it
            if all(
                2 * end.objective > cost[k] * (1 + 1e-6) and abs(cost[k] - end.cost) > 1e-6 * cost[k] for end in ends
            ):
                ends.append(self._choose(whole, theta[k], rng))
                ends[-1].cost = float(cost[k])
        best = min(ends, key=lambda end: float(end.objective))
        best.theta = whole.joined(best.theta)
        return best

    def _choose(self, sample: Sample, theta: Tensor, rng: np.random.Generator) -> _End:
        """From the prompts' own fits (L, a) to the theta whose choices are theirs, then through cells to a minimum."""
        state = _End(theta, sample.objective(theta))
        for held in (False, True):
            for _ in range(self.max_steps):
                state.steps += 1
                local = Local(sample, state.theta, held, self.box)
                move, state.offset = local.step()
                if move is None:  # no theta chooses the prompts that fit best
                    break
                settled = state.offset <= self.tolerance or not state.lower(sample, move)
                if settled and not (held and state.lower(sample, local.search(rng, self.lines))):
                    state.clear(sample, move)
                    break
            else:
                return state.ended(f"not converged in {self.max_steps} steps")
        return state.ended("converged" if state.offset <= self.tolerance else "no step lowers the objective")


@dataclass
class _End:
    """Where a fit stands."""

    theta: Tensor
    objective: Tensor
    offset: float = math.inf
    steps: int = 0
    message: str = ""
    cost: float = 0.0  # twice the objective without the choice

    def lower(self, sample: Sample, move: Tensor) -> bool:
        """Moves by as much of `move` as lowers the objective; whether any of it did."""
        for scale in 0.5 ** np.arange(10):
            theta = self.theta + scale * move
            objective = sample.objective(theta)
            if objective < self.objective * (1 - 1e-14):
                self.theta, self.objective = theta, objective
                return True
        return False

    def clear(self, sample: Sample, move: Tensor) -> None:
        """The last step, too short to gain: it leaves the boundary, where rounding would choose for an observation."""
        theta = self.theta + move
        objective = sample.objective(theta)
        if objective <= self.objective * (1 + 1e-9):
            self.theta, self.objective = theta, objective

    def ended(self, message: str) -> _End:
        self.message = message
        return self
