r"""Rates under a gate that chooses one prompt of two: what the choice tells of theta is learned at 1/n.

f jumps where s_1 + b_1 = s_2 + b_2, a hyperplane w'(1, x) = 0 whose w is linear in theta. With q = dim x independent
directions of theta that turn or shift it,

    |w_hat / |w_hat| - w_* / |w_*||                  n^{-1}      no constant: the minimum of a compound Poisson process
    E[ |f_hat - f_*|^2; both choose alike ]           n^{-1}      (p - q) s^2
    D                                                n^{-1/2}    from s^2 N (N' I N)^{-1} N', N what leaves it in place

the last two as if the hyperplane were known. While n^{-1/2} still tells more of the hyperplane than the jumps do, its
error falls as n^{-1/2}: the more noise, the sooner n^{-1} is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import jacrev

from moe_prompt.attention.gates import TopKGate
from moe_prompt.attention.prompts import ConstantPrompt
from moe_prompt.errors import require
from moe_prompt.estimation.base import FitResult
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset, Population
from moe_prompt.studies.base import DATA, STARTS, Quantity
from moe_prompt.studies.kinds import scoring
from moe_prompt.studies.kinds.cell_limits import CellLimits, loss_constant
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.theory.local_geometry import LocalGeometry

KNOWN = "bound where the boundary is known"
QUANTITIES = (
    Quantity("boundary_error", "error of the boundary", -1.0, short="boundary", statistic="median"),
    Quantity("parameter_loss", "parameter loss D", -0.5, "loss_constant", short="parameter", prediction=KNOWN),
    Quantity("common_risk", r"E[$|\hat f-f_*|^2$; same choice]", -1.0, "risk_constant", prediction=KNOWN),
)


def boundary(model: RegressionModel, theta: Float64[Tensor, "*batch p"]) -> Float64[Tensor, "*batch q"]:
    """w / |w|: the hyperplane on which two prompts score alike; turned round where the prompts are exchanged."""
    b, blocks = model.unflatten(theta)
    w = torch.cat([b.diff(dim=-1), (blocks["p"].diff(dim=-2) @ model.key_map.mT)[..., 0, :]], -1)
    return w / w.norm(dim=-1, keepdim=True)


def known_boundary(population: Population, nodes: int) -> CellLimits:
    """What n^{-1} and n^{-1/2} are multiplied by if the hyperplane is known."""
    model, theta, noise = population.model, population.theta, population.noise
    turns = jacrev(lambda t: boundary(model, t))(theta)
    _, values, right = torch.linalg.svd(turns)
    still = right[int((values > 1e-9 * values[0]).sum()) :].mT
    matrix = still.mT @ LocalGeometry.of(population, nodes).information @ still
    covariance = noise**2 * still @ torch.linalg.inv(matrix) @ still.mT
    count = still.shape[1]
    return CellLimits(count, noise, risk_constant=count * noise**2, loss_constant=loss_constant(population, covariance))


@dataclass(frozen=True, eq=False, kw_only=True)
class ChoiceStudy(RateStudy):
    """Truths fitted by their own families, VPT with two prompts of which the gate takes one."""

    nodes: int = 40**3

    columns = RateStudy.columns | {"boundary_error": "REAL", "common_risk": "REAL"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, model in self.contenders.items():
            gate = model.gate
            require(
                isinstance(gate, TopKGate) and gate.k == 1 and model.num_atoms == 2 and name in self.truths
                and isinstance(model.expert, ConstantPrompt),
                f"study {self.name}: a boundary is between two prompts (VPT) of which a top-1 gate takes one, and the "
                f"truth is of the same family; {name} is not.",
            )  # fmt: skip

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, name) for name in self.contenders)

    def quantities(self, truth: str, estimator: str) -> tuple[Quantity, ...]:
        return QUANTITIES

    def limits(self, truth: str, estimator: str) -> CellLimits:
        return known_boundary(self.truths[truth], self.nodes)

    def fit_batch(
        self, truth: str, estimator: str, n: int, replicates: tuple[int, ...], limits: CellLimits
    ) -> list[dict[str, Any]]:
        population, model = self.truths[truth], self.contenders[estimator]
        rngs = {stream: [self.rng(truth, n, r, stream) for r in replicates] for stream in (DATA, STARTS)}
        data = population.sample(n, rngs[DATA])
        starts = self.starts.starts(model, None, rngs[STARTS])
        fit, target = self.estimator.fit(model, data, starts), population.noiseless(self.nodes)
        judged = scoring.risk_columns(population, fit, data, starts[:, 0], target)
        judged |= scoring.exact_columns(population, fit, starts[:, 0], limits, n) | judge(population, fit, target)
        judged["missed"] = scoring.missed(fit, scoring.misfit(population, data))
        return scoring.rows_of(fit, dict.fromkeys(self.columns) | judged)


def judge(population: Population, fit: FitResult, target: Dataset) -> scoring.Columns:
    """The hyperplane's error, and the risk where estimate and truth choose alike, whatever the prompts' order."""
    model, weights = population.model, target.weights
    assert weights is not None
    x = torch.cat([torch.ones_like(target.x[0, :, :1]), target.x[0]], 1)
    found, true = boundary(model, fit.theta), boundary(model, population.theta)
    turned = found @ true < 0
    found = torch.where(turned[:, None], -found, found)
    alike = (found @ x.mT > 0) == (x @ true > 0)
    risks = [
        (weights * same * (model.mean(theta, target.x[0]) - target.y[0]).square().sum(1)).sum()
        for theta, same in zip(fit.theta, alike, strict=True)
    ]
    return {"boundary_error": (found - true).norm(dim=1), "common_risk": torch.stack(risks)}
