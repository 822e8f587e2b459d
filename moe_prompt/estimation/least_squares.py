r"""Least squares for a whole batch of replicates at once: Levenberg-Marquardt in a compact box, in float64.

    theta_hat = argmin_{theta in box} 1/2 sum_i w_i |y_i - f_theta(x_i)|^2

One pass over the data gives everything a step needs. The Jacobian's rows and, as one extra row, the residual are
written feature-major into a chunk that stays in cache, and a single product with its transpose yields J'J, J'r and
r'r. A replicate leaves the batch when it has converged.

A fit stops by the relative offset of Bates & Watts (Technometrics 1981): the length of the Gauss-Newton step in units
of the estimate's own standard error, sqrt(g' (J'J)^-1 g / (p s^2)). It has no scale and says how far below the
statistical error the optimisation error is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator, FitResult, best_of
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset

ROUNDING, TINY = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class LeastSquares(Estimator):
    """Batched Levenberg-Marquardt: theta_hat = argmin 1/2 sum_i w_i |y_i - f_theta(x_i)|^2 within the box.

    A large sample is climbed to: every start is fitted to about `first_rung` evenly spread observations first, the
    best `keep` of them to ten times as many, the best of those to ten times as many again, and so on to the whole
    sample, where only the last few steps are left. `box` bounds each parameter's absolute value.
    """

    tolerance: float = 1e-6
    max_steps: int = 500
    box: float = 20.0
    first_rung: int = 1000
    rung_tolerance: float = 0.05
    rung_steps: int = 30
    keep: int = 2

    def fit(self, model: RegressionModel, data: Dataset, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        check(model, data, starts)
        damping, keep = 1e-2, self.keep
        for stride in self.rungs(data):
            problem = Problem.of(model, data, starts.shape[1], stride)
            result = self.minimise(problem, starts.flatten(0, 1), self.rung_tolerance, self.rung_steps, damping)
            starts = best_of(result, starts.shape[1], keep).theta.unflatten(0, (len(data), -1))
            damping, keep = 1e-6, 1
        problem = Problem.of(model, data, starts.shape[1])
        result = self.minimise(problem, starts.flatten(0, 1), self.tolerance, self.max_steps, damping)
        return best_of(result, starts.shape[1], 1)

    def rungs(self, data: Dataset) -> list[int]:
        """Strides of the smaller samples, smallest sample first; none where weights make rows unequal."""
        if data.weights is not None:
            return []
        sizes = (self.first_rung * 10**k for k in range(9))
        return [data.n // size for size in sizes if 2 * size <= data.n]

    def minimise(self, problem: Problem, theta: Tensor, tolerance: float, max_steps: int, damping: float) -> FitResult:
        """Every problem from its own theta (K, p)."""
        state = _State(problem, theta.clamp(-self.box, self.box), damping)
        floor = (16 * ROUNDING) ** 2 * problem.square_norm()  # a mean is a dozen operations: no residual is nearer 0
        for step in range(max_steps + 1):
            gradient, free = state.gradient(), state.free(self.box)
            active = ~state.done
            far = _offset_bound(state, gradient, free, problem) > tolerance
            asked = active & (~far | torch.tensor(step == max_steps))
            state.offset[asked] = offset = _offset(state, gradient, free, asked, problem)
            state.done[asked] |= (offset <= tolerance) | ~offset.isfinite()
            state.done |= active & ((2 * state.objective <= floor) | ~state.objective.isfinite())
            if step == max_steps or bool(state.done.all()):
                break
            state.advance(problem, gradient, free, self.box, ~state.done)
        return self._result(problem, state, tolerance, floor)

    def _result(self, problem: Problem, state: _State, tolerance: float, floor: Tensor) -> FitResult:
        exact = state.objective.isfinite() & (2 * state.objective <= floor)
        converged = (state.offset <= tolerance) | exact
        boundary = (state.theta.abs() >= self.box).any(1)
        gradient = torch.where(state.free(self.box), state.gradient(), 0.0)
        reasons = zip(converged.tolist(), state.objective.isfinite().tolist(), state.stuck.tolist(), strict=True)
        return FitResult(
            problem.model,
            state.theta,
            state.objective,
            converged,
            boundary,
            state.steps,
            gradient.norm(dim=1),
            state.offset,
            tuple(_reason(*reason, self.max_steps) for reason in reasons),
        )


def check(model: RegressionModel, data: Dataset, starts: Tensor) -> None:
    """A sentence where data or starts do not fit the model."""
    require(
        data.y.shape[2] == model.outputs,
        f"this model has {model.outputs} outputs: got y with {data.y.shape[2]}.",
    )
    require(
        data.n >= model.num_parameters,
        f"least squares needs n at least as large as the number of parameters, {model.num_parameters}: got "
        f"n = {data.n}; take a larger sample.",
    )
    require(
        starts.ndim == 3
        and starts.shape[1] >= 1
        and (len(starts), starts.shape[2]) == (len(data), model.num_parameters),
        f"starts must be (replicates, starts, parameters) = ({len(data)}, at least one, {model.num_parameters}): "
        f"got {tuple(starts.shape)}.",
    )


def _reason(converged: bool, finite: bool, stuck: bool, max_steps: int) -> str:
    if converged:
        return "converged"
    if not finite:
        return "the objective is not finite at the start"
    return "no step lowers the objective" if stuck else f"not converged in {max_steps} steps"


class SecantTerm:
    """S (K, p, p), the part of the Hessian that Gauss-Newton leaves out, and whether each problem uses it.

    The Hessian of 1/2 |r|^2 is J'J + sum_i r_i d2 r_i. Where residuals do not vanish, as in every misspecified fit, the
    second term decides how fast a fit converges: Gauss-Newton is linear there, with this term superlinear. S is updated
    so that it explains, in the direction just walked, the change of the gradient that J'J does not (Dennis, Gay &
    Welsch, NL2SOL, ACM TOMS 1981). It is used while it predicts the objective, or near the end the gradient, better
    than J'J alone.
    """

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


class _State:
    """Where every problem stands: theta, its Gram matrix, the damping, and whether it is done."""

    def __init__(self, problem: Problem, theta: Tensor, damping: float) -> None:
        self.theta = theta.clone()
        self.gram = problem.gram(theta, torch.arange(len(theta)))
        self.objective = 0.5 * self.gram[:, -1, -1]
        self.damping = torch.full_like(self.objective, damping)
        self.growth = torch.full_like(self.objective, 2.0)
        self.scale = self.gram.diagonal(dim1=1, dim2=2)[:, :-1].clone()
        self.steps = torch.zeros(len(theta), dtype=torch.int64)
        self.offset = torch.full_like(self.objective, torch.inf)
        self.stuck = torch.zeros(len(theta), dtype=torch.bool)
        self.secant = SecantTerm(*theta.shape)
        self.done = ~self.gram.isfinite().all((1, 2))
        self.objective[self.done] = torch.inf

    def gradient(self) -> Tensor:
        return self.gram[:, :-1, -1]

    def free(self, box: float) -> Tensor:
        """Parameters that are inside the box, or on its boundary with descent pointing inwards."""
        gradient = self.gradient()
        return ~(((self.theta <= -box) & (gradient > 0)) | ((self.theta >= box) & (gradient < 0)))

    def advance(self, problem: Problem, gradient: Tensor, free: Tensor, box: float, active: Tensor) -> None:
        """One damped step of the active problems, kept where it lowers the objective."""
        k = active.nonzero()[:, 0]
        step, model = self._step(k, gradient[k], free[k])
        trial = (self.theta[k] - step).clamp(-box, box)
        step = trial - self.theta[k]
        gram = problem.gram(trial, k)
        objective = 0.5 * gram[:, -1, -1]
        predicted = -(gradient[k] * step).sum(1) - 0.5 * (step * (model @ step[..., None])[..., 0]).sum(1)
        gained = self.objective[k] - objective
        noise = 32 * ROUNDING * self.objective[k]
        told = predicted > 10 * noise  # else gains are rounding: the step is taken, the damping eased little
        accept = gram.isfinite().all((1, 2)) & (gained > torch.where(told, 1e-4 * predicted, -noise))
        self._damp(k, accept, torch.where(told, gained / predicted, 0.9))
        kept = k[accept]
        self.secant.learn(kept, step[accept], self.gram[kept], gram[accept], gained[accept], noise[accept])
        self.theta[kept], self.gram[kept], self.objective[kept] = trial[accept], gram[accept], objective[accept]
        self.scale[kept] = torch.maximum(self.scale[kept], gram[accept].diagonal(dim1=1, dim2=2)[:, :-1])
        self.steps[k] += 1
        self.stuck[k] = ~accept & (self.damping[k] > 1e12)
        self.done |= self.stuck

    def _step(self, k: Tensor, gradient: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """The damped step with the second-order term, without it where the sum is not positive definite; the model."""
        hessian = self.gram[k, :-1, :-1]
        ridge = self.damping[k, None] * self.scale[k]
        model = self.secant.added(k, hessian)
        step = _solve(model, ridge, gradient, free, attempts=0)
        refused = ~step.isfinite().all(1)
        if bool(refused.any()):
            model = torch.where(refused[:, None, None], hessian, model)
            step[refused] = _solve(hessian[refused], ridge[refused], gradient[refused], free[refused])
        return step, model

    def _damp(self, k: Tensor, accept: Tensor, ratio: Tensor) -> None:
        """Nielsen's rule: less damping after a good step, geometrically more after each refused one."""
        shrink = (1 - (2 * ratio - 1) ** 3).clamp(min=0.1)
        self.damping[k] = torch.where(
            accept, (self.damping[k] * shrink).clamp(min=1e-15), self.damping[k] * self.growth[k]
        )
        self.growth[k] = torch.where(accept, 2.0, 2 * self.growth[k])


def _solve(hessian: Tensor, ridge: Tensor, gradient: Tensor, free: Tensor, attempts: int = 3) -> Tensor:
    """(H + diag(ridge))^-1 g on the free parameters, 0 elsewhere, after scaling H to unit diagonal; NaN if singular."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    unit = torch.where(diagonal > 0, diagonal, 1.0).rsqrt() * free
    scaled = hessian * unit[:, :, None] * unit[:, None, :]
    scaled.diagonal(dim1=1, dim2=2).add_(ridge * unit.square() + 1e-14 * free + (~free).to(scaled))
    factor, info = torch.linalg.cholesky_ex(scaled)
    for attempt in range(attempts):  # a singular H: a ridge at rounding level, then ten thousand times larger
        bad = info > 0
        if not bool(bad.any()):
            break
        scaled[bad] += 1e-12 * 1e4**attempt * torch.eye(scaled.shape[-1], dtype=scaled.dtype)
        factor[bad], info[bad] = torch.linalg.cholesky_ex(scaled[bad])
    step = torch.cholesky_solve((gradient * unit)[..., None], factor)[..., 0]
    return torch.where((info > 0)[:, None], torch.nan, step * unit)


def _offset_bound(state: _State, gradient: Tensor, free: Tensor, problem: Problem) -> Tensor:
    """What the relative offset is at least, without solving: no eigenvalue of H at unit diagonal exceeds p."""
    p = gradient.shape[1]
    diagonal = state.gram.diagonal(dim1=1, dim2=2)[:, :-1].clamp(min=TINY)
    variance = 2 * state.objective / max(1, problem.observations - p)
    return ((gradient.square() * free / diagonal).sum(1) / (p * p * variance)).sqrt()


def _offset(state: _State, gradient: Tensor, free: Tensor, active: Tensor, problem: Problem) -> Tensor:
    """Relative offset of the active problems: sqrt(g' H^-1 g / p) in units of the residual standard deviation."""
    g, p = gradient[active], gradient.shape[1]
    newton = _solve(state.gram[active, :-1, :-1], torch.zeros_like(g), g, free[active])
    decrement = (g * newton).sum(1).clamp(min=0)
    variance = 2 * state.objective[active] / max(1, problem.observations - p)
    return (decrement / (p * variance)).sqrt()
