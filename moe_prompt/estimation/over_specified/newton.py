r"""Least squares with more atoms than the truth has: Levenberg-Marquardt, then Newton's method in a trust region.

An atom that the truth does not have moves f only to second order, so J'J is singular at the truth and Gauss-Newton
crawls; the second-order term sum_i r_i d2 f_i is as large as what J'J has in those directions. So the best of the rough
fits go on with it (:mod:`moe_prompt.estimation.over_specified.trust_region`). A fit ends at a minimum, by the length of
the Newton step in standard errors, sqrt(g' H^-1 g / (p s^2)), and never at a saddle, as two atoms that coincide are
one. Experts with kinks have minima where the gradient jumps (:mod:`moe_prompt.estimation.over_specified.kinks`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.estimation.base import Estimator, FitResult, best_of, distinct_best
from moe_prompt.estimation.least_squares import LeastSquares, check
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified.kinks import leave_kinks
from moe_prompt.estimation.over_specified.trust_region import TrustRegion
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset

SAME = 0.3  # s^2: of rough fits, objectives nearer than this are one minimum
AGAIN, HOPELESS = 3e-3, 50.0  # s^2: of fits that ended, one minimum; a minimum that will not be the best


@dataclass(frozen=True)
class NewtonLeastSquares(Estimator):
    """`first` descends from every start on its first rung, or to `handover` standard errors where there is none.

    The best `keep` go on by Newton's method, through its larger rungs to the whole sample.
    """

    first: LeastSquares = field(default_factory=LeastSquares)
    keep: int = 3
    handover: float = 0.3
    handover_steps: int = 40
    rung_tolerance: float = 1e-2
    rung_steps: int = 40
    tolerance: float = 1e-6
    max_steps: int = 1000

    def fit(self, model: RegressionModel, data: Dataset, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        check(model, data, starts)
        rungs = [(stride, self.rung_tolerance, self.rung_steps) for stride in self.first.rungs(data)]
        rungs.append((1, self.tolerance, self.max_steps))
        problem = Problem.of(model, data, starts.shape[1], rungs[0][0])
        rough = self.first.minimise(problem, starts.flatten(0, 1), self.handover, self.handover_steps, 1e-2)
        rough = distinct_best(rough, starts.shape[1], self.keep, SAME * _variance(problem, rough.objective))
        starts, spare = rough.theta.unflatten(0, (len(data), -1)), torch.zeros(len(rough.theta), dtype=torch.bool)
        escaped = torch.zeros_like(spare)
        for stride, tolerance, steps in rungs:
            problem = Problem.of(model, data, starts.shape[1], stride)
            found = self.polish(problem, starts.flatten(0, 1), tolerance, steps, spare)
            starts, spare = found.theta.unflatten(0, (len(data), -1)), spare_starts(problem, found.objective)
            assert found.escaped is not None
            escaped |= found.escaped
        return best_of(replace(found, escaped=escaped), problem.starts, 1)

    def polish(
        self, problem: Problem, theta: Tensor, tolerance: float, max_steps: int, spare: Tensor | None = None
    ) -> FitResult:
        """Every problem from its own theta (K, p) to the minimum below it; those in `spare` (K,) are given up."""
        state = TrustRegion(problem, theta, self.first.box, tolerance)
        if spare is not None:
            state.done |= spare
            state.objective[spare] = torch.inf
        for step in range(max_steps + 1):
            state.judge()
            if bool(state.done.all()) and leave_kinks(state):
                state.judge()
            if step == max_steps or bool(state.done.all()):
                break
            state.advance()
        return self._result(state)

    def _result(self, state: TrustRegion) -> FitResult:
        smooth = state.at_minimum()
        at_kink = state.stuck & ~smooth & (state.kink <= state.tolerance)
        gradient = torch.where(state.free(), state.gram[:, :-1, -1], 0.0)
        boundary = (state.theta.abs() >= self.first.box).any(1)
        ends = (smooth, at_kink, state.objective.isfinite(), state.broken, state.stuck)
        return FitResult(
            state.problem.model,
            state.theta,
            state.objective,
            smooth | at_kink,
            boundary,
            state.steps,
            gradient.norm(dim=1),
            torch.where(at_kink, state.kink, state.offset),
            tuple(_reason(end, self.max_steps) for end in torch.stack(ends, 1).tolist()),
            state.escaped,
        )


def _variance(problem: Problem, objective: Tensor) -> Tensor:
    """s^2 of every replicate, from the best of its fits."""
    best = objective.nan_to_num(nan=torch.inf).unflatten(0, (-1, problem.starts)).amin(1)
    return 2 * best / max(1, problem.observations - problem.model.num_parameters)


def spare_starts(problem: Problem, objective: Tensor) -> Tensor:
    """Rough fits that end where a better one does, or so high that nothing to come would choose them."""
    ordered, order = objective.unflatten(0, (-1, problem.starts)).sort(dim=1, stable=True)
    variance = _variance(problem, objective)[:, None]
    again = torch.nn.functional.pad(ordered.diff(dim=1) <= AGAIN * variance, (1, 0))
    spare = again | ~(ordered - ordered[:, :1] <= HOPELESS * variance)
    return torch.zeros_like(spare).scatter(1, order, spare).flatten()


def _reason(end: list[bool], max_steps: int) -> str:
    smooth, at_kink, finite, broken, stuck = end
    if smooth or at_kink:
        return "converged" if smooth else "converged at a kink"
    if not finite:
        return "the objective is not finite at the start"
    if broken:
        return "the Hessian is not finite"
    return "no step lowers the objective" if stuck else f"not converged in {max_steps} steps"
