r"""EM with the stopping rule of the public code of arXiv 2305.03288, for comparison with our fits.

    stop if |L_t - L_{t-1}| <= 1e-6 |L_{t-1}|, or after 2000 iterations

The M-steps are exact: weighted least squares for the experts, Newton's method until it converges for the gate. If the
likelihood is flat, as with more experts than the truth has, this rule stops near the start and far from the maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator, FitResult, best_of
from moe_prompt.likelihood.louis_information import CHUNK, Observations, Sums
from moe_prompt.likelihood.m_steps import FLAT, gate_maximum, positive_solve, scoring_step
from moe_prompt.likelihood.models import GatedMixture, GaussianMoE
from moe_prompt.models.sampling import Dataset


@dataclass(frozen=True)
class PublishedEM(Estimator):
    """EM from several starts; the fit of largest likelihood is returned.

    `converged` is true if the published stopping rule ended the fit. `offset` measures the distance from a maximum in
    standard errors. Raises InputError for other models than Gaussian mixtures of experts.
    """

    tolerance: float = 1e-6
    max_steps: int = 2000

    def fit(self, model: GatedMixture, data: Dataset, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        require(
            isinstance(model, GaussianMoE),
            f"the published EM fits Gaussian mixtures of experts: got {type(model).__name__}.",
        )
        sample, theta = Observations(model, data.x, data.y), starts.flatten(0, 1).clone()
        replicates = torch.arange(len(starts)).repeat_interleave(starts.shape[1])
        sums = sample.sums(theta, replicates)
        active, converged = sums.finite(), torch.zeros(len(theta), dtype=torch.bool)
        previous, steps = torch.full_like(sums.log_likelihood, torch.nan), torch.zeros(len(theta), dtype=torch.int64)
        for _ in range(self.max_steps):
            k = active.nonzero()[:, 0]
            if len(k) == 0:
                break
            previous[k] = torch.where(
                steps[k] == 0, torch.nan, sums.log_likelihood[k]
            )  # the first step has nothing to compare with
            theta[k] += self._step(sample, theta[k], sums.of(k), replicates[k])
            sums.put(k, sample.sums(theta[k], replicates[k]))
            steps[k] += 1
            change = (sums.log_likelihood - previous).abs()[k]
            converged[k] = change <= self.tolerance * previous[k].abs()
            active[k] = ~converged[k] & sums.finite()[k]
        return best_of(self._result(sample, theta, sums, converged, steps), starts.shape[1], 1)

    def _step(self, sample: Observations, theta: Tensor, sums: Sums, replicates: Tensor) -> Tensor:
        """The full M-step: a scoring step, exact for experts, whose gate part is replaced by the gate's maximum."""
        model, where = sample.model, sample.model.slices["gate"]
        step = scoring_step(model, sums, torch.ones_like(theta, dtype=torch.bool))
        together = max(1, CHUNK // sample.n)
        for first in range(0, len(theta) if model.num_gates else 0, together):
            some = slice(first, first + together)
            gates = model.unflatten(theta[some])["gate"]
            r, monomials = sample.responsibilities(theta[some], replicates[some])
            step[some, where] = (gate_maximum(gates, r, monomials) - gates).flatten(1)
        return step

    def _result(self, sample: Observations, theta: Tensor, sums: Sums, converged: Tensor, steps: Tensor) -> FitResult:
        free = torch.ones_like(theta, dtype=torch.bool)
        newton = positive_solve(sums.observed, sums.complete, FLAT, sums.score, free)
        offset = ((sums.score * newton).sum(1).clamp(min=0) / theta.shape[1]).sqrt().nan_to_num(nan=torch.inf)
        return FitResult(
            sample.model,
            theta,
            torch.where(sums.finite(), -sums.log_likelihood, torch.inf),
            converged,
            torch.zeros_like(converged),
            steps,
            sums.score.norm(dim=1),
            offset,
            tuple(self._reason(*ends) for ends in zip(converged.tolist(), sums.finite().tolist(), strict=True)),
        )

    def _reason(self, converged: bool, finite: bool) -> str:
        if converged:
            return "converged"
        return f"not converged in {self.max_steps} steps" if finite else "the likelihood is not finite any more"
