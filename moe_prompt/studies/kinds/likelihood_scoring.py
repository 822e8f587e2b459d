r"""What likelihood fits are judged by, in the two models of the literature.

Contaminated (arXiv 2505.18455): the errors of beta, tau or exp(tau), eta and nu. Softmax-gated Gaussian experts
(arXiv 2305.03288): the Voronoi loss, the Hellinger distance of the densities and, where the numbers of experts agree,
the errors of the gate, the means and the variances under the best labelling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from moe_prompt.estimation.base import FitResult
from moe_prompt.likelihood.cramer_rao import bound_at, power_law
from moe_prompt.likelihood.losses import HellingerDistance, SoftmaxVoronoiLoss
from moe_prompt.likelihood.models import ContaminatedMoE, GatedMixture, GaussianMoE
from moe_prompt.likelihood.population import MixturePopulation
from moe_prompt.studies.base import Limits, Quantity
from moe_prompt.studies.kinds.likelihood import Judge, Numbers
from moe_prompt.studies.kinds.scoring import Columns

BOUND = "Cramér-Rao prediction"
ERRORS = {
    "beta_error": r"$|\hat\beta-\beta_*|$",
    "tau_error": r"$|\hat\tau-\tau_*|$",
    "exp_tau_error": r"$|e^{\hat\tau}-e^{\tau_*}|$",
    "eta_error": r"$|\hat\eta-\eta_*|$",
    "nu_error": r"$|\hat\nu-\nu_*|$",
}


@dataclass(frozen=True)
class ContaminatedJudge(Judge):
    """Errors of the named parameters.

    `slopes` maps a truth to the exponent predicted for each column looked at; `medians` are the truths of which the
    median error is, where the mean is one of the few fits on the boundary.
    """

    slopes: Mapping[str, Mapping[str, float]]
    medians: tuple[str, ...] = ()

    columns = dict.fromkeys(ERRORS, "REAL")

    @property
    def content(self) -> Any:
        return "errors of beta, tau, eta, nu"

    def judge(self, population: MixturePopulation, fit: FitResult, first: Tensor) -> Columns:
        return dict(_errors(population, fit.theta))

    def quantities(self, truth: str, model: GatedMixture, population: MixturePopulation) -> tuple[Quantity, ...]:
        return tuple(
            Quantity(
                column,
                ERRORS[column],
                slope,
                column.replace("error", "constant"),
                self._statistic(truth),
                short=column.removesuffix("_error"),
                prediction=BOUND,
            )
            for column, slope in self.slopes[truth].items()
        )

    def limits(self, truth: str, model: GatedMixture, populations: Mapping[int, MixturePopulation]) -> Limits:
        """The bound's constants at the predicted exponents, and the exponents that it has by itself."""
        found: dict[str, Any] = {"parameters": model.num_parameters}
        bounds = {n: bound_at(p, n, partial(_errors, p), self._statistic(truth)) for n, p in populations.items()}
        for column, slope in self.slopes[truth].items():
            own = {n: bound[column] for n, bound in bounds.items()}
            found[column.replace("error", "constant")] = power_law(own, slope)[1]
            found[column.replace("error", "bound_slope")] = power_law(own)[0]
        return Numbers(found)

    def _statistic(self, truth: str) -> str:
        return "median" if truth in self.medians else "mean"


def _errors(population: MixturePopulation, theta: Tensor) -> dict[str, Tensor]:
    model = population.model
    assert isinstance(model, ContaminatedMoE)
    found, true = model.named(theta), model.named(population.theta)
    size = lambda error: error.reshape(len(theta), -1).norm(dim=1)  # noqa: E731
    errors = {f"{name}_error": size(found[name] - true[name]) for name in true}
    return errors | {"exp_tau_error": size(found["tau"].exp() - true["tau"].exp())}


@dataclass(frozen=True)
class SoftmaxGaussianJudge(Judge):
    """Voronoi loss and Hellinger distance; parameter errors where as many experts are fitted as there are."""

    nodes: int = 128
    values: int = 512

    columns = dict.fromkeys(
        ("voronoi_loss", "start_voronoi_loss", "hellinger", "gate_error", "mean_error", "variance_error"), "REAL"
    )

    @property
    def content(self) -> Any:
        return (self.nodes, self.values)

    def judge(self, population: MixturePopulation, fit: FitResult, first: Tensor) -> Columns:
        model, loss = population.model, SoftmaxVoronoiLoss()
        assert isinstance(model, GaussianMoE)
        true = model.measure(population.theta)
        distance = HellingerDistance(model, population.theta, population.covariates, self.nodes, self.values)
        columns: Columns = {
            "voronoi_loss": loss(fit.measure, true),
            "start_voronoi_loss": loss(fit.model.measure(first), true),
            "hellinger": distance(fit.model, fit.theta),
        }
        exact = fit.model.num_experts == model.num_experts
        return columns | (_aligned_errors(model, population.theta, fit.theta) if exact else {})

    def quantities(self, truth: str, model: GatedMixture, population: MixturePopulation) -> tuple[Quantity, ...]:
        exact = model.num_experts == population.model.num_experts
        constant = lambda name: f"{name}_constant" if exact else None  # noqa: E731
        return tuple(
            Quantity(column, label, -0.5, constant(column), "median", short, BOUND if exact else "prediction")
            for column, label, short in (
                ("voronoi_loss", "Voronoi loss D", "voronoi"),
                ("hellinger", "Hellinger distance H", "hellinger"),
            )
        )

    def limits(self, truth: str, model: GatedMixture, populations: Mapping[int, MixturePopulation]) -> Limits:
        """Constants of the median errors where the experts are as many as in the truth; else none is known."""
        population = next(iter(populations.values()))
        own, found = population.model, {"parameters": model.num_parameters}
        if model.num_experts != own.num_experts:
            return Numbers(found)
        assert isinstance(own, GaussianMoE)
        true, loss = own.measure(population.theta), SoftmaxVoronoiLoss()
        bound = bound_at(population, 1, lambda theta: {"D": loss(own.measure(theta), true)}, "median")
        square = float(chi2.median(model.num_parameters)) / 8  # 8 n H^2 -> chi square with p degrees of freedom
        return Numbers(found | {"voronoi_loss_constant": bound["D"], "hellinger_constant": math.sqrt(square)})


def _aligned_errors(model: GaussianMoE, truth: Tensor, theta: Tensor) -> Columns:
    """Errors of the parameter blocks under the labelling with the least sum of squares."""
    orders = list(itertools.permutations(range(model.num_experts)))
    copies = torch.stack([model.relabel(theta, order) for order in orders])
    best = (copies - truth).square().sum(2).argmin(0)
    found, true = model.unflatten(copies[best, torch.arange(len(theta))]), model.unflatten(truth)
    size = lambda error: error.reshape(len(theta), -1).norm(dim=1)  # noqa: E731
    return {
        "gate_error": size(found["gate"] - true["gate"]),
        "mean_error": size(found["mean"] - true["mean"]),
        "variance_error": size((2 * found["log_sd"]).exp() - (2 * true["log_sd"]).exp()),
    }
