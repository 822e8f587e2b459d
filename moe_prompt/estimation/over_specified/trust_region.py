r"""Newton's method in a trust region, within a box, for a batch of least-squares problems.

    step = argmin { g's + 1/2 s'Hs : |D s| <= radius },     H = J'J + sum_i r_i d2 f_i,  D^2 = diag J'J

Steps are taken in coordinates in which the valleys of an over-specified fit are straight
(`over_specified.split_coordinates`). Some valleys stay bent, in families that are not identifiable. If a step leaves
such a valley, it is corrected back to the valley's floor before its gain is judged.

- Saddle: where the gradient vanishes and H has a negative eigenvalue, the next step follows the eigenvector.
- Box: a parameter that a step would push out of the box is held on the boundary. If at the end descent points inwards,
  the parameter is released, and not held again until it has left the boundary.
- Stuck: no step lowers the objective, even with a radius far below the tolerance. `over_specified.kinks` finds out why.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from moe_prompt.estimation.least_squares import ROUNDING, TINY
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified.hessian import second_order
from moe_prompt.estimation.over_specified.split_coordinates import Chart
from moe_prompt.models.atoms import AtomLayout

FLAT = 1e-12  # eigenvalues below this share of the largest are raised to it in a step
BENT = 1e-9  # a saddle has an eigenvalue below minus this share of the largest
NARROW = 1e-11  # a problem is stuck if its radius falls below this share of one plus the step's length, ...
NIL = 1e-4  # ... or below this share of the tolerance
CANCELLED = 1e-12  # a difference of columns counts as rounding if its square is below this share of their squares
SADDLE = 1e-2  # standard errors: with an offset below this, a point counts as stationary
GOOD = 0.75  # a step that gains at least this share of its prediction is good
STIFF = 1e-4  # eigenvalues of J'J above this share of the largest are stiff: corrections act on these directions alone


class Status(IntEnum):
    """Where a problem stands: the last four are not moved any more."""

    MOVED = 0  # the quadratic model is not yet that of theta
    JUDGED = 1
    ENDED = 2  # at a minimum, or where no step can be told
    STUCK = 3  # no step lowers the objective
    BROKEN = 4  # the Hessian is not finite
    GIVEN_UP = 5  # not finite at the start, or not worth going on with


class TrustRegion:
    """Where every problem stands, and its quadratic model in coordinates in which J'J has unit diagonal."""

    def __init__(self, problem: Problem, theta: Tensor, box: float, tolerance: float) -> None:
        self.problem, self.box, self.layout = problem, box, AtomLayout.of(problem.model)
        self.tolerance = tolerance  # standard errors
        self.theta = theta.clamp(-box, box).clone()
        every = torch.arange(len(theta))
        self.gram = problem.gram(self.theta, every)
        self.objective = 0.5 * self.gram[:, -1, -1]
        self.floor = (16 * ROUNDING) ** 2 * problem.square_norm()
        self.second = second_order(problem, self.theta, every)
        self.radius = torch.full_like(self.objective, torch.inf)
        self.offset = torch.full_like(self.objective, torch.inf)
        self.steps = torch.zeros(len(theta), dtype=torch.int64)
        self.escaped = torch.zeros(len(theta), dtype=torch.bool)  # left a saddle on the way
        self.held = torch.zeros_like(theta, dtype=torch.bool)  # on the boundary, and kept there although it could leave
        self.released = self.held.clone()  # let go since the last move
        self.kink = torch.full_like(self.objective, torch.nan)  # the offset at a kink, of problems that are stuck
        self.status = torch.full_like(self.steps, Status.MOVED)
        self.give_up(~self.gram.isfinite().all((1, 2)))
        p = theta.shape[1]
        self.scale, self.slope, self.pulled = torch.ones_like(theta), torch.zeros_like(theta), torch.zeros_like(theta)
        self.hessian = torch.zeros_like(self.second)
        self.values, self.vectors = torch.ones_like(theta), torch.eye(p, dtype=theta.dtype).repeat(len(theta), 1, 1)

    def at(self, status: Status) -> Tensor:
        """The problems of this status."""
        return self.status == status

    @property
    def done(self) -> Tensor:
        """The problems that are not moved any more."""
        return self.status >= Status.ENDED

    @property
    def saddle(self) -> Tensor:
        """Where H has a negative eigenvalue."""
        return self.values[:, 0] < -BENT * self.values.abs().amax(1)

    def give_up(self, problems: Tensor) -> None:
        """Problems (K,) that are not fitted: their objective is infinite."""
        self.status[problems] = Status.GIVEN_UP
        self.objective[problems] = torch.inf

    def exact(self) -> Tensor:
        """Where residuals are rounding."""
        return self.objective.isfinite() & (2 * self.objective <= self.floor)

    def at_minimum(self) -> Tensor:
        """Where the offset is within the tolerance and H bends upwards; a bend that no step confirms is none."""
        judged = (self.status >= Status.JUDGED) & (self.status != Status.GIVEN_UP)
        upwards = ~self.saddle | self.at(Status.STUCK)
        return ((self.offset <= self.tolerance) & upwards & judged) | self.exact()

    def free(self) -> Tensor:
        """Parameters inside the box, or on its boundary with descent pointing inwards."""
        gradient = self.gram[:, :-1, -1]
        return ~(((self.theta <= -self.box) & (gradient > 0)) | ((self.theta >= self.box) & (gradient < 0)))

    def chart(self, k: Tensor) -> Chart:
        """Coordinates about theta; those of a pair only where nothing is on the boundary."""
        return Chart(self.layout, self.theta[k], (self.theta[k].abs() < self.box).all(1))

    def unit(self, k: Tensor) -> Tensor:
        """sqrt(p s^2): the length |H^1/2 step| of an offset of one standard error; |D step| in stiff directions."""
        p = self.theta.shape[1]
        return (2 * p * self.objective[k] / max(1, self.problem.observations - p)).sqrt()

    def judge(self) -> None:
        """The quadratic model, the offset in standard errors, and whether this is a minimum."""
        k = self.at(Status.MOVED).nonzero()[:, 0]
        if len(k):
            self._decompose(k)
        near = self.at(Status.JUDGED) & (self.offset <= self.tolerance) & ~self.saddle
        k = (near & self.held.any(1)).nonzero()[:, 0]
        near[k] &= ~self._release(k)
        unclear = self.at(Status.JUDGED) & ~self.offset.isfinite()
        self.status[near | unclear | (self.exact() & ~self.done)] = Status.ENDED

    def _release(self, k: Tensor) -> Tensor:
        """Which of problems near their end let go of a held parameter: that of most gain, once wherever they stand.

        It must descend inwards at the end of the Newton step of what is free: so it does in the step that has it free.
        """
        values, scale, hessian = self.values[k], self.scale[k], self.hessian[k]
        inner = self.slope[k] / values.abs().clamp(min=FLAT * values.abs().amax(1, keepdim=True))
        step = -(self.vectors[k] @ inner[..., None])[..., 0] * scale
        end = self.pulled[k] + (hessian @ step[..., None])[..., 0]
        inwards = (self.held & ~self.released & self.free())[k] & (end * self.theta[k] > 0)
        gain = end.square() / hessian.diagonal(dim1=1, dim2=2).abs().clamp(min=TINY)
        most = torch.where(inwards, gain, -1.0).argmax(1, keepdim=True)
        let_go = torch.zeros_like(inwards).scatter(1, most, True) & inwards
        self.held[k] &= ~let_go
        self.released[k] |= let_go
        self.status[k[let_go.any(1)]] = Status.MOVED
        return let_go.any(1)

    def _decompose(self, k: Tensor) -> None:
        free, gram, p = (self.free() & ~self.held)[k], self.gram[k], self.theta.shape[1]
        chart, gradient = self.chart(k), gram[:, :-1, -1]
        diagonal = chart.pull_twice(gram[:, :-1, :-1]).diagonal(dim1=1, dim2=2)
        diagonal = diagonal.maximum(CANCELLED * chart.pull_squares(gram.diagonal(dim1=1, dim2=2)[:, :-1]))
        self.scale[k] = scale = torch.where(diagonal > TINY, diagonal, 1.0).rsqrt() * free
        self.pulled[k] = pulled = chart.pull(gradient)
        self.hessian[k] = hessian = chart.hessian(gram[:, :-1, :-1] + self.second[k], gradient)
        hessian = hessian * scale[:, :, None] * scale[:, None]
        hessian.diagonal(dim1=1, dim2=2).add_((~free).to(hessian))
        bad = ~hessian.isfinite().all((1, 2))
        hessian[bad], pulled = torch.eye(p, dtype=hessian.dtype), torch.where(bad[:, None], torch.nan, pulled)
        self.values[k], self.vectors[k] = values, vectors = torch.linalg.eigh(hessian)
        self.slope[k] = slope = (vectors.mT @ (pulled * scale)[..., None])[..., 0]
        top = values.abs().amax(1, keepdim=True)
        decrement = (slope.square() / values.abs().clamp(min=FLAT * top)).sum(1)
        self.offset[k] = decrement.sqrt() / self.unit(k)
        self.status[k] = torch.where(bad, int(Status.BROKEN), int(Status.JUDGED))

    def advance(self) -> None:
        """One step of the problems that are not done, kept where it lowers the objective."""
        k, step, size, chart = self._inward(*self._step(self.at(Status.JUDGED).nonzero()[:, 0]))
        if not len(k):
            return
        whole = step.norm(dim=1).clamp(min=TINY)
        step, trial = chart.within(step, self.box)
        size = size * step.norm(dim=1) / whole
        gram = self.problem.gram(trial, k)
        bent = (step * (self.hessian[k] @ step[..., None])[..., 0]).sum(1)
        predicted = -(self.pulled[k] * step).sum(1) - 0.5 * bent
        noise = 32 * ROUNDING * self.objective[k]
        told = predicted.abs() > 10 * noise  # else gains are rounding
        poor = told & ~(self.objective[k] - 0.5 * gram[:, -1, -1] > GOOD * predicted) & gram.isfinite().all((1, 2))
        self._correct(k, trial, gram, poor.nonzero()[:, 0])
        gained = self.objective[k] - 0.5 * gram[:, -1, -1]
        ratio = torch.where(told, gained / predicted, 0.9).nan_to_num(nan=-1.0)
        accept = gram.isfinite().all((1, 2)) & torch.where(told, (ratio > 1e-4) & (predicted > 0), gained > -noise)
        self._resize(k, ratio, accept, size)
        kept = k[accept]
        self.escaped[kept] |= self.saddle[kept] & (self.offset[kept] <= SADDLE)
        self._move(kept, trial[accept], gram[accept])
        self.steps[k] += 1
        narrow = (NARROW * (1 + size)).maximum(NIL * self.tolerance * self.unit(k))
        self.status[k[~accept & (self.radius[k] < narrow)]] = Status.STUCK

    def _correct(self, k: Tensor, trial: Tensor, gram: Tensor, poor: Tensor) -> None:
        """Where a step left a bent valley, Gauss-Newton's step back to its floor, in the stiff directions alone."""
        if not len(poor):
            return
        theta, matrix, gradient = trial[poor], gram[poor, :-1, :-1], gram[poor, :-1, -1]
        free = ~((theta.abs() >= self.box) & (theta * gradient < 0))
        scale = matrix.diagonal(dim1=1, dim2=2).clamp(min=TINY).rsqrt() * free
        values, vectors = torch.linalg.eigh(matrix * scale[:, :, None] * scale[:, None])
        slope = (vectors.mT @ (gradient * scale)[..., None])[..., 0]
        back = torch.where(values > STIFF * values[:, -1:], slope / values, 0.0)
        theta = (theta - (vectors @ back[..., None])[..., 0] * scale).clamp(-self.box, self.box)
        corrected = self.problem.gram(theta, k[poor])
        better = corrected[:, -1, -1] < gram[poor, -1, -1]
        trial[poor[better]], gram[poor[better]] = theta[better], corrected[better]

    def _inward(self, k: Tensor, step: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Chart]:
        """The problems whose steps do not leave the box from its boundary; the others are held there from now on."""
        chart = self.chart(k)
        change = chart.moved(1e-6 * step) - self.theta[k]
        outward = (self.theta[k].abs() >= self.box) & (self.theta[k] * change > 0)
        inside = ~outward.any(1)
        if bool(inside.all()):
            return k, step, size, chart
        self.held[k] |= outward
        self.status[k[~inside]] = Status.MOVED
        return k[inside], step[inside], size[inside], self.chart(k[inside])

    def _move(self, k: Tensor, theta: Tensor, gram: Tensor) -> None:
        if len(k):
            self.theta[k], self.gram[k], self.objective[k] = theta, gram, 0.5 * gram[:, -1, -1]
            self.held[k] &= theta.abs() >= self.box
            self.released[k] = False
            self.second[k], self.status[k] = second_order(self.problem, theta, k), int(Status.MOVED)

    def go_on(self, k: Tensor, theta: Tensor) -> None:
        """Problems that were stuck, from other points (kept, p)."""
        self._move(k, theta, self.problem.gram(theta, k))
        self.radius[k], self.kink[k] = torch.inf, torch.nan
        self.steps[k] += 1

    def _resize(self, k: Tensor, ratio: Tensor, accept: Tensor, size: Tensor) -> None:
        """Three tenths of a poor step's length, twice the radius after a good one that it held back."""
        limited = size > 0.99 * self.radius[k]
        radius = torch.where(accept & (ratio > GOOD) & limited, 2 * self.radius[k], self.radius[k])
        self.radius[k] = torch.where(accept & (ratio > 0.25), radius, torch.minimum(radius, size) * 0.3)

    def _step(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The minimiser of the model within the radius, and its scaled length."""
        values, slope, radius = self.values[k], self.slope[k].clone(), self.radius[k]
        top = values.abs().amax(1)
        first = slope[:, 0]
        push = 1e-3 * FLAT * top  # off a saddle: as good as nothing where there is a slope
        sign = torch.where(first < 0, -1.0, 1.0)
        slope[:, 0] = torch.where((values[:, 0] < -FLAT * top) & (first.abs() < push), sign * push, first)
        radius = torch.where(radius.isfinite(), radius, self._first_radius(k))
        self.radius[k] = radius
        shift = _shift(values, slope, radius, FLAT * top)
        inner = -slope / (values + shift[:, None])
        size = inner.norm(dim=1)
        return k, (self.vectors[k] @ inner[..., None])[..., 0] * self.scale[k], size

    def _first_radius(self, k: Tensor) -> Tensor:
        """The Newton step's own length with every eigenvalue taken positive."""
        values = self.values[k].abs()
        return (self.slope[k] / values.clamp(min=1e-6 * values.amax(1, keepdim=True))).norm(dim=1) + TINY


def _shift(values: Tensor, slope: Tensor, radius: Tensor, flat: Tensor) -> Tensor:
    """lambda >= 0 with values + lambda > 0 and |slope / (values + lambda)| <= radius, equal unless lambda is least.

    By Newton's method on 1 / length, which is concave in lambda: from the least one, no step goes too far.
    """
    shift = (flat - values[:, 0]).clamp(min=0)
    for _ in range(60):
        shifted = values + shift[:, None]
        inner = slope / shifted
        length = inner.norm(dim=1)
        over = length / radius.clamp(min=TINY) - 1
        if not bool((over > 1e-12).any()):
            break
        step = over * length.square() / (inner.square() / shifted).sum(1)
        shift = torch.where(over > 1e-12, shift + step, shift)
    return shift
