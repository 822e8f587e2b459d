r"""Rate studies of least squares: every truth fitted by every contender, and how fast an error falls with n."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import Initializer, Random
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.base import DATA, STARTS, Quantity, Relation, Study
from moe_prompt.studies.kinds import scoring
from moe_prompt.studies.kinds.cell_limits import CellLimits, matched_limits, projection_limits
from moe_prompt.studies.kinds.relations import regression_relation

SEARCH = 50_000  # observations whose fit costs as much as the search from random starts at the first rung
RISK = r"excess risk  E$|\hat f-f_*|^2$"
BOUND = "Cramér-Rao prediction"
MATCHED = (
    Quantity("parameter_loss", "parameter loss D", -0.5, "loss_constant", short="parameter", prediction=BOUND),
    Quantity("excess_risk", RISK, -1.0, "risk_constant", prediction=BOUND),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class RateStudy(Study):
    """Error of least squares against n, error ~ constant * n^slope, for every truth and every contender.

    Without `contenders` every truth is fitted by its own model. A cell is matched where the contender's model is the
    truth's: the same family, exact-specified. `nodes` is the size of the quadrature for expectations under the
    covariates, `projection_starts` the number of starts from which the best approximation of a truth by another family
    is sought.
    """

    truths: Mapping[str, Population]
    contenders: Mapping[str, RegressionModel] = field(default_factory=dict)
    estimator: Estimator = field(default_factory=LeastSquares)
    starts: Initializer = field(default_factory=Random)
    nodes: int = 12**4
    projection_starts: int = 256

    columns = {  # noqa: RUF012 - not a field
        "excess_risk": "REAL",  # E |f_hat - f_*|^2
        "projection_risk": "REAL",  # E |f_hat - f_projection|^2, misspecified cells
        "parameter_loss": "REAL",  # Voronoi loss D, matched cells
        "efficiency": "REAL",  # n e' I e / p, matched cells
        "squared_error": "REAL",  # |e|^2, matched cells
        "start_excess_risk": "REAL",  # the same losses at the first of the starts
        "start_parameter_loss": "REAL",
        "objective_at_truth": "REAL",
        "missed": "INTEGER",  # the truth fits better than the estimate: not the global minimum
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.contenders:
            object.__setattr__(self, "contenders", {name: truth.model for name, truth in self.truths.items()})
        for name, model in self.contenders.items():
            require(
                name not in self.truths or self.matched(name, name),
                f"study {self.name}: truth and estimator of one name are a matched cell and need the same model; "
                f"those named {name} differ, rename one.",
            )
            least = model.num_parameters
            require(
                min(self.sizes) >= least,
                f"study {self.name}: estimator {name} has {model.num_parameters} parameters and needs "
                f"n >= {least}; got n = {min(self.sizes)}, raise the smallest size.",
            )

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        return tuple((truth, estimator) for truth in self.truths for estimator in self.contenders)

    @property
    def content(self) -> Any:
        return (self.truths, self.contenders, self.estimator, self.starts, self.seed, self.nodes)

    def quick(self) -> RateStudy:
        return replace(super().quick(), projection_starts=min(64, self.projection_starts))

    def relation(self, truth: str, estimator: str) -> Relation:
        population = self.truths[truth]
        return regression_relation(population.model, self.contenders[estimator], population.family)

    def matched(self, truth: str, estimator: str) -> bool:
        return self.relation(truth, estimator).exact

    def quantities(self, truth: str, estimator: str) -> tuple[Quantity, ...]:
        return (
            MATCHED
            if self.matched(truth, estimator)
            else (Quantity("excess_risk", RISK, why="no rate: another model"),)
        )

    def cost(self, truth: str, estimator: str, n: int) -> float:
        return float((n + SEARCH) * (self.contenders[estimator].num_parameters + 5))

    def limits(self, truth: str, estimator: str) -> CellLimits:
        population = self.truths[truth]
        if self.matched(truth, estimator):
            return matched_limits(population, self.nodes)
        solver = self.estimator if isinstance(self.estimator, LeastSquares) else LeastSquares()
        model = self.contenders[estimator]
        return projection_limits(population, model, solver, self.nodes, self.projection_starts, self.seed)

    def better(self, known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
        """A search finds an upper bound of the floor."""
        return found["floor"] <= known["floor"]

    def fit_batch(
        self, truth: str, estimator: str, n: int, replicates: tuple[int, ...], limits: CellLimits
    ) -> list[dict[str, Any]]:
        population, model = self.truths[truth], self.contenders[estimator]
        rngs = {stream: [self.rng(truth, n, r, stream) for r in replicates] for stream in (DATA, STARTS)}
        data, matched = population.sample(n, rngs[DATA]), self.matched(truth, estimator)
        starts = self.starts.starts(model, population.theta if matched else None, rngs[STARTS])
        fit, first = self.estimator.fit(model, data, starts), starts[:, 0]
        target = population.noiseless(self.nodes)
        columns = dict.fromkeys(self.columns) | scoring.risk_columns(population, fit, data, first, target)
        if matched:
            columns |= scoring.exact_columns(population, fit, first, limits, n)
            columns["missed"] = scoring.missed(fit, scoring.misfit(population, data))
        else:
            columns["projection_risk"] = scoring.projection_risk(fit, limits.projection, target)
        return scoring.rows_of(fit, columns)
