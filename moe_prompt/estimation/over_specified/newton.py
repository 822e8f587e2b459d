r"""Least squares with more atoms than the truth has: Levenberg-Marquardt, then Newton's method in a trust region.

A surplus atom changes f at second order only. At the truth J'J is therefore singular, and Gauss-Newton converges
slowly: in the directions of a split, the second-order term sum_i r_i d2 f_i of the Hessian is as large as J'J. The best
of the rough fits are continued with this term (`over_specified.trust_region`).

A fit ends if its *offset*, the length of the Newton step in standard errors, sqrt(g' H^-1 g / (p s^2)), is below the
tolerance at a minimum. It does not end at a saddle, such as a point where two atoms coincide. Experts with kinks have
minima at which the gradient jumps (`over_specified.kinks`).
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
from moe_prompt.estimation.over_specified.trust_region import Status, TrustRegion
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset

SAME = 0.3  # s^2: two rough fits whose objectives differ by less are taken for the same minimum
DUPLICATE = 3e-3  # s^2: two finished fits whose objectives are this close are the same minimum
HOPELESS = 50.0  # s^2: a fit whose objective is this far above the best will not win


@dataclass(frozen=True)
class NewtonLeastSquares(Estimator):
    """Least squares from several starts: a rough fit by `first`, then Newton's method in a trust region.

    step = argmin { g's + 1/2 s'Hs : |D s| <= radius },  H = J'J + sum_i r_i d2 f_i

    Large samples are fitted by way of smaller ones, the *rungs* of `first`. On the first rung, `first` descends from
    every start to `handover` standard errors, in at most `handover_steps` steps. The best `keep` different fits are
    continued by Newton's method, rung by rung, to the whole sample. `rung_tolerance` and `rung_steps` end a fit on a
    smaller rung, `tolerance` (standard errors) and `max_steps` on the whole sample.

    Raises:
        InputError: data or starts that do not fit the model, or a gate without second derivatives.
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
        """Newton's method for every problem from its own theta (K, p); problems in `spare` (K,) are not fitted."""
        state = TrustRegion(problem, theta, self.first.box, tolerance)
        if spare is not None:
            state.give_up(spare)
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
        at_kink = state.at(Status.STUCK) & ~smooth & (state.kink <= state.tolerance)
        gradient = torch.where(state.free(), state.gram[:, :-1, -1], 0.0)
        boundary = (state.theta.abs() >= self.first.box).any(1)
        ends = (smooth, at_kink, state.objective.isfinite(), state.at(Status.BROKEN), state.at(Status.STUCK))
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
    """Estimate of s^2 for every replicate, from the best of its fits."""
    best = objective.nan_to_num(nan=torch.inf).unflatten(0, (-1, problem.starts)).amin(1)
    return 2 * best / max(1, problem.observations - problem.model.num_parameters)


def spare_starts(problem: Problem, objective: Tensor) -> Tensor:
    """True for fits that duplicate a better one of the same replicate, or are so high that they will not win."""
    ordered, order = objective.unflatten(0, (-1, problem.starts)).sort(dim=1, stable=True)
    variance = _variance(problem, objective)[:, None]
    again = torch.nn.functional.pad(ordered.diff(dim=1) <= DUPLICATE * variance, (1, 0))
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
