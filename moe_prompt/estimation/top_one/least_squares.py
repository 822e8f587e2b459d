r"""Least squares under a top-1 gate, which chooses one prompt per observation.

    y_i = f_{c(i)}(x_i) + e_i,    c(i) = argmax_j { s_j(x_i) + b_j },    e_i ~ N(0, s^2 I)

f_j has the frozen experts and prompt j alone. The objective 1/2 sum_i |y_i - f_{c(i)}(x_i)|^2 jumps where the choice
c(i) of an observation changes. We call the prompt that an observation is assigned to its *side*. There are three steps:

1. Free sides. Every observation is assigned to the prompt that fits it best, whatever the gate would choose, and each
   prompt is fitted to its own observations (Levenberg-Marquardt). This starts from every start on part of the sample.
2. Sides by the gate. Least squares over those theta for which the gate chooses the best-fitting prompt of every decided
   observation. An observation is *decided* if changing its side costs more than 20 s^2. (With the gate's choice the
   objective is larger by 1/2 s^2 chi^2_q, where q is the number of parameters of the boundary. It pays to give up a
   decided observation with probability P(chi^2_3 > 20) = 2e-4 at most.)
3. Changes of sides. The objective is minimised with all sides held, then exactly along random lines on which sides
   change, until neither lowers it.

The sum of squares with free sides is a lower bound of the objective nearby; candidates whose bound is too high are
dropped.
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
    """Least squares under a top-1 gate from several starts.

    Every start is searched on about `search` observations with at most `search_steps` steps; the best `keep` go on to
    the whole sample, with at most `max_steps` steps. A fit converges if its last step is at most `tolerance` standard
    errors long. Parameters stay in [-box, box]. `lines` random lines are searched at a time.

    Raises:
        InputError: another gate, experts whose scores are not linear in the parameters, or weighted data.
    """

    tolerance: float = 1e-4
    box: float = 3.0
    search: int = 1000
    search_steps: int = 60
    keep: int = 3
    max_steps: int = 50
    lines: int = 32

    def fit(self, model: RegressionModel, data: Dataset, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        check(model, data, starts)
        require(data.weights is None, "a top-1 gate is fitted to observations without weights: got weights; drop them.")
        ends = [self._one(model, x, y, some) for x, y, some in zip(data.x, data.y, starts, strict=True)]
        theta, objective = torch.stack([end.theta for end in ends]), torch.stack([end.objective for end in ends])
        return FitResult(
            model,
            theta,
            objective,
            torch.tensor([end.message == "converged" for end in ends]),
            (theta.abs() >= self.box * (1 - 1e-9)).any(1),
            torch.tensor([end.steps for end in ends]),
            torch.full_like(objective, torch.nan),  # a gradient says nothing at a jump
            theta.new_tensor([end.offset for end in ends]),
            tuple(end.message for end in ends),
        )

    def _one(self, model: RegressionModel, x: Tensor, y: Tensor, starts: Tensor) -> _End:
        stride, rng = max(1, len(x) // self.search), np.random.default_rng(0)
        few, whole = Sample(model, x[::stride], y[::stride]), Sample(model, x, y)
        theta, cost = few.sort(starts.clamp(-self.box, self.box)[:, few.places], self.search_steps, self.box)
        theta, cost = whole.sort(theta[cost.argsort()[: self.keep]], self.max_steps, self.box)
        ends: list[_End] = []
        for k in cost.argsort().tolist():  # a cost, with free sides, is below its objective
            if all(
                2 * end.objective > cost[k] * (1 + 1e-6) and abs(cost[k] - end.cost) > 1e-6 * cost[k] for end in ends
            ):
                ends.append(self._choose(whole, theta[k], rng))
                ends[-1].cost = float(cost[k])
        best = min(ends, key=lambda end: float(end.objective))
        best.theta = whole.joined(best.theta)
        return best

    def _choose(self, sample: Sample, theta: Tensor, rng: np.random.Generator) -> _End:
        """Steps 2 and 3: from the fit with free sides, theta (L, a), to a minimum of the objective."""
        state = _End(theta, sample.objective(theta))
        for held in (False, True):
            for _ in range(self.max_steps):
                state.steps += 1
                local = Local(sample, state.theta, held, self.box)
                move, state.offset = local.step()
                if move is None:  # under no theta does the gate choose the best-fitting prompts
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
    """State of one fit: theta (L, a), objective, last step in standard errors, steps, and how it ended."""

    theta: Tensor
    objective: Tensor
    offset: float = math.inf
    steps: int = 0
    message: str = ""
    cost: float = 0.0  # sum of squares with free sides: twice the objective

    def lower(self, sample: Sample, move: Tensor) -> bool:
        """Go along `move`, shortened until the objective falls; True if it fell."""
        for scale in 0.5 ** np.arange(10):
            theta = self.theta + scale * move
            objective = sample.objective(theta)
            if objective < self.objective * (1 - 1e-14):
                self.theta, self.objective = theta, objective
                return True
        return False

    def clear(self, sample: Sample, move: Tensor) -> None:
        """Take the last, short step too: on the boundary itself, rounding would decide an observation's side."""
        theta = self.theta + move
        objective = sample.objective(theta)
        if objective <= self.objective * (1 + 1e-9):
            self.theta, self.objective = theta, objective

    def ended(self, message: str) -> _End:
        """This state, with the reason why the fit ended."""
        self.message = message
        return self
