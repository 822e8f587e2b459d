"""The numbers by which a batch of least-squares fits is judged: risks by quadrature, losses, efficiency."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moe_prompt.estimation.base import FitResult
from moe_prompt.measures.losses import VoronoiLoss
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset, Population
from moe_prompt.studies.kinds.cell_limits import CellLimits

FITTED = ("objective", "converged", "at_boundary", "steps", "gradient_norm", "offset")
Columns = dict[str, Tensor | None]


def rows_of(fit: FitResult, judged: Columns) -> list[dict[str, Any]]:
    """One row per replicate: judged numbers, how the fit ended, and its message."""
    columns = {**judged, **{name: getattr(fit, name) for name in FITTED}}
    return [
        {name: None if column is None else column[i].item() for name, column in columns.items()} | {"message": message}
        for i, message in enumerate(fit.message)
    ]


def risk_columns(population: Population, fit: FitResult, data: Dataset, first: Tensor, target: Dataset) -> Columns:
    """Excess risk of the fit and of its first start, and the truth's own misfit of the sample."""
    return {
        "excess_risk": risk(fit.model, fit.theta, target),
        "start_excess_risk": risk(fit.model, first, target),
        "objective_at_truth": misfit(population, data),
    }


def missed(fit: FitResult, at_truth: Tensor) -> Tensor:
    """Where the truth fits the data better than the estimate: not the global minimum."""
    return fit.objective > at_truth * (1 + 1e-9)


def exact_columns(population: Population, fit: FitResult, first: Tensor, limits: CellLimits, n: int) -> Columns:
    """Voronoi loss of the fit and of its first start, and n e' I e / p and |e|^2 where parameters are identified."""
    model, truth = fit.model, population.theta
    true = model.measure(truth)
    loss = VoronoiLoss(model.symmetry)
    columns: Columns = {
        "parameter_loss": loss(fit.measure, true),
        "start_parameter_loss": loss(model.measure(first), true),
    }
    if limits.information is None or model.symmetry.dimension(true) > 0:  # identified in other coordinates only
        return columns
    error = model.flatten(model.symmetry.align(fit.measure, true, atoms=True)) - truth
    quadratic = (error @ limits.information * error).sum(1) / limits.noise**2
    return columns | {"efficiency": n * quadratic / limits.parameters, "squared_error": error.square().sum(1)}


def projection_risk(fit: FitResult, projection: Tensor | None, target: Dataset) -> Tensor | None:
    """E |f_hat - f_projection|^2 in a misspecified cell."""
    if projection is None:
        return None
    projected = fit.model.mean(projection, target.x[0])
    return risk(fit.model, fit.theta, replace(target, y=projected[None]))


def misfit(population: Population, data: Dataset) -> Tensor:
    """The objective at the truth."""
    return 0.5 * (data.y - population.predict(data.x)).square().sum((1, 2))


def risk(model: RegressionModel, theta: Tensor, target: Dataset) -> Tensor:
    """E |f_theta - target|^2 by quadrature, one number per parameter vector."""
    prepared, y = model.prepare(target.x), target.y[0].mT
    errors = (model.at(one[None])(prepared)[0] - y for one in theta)
    weights = torch.tensor(1 / target.n) if target.weights is None else target.weights
    return torch.stack([(error.square().sum(0) * weights).sum() for error in errors])
