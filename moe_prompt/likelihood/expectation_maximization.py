r"""Maximum likelihood for latent mixtures, for many replicates at once: EM first, then Newton's method.

    theta_hat = argmax_{theta in box} sum_i log p_theta(y_i | x_i)

One pass over the data gives the gradient g of the log-likelihood (the *score*), the complete information C and the
observed information H (`likelihood.louis_information`). There are two kinds of steps:

| step   | formula               | used                                                                             |
|--------|-----------------------|----------------------------------------------------------------------------------|
| EM     | C^-1 g                | where H + damping C is not positive definite, and after a refused Newton step     |
| Newton | (H + damping C)^-1 g  | elsewhere; with much damping it becomes a short EM step                          |

An EM step solves the experts' weighted least squares exactly, sets the standard deviations in closed form, and takes
one Newton step of the gate's weighted logistic regression. EM alone would converge slowly, at a rate that depends on
the missing information; Newton's method takes over where the likelihood is concave.

A fit stops if its *offset* is below the tolerance. The offset is the length of the Newton step in standard errors of
the estimate, sqrt(g' H^-1 g / p); a small change of the likelihood is no reason to stop. The likelihood is unbounded as
sd -> 0. The *box* bounds all coefficients and keeps sd >= least_sd; a fit that ends on the box is marked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator, FitResult
from moe_prompt.likelihood.climb import Climb
from moe_prompt.likelihood.louis_information import Observations
from moe_prompt.likelihood.models import GatedMixture
from moe_prompt.models.sampling import Dataset

SAME = 0.1  # two fits of one sample whose log-likelihoods differ by at most this are the same maximum
HOPELESS = 20.0  # a fit whose log-likelihood is this far below the best is given up


@dataclass(frozen=True)
class ExpectationMaximization(Estimator):
    """Maximum likelihood, argmax_theta sum_i log p(y_i | x_i; theta), from several starts by EM and Newton's method.

    A large sample is fitted by way of smaller ones, called *rungs*, each ten times as large as the one before:

    1. If there are more starts than `shortlist`, `em_steps` EM steps on the first rung choose the best of them.
    2. On the first rung, about `first_rung` evenly spread observations, every start is fitted.
    3. The best fits go on to the next rung: at most `keep` different ones, none far below the best. From the second
       rung on, only the best goes on, until the whole sample is fitted.

    `tolerance` is the offset at which a fit stops, `max_steps` the largest number of steps; `rung_tolerance` and
    `rung_steps` are those on smaller rungs. `box` bounds the absolute value of every coefficient, `least_sd` bounds
    standard deviations from below.

    Raises:
        InputError: data or starts that do not fit the model, or fewer observations than parameters.
    """

    tolerance: float = 1e-6
    max_steps: int = 500
    box: float = 100.0
    least_sd: float = 1e-3
    em_steps: int = 10
    shortlist: int = 8
    first_rung: int = 1000
    rung_tolerance: float = 0.05
    rung_steps: int = 100
    keep: int = 3

    def fit(self, model: GatedMixture, data: Dataset, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        self._check(model, data, starts)
        theta, replicates = starts.flatten(0, 1), torch.arange(len(data)).repeat_interleave(starts.shape[1])
        strides, keep = [*self._rungs(data.n), 1], self.keep
        sample = Observations(model, data.x[:, :: strides[0]], data.y[:, :: strides[0]])
        if starts.shape[1] > self.shortlist:
            found = self._maximise(sample, theta, replicates, self.rung_tolerance, self.em_steps, em_only=True)
            kept = _promising(found.objective, replicates, self.shortlist, torch.inf)
            theta, replicates = found.theta[kept], replicates[kept]
        for stride in strides[1:]:
            found = self._maximise(sample, theta, replicates, self.rung_tolerance, self.rung_steps)
            kept = _promising(found.objective, replicates, keep, HOPELESS)
            theta, replicates, keep = found.theta[kept], replicates[kept], 1
            sample = Observations(model, data.x[:, ::stride], data.y[:, ::stride])
        found = self._maximise(sample, theta, replicates, self.tolerance, self.max_steps)
        return found.select(_promising(found.objective, replicates, 1, torch.inf))

    def _check(self, model: GatedMixture, data: Dataset, starts: Tensor) -> None:
        p = model.num_parameters
        require(
            data.x.shape[2] == model.dim and data.y.shape[2] == 1 and data.weights is None,
            f"this mixture takes {model.dim} covariates, one output and no weights: got x with {data.x.shape[2]}, y "
            f"with {data.y.shape[2]}{', and weights' if data.weights is not None else ''}.",
        )
        require(
            data.n >= p,
            f"maximum likelihood needs n at least as large as the number of parameters, {p}: got n = {data.n}; take a "
            "larger sample.",
        )
        require(
            starts.ndim == 3 and starts.shape[1] >= 1 and (len(starts), starts.shape[2]) == (len(data), p),
            f"starts must be (replicates, starts, parameters) = ({len(data)}, at least one, {p}): "
            f"got {tuple(starts.shape)}.",
        )

    def _rungs(self, n: int) -> list[int]:
        """Strides of the rungs below the whole sample, the smallest rung first."""
        sizes = (self.first_rung * 10**k for k in range(9))
        return [n // size for size in sizes if 2 * size <= n]

    def _bounds(self, model: GatedMixture) -> tuple[Tensor, Tensor]:
        low = torch.full((model.num_parameters,), -self.box, dtype=torch.float64)
        high = -low
        low[model.slices["log_sd"]], high[model.slices["log_sd"]] = math.log(self.least_sd), math.log(self.box)
        return low, high

    def _maximise(
        self,
        sample: Observations,
        theta: Tensor,
        replicates: Tensor,
        tolerance: float,
        max_steps: int,
        em_only: bool = False,
    ) -> FitResult:
        climb = Climb(sample, theta, replicates, self._bounds(sample.model))
        for step in range(max_steps + 1):
            climb.look(tolerance)
            if step == max_steps or bool(climb.done.all()):
                break
            climb.advance(em_only)
        return self._result(climb, tolerance)

    def _result(self, climb: Climb, tolerance: float) -> FitResult:
        converged, finite = climb.offset <= tolerance, climb.sums.log_likelihood.isfinite()
        reasons = zip(converged.tolist(), finite.tolist(), climb.stuck.tolist(), strict=True)
        return FitResult(
            climb.sample.model,
            climb.theta,
            torch.where(finite, -climb.sums.log_likelihood, torch.inf),
            converged,
            climb.on_bound().any(1),
            climb.steps,
            (climb.sums.score * climb.free()).norm(dim=1),
            climb.offset,
            tuple(_reason(*reason, self.max_steps) for reason in reasons),
        )


def _promising(objective: Tensor, replicates: Tensor, keep: int, margin: float) -> Tensor:
    """The best fits of every replicate: at most `keep` different ones, best first, within `margin` of the best."""
    order = objective.argsort(stable=True)
    order = order[replicates[order].argsort(stable=True)]
    value, owner = objective[order], replicates[order]
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    group = first.cumsum(0) - 1
    new = first | (value - value.roll(1) > SAME)
    count = new.cumsum(0)
    rank, behind = count - count[first][group], value - value[first][group]
    return order[new & (rank < keep) & (first | (behind < margin))]


def _reason(converged: bool, finite: bool, stuck: bool, max_steps: int) -> str:
    if converged:
        return "converged"
    if not finite:
        return "the likelihood is not finite at the start"
    return "no step raises the likelihood" if stuck else f"not converged in {max_steps} steps"
