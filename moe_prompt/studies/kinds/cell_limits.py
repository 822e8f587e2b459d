r"""What each cell of a study tends to: the Cramer-Rao bound where the model holds the truth, the floor where not.

Matched cells: n Cov(theta_hat) -> s^2 I^{-1}, so E|f_hat - f_*|^2 -> p s^2 / n and the Voronoi loss, to first order a
sum of norms of the error, has the mean of that sum under N(0, s^2 I^{-1} / n). Mismatched cells: least squares tends
to the projection argmin_G E|f_G - f_*|^2 and its excess risk to the floor, the minimum, both by quadrature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.measures.losses import VoronoiLoss
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset, Population
from moe_prompt.theory.identifiability import cramer_rao
from moe_prompt.theory.local_geometry import LocalGeometry

SMALL = 1e-6  # size of the errors at which the loss is linear to rounding
FEW, KEPT = 2000, 12  # the projection's search: random starts on FEW points, the best KEPT of them on all nodes


@dataclass(frozen=True, eq=False)
class CellLimits:
    """The limits of one cell; constants multiply n^-1 (risk, squared error) and n^-1/2 (loss)."""

    parameters: int
    noise: float
    floor: float = 0.0
    projection: Tensor | None = None
    information: Tensor | None = None
    risk_constant: float | None = None
    loss_constant: float | None = None
    squared_error_constant: float | None = None  # s^2 tr I^-1
    leverage: float | None = None  # to second order the risk is (p s^2 / n) (1 + leverage / n)

    def to_dict(self) -> dict[str, Any]:
        """In the terms of JSON, without the information matrix, which the truth determines."""
        numbers = {k: v for k, v in vars(self).items() if k != "information"}
        return numbers | {"projection": None if self.projection is None else self.projection.tolist()}


def matched_limits(population: Population, nodes: int) -> CellLimits:
    """Limits where the family fitted is the truth's own, with as many atoms; no constants where f jumps in x."""
    model, noise = population.model, population.noise
    if model.mixing.jumps:
        return CellLimits(model.num_parameters, noise)
    geometry = LocalGeometry.of(population, nodes)
    matrix = geometry.information
    bound = cramer_rao(matrix, noise, n=1)
    p = model.num_parameters
    return CellLimits(
        p,
        noise,
        0.0,
        None,
        matrix,
        p * noise**2,
        loss_constant(population, bound),
        float(bound.trace()),
        _leverage(geometry),
    )


def loss_constant(population: Population, covariance: Tensor) -> float:
    """The mean Voronoi loss of small errors, relative to their size, under N(0, covariance)."""
    model, theta = population.model, population.theta
    values, vectors = torch.linalg.eigh(covariance)
    draws = torch.from_numpy(np.random.default_rng(0).standard_normal((2000, len(theta))))
    errors = draws * values.clamp(min=0).sqrt() @ vectors.mT
    step = SMALL / float(errors.norm(dim=1).mean())
    return float(VoronoiLoss(model.symmetry)(model.measure(theta + step * errors), model.measure(theta)).mean()) / step


def _leverage(geometry: LocalGeometry) -> float:
    """E|J I^{-1} J'|_F^2 / p: how unevenly the covariates carry the information.

    A sample's own information J'J scatters about n I, and the mean of its inverse exceeds I^{-1} / n by the factor
    1 + leverage / n to second order: rare, informative covariates make a bound that small samples do not reach.
    """
    inverse = torch.linalg.pinv(geometry.information, hermitian=True)
    hat = geometry.jacobian @ inverse @ geometry.jacobian.mT
    return float(geometry.nodes[1] @ hat.square().sum((1, 2))) / len(inverse)


def projection_limits(
    population: Population, model: RegressionModel, solver: LeastSquares, nodes: int, count: int, seed: int
) -> CellLimits:
    """Limits where another family is fitted: its best approximation of the truth, sought from `count` random starts."""
    clean, rng = replace(population, noise=0.0), np.random.default_rng(seed)
    few = clean.sample(FEW, [rng])
    starts = Random(count=count).draw(model, None, rng)
    repeated = Dataset(few.x.expand(len(starts), -1, -1), few.y.expand(len(starts), -1, -1))
    found = replace(solver, tolerance=1e-3).fit(model, repeated, starts[:, None])
    candidates = found.theta[found.objective.nan_to_num(nan=torch.inf).argsort()[:KEPT]]
    best = solver.fit(model, clean.noiseless(nodes), candidates[None])
    return CellLimits(model.num_parameters, population.noise, 2 * float(best.objective[0]), best.theta[0])
