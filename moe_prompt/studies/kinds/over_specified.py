r"""Over-specified studies: least squares with more atoms than the truth has, and the law it is predicted to follow.

    D ~ n^{-1/2},    split error ~ n^{-1/4},    masses and first moments ~ n^{-1/2},    |f_hat - f_*| ~ n^{-1/2}

where sigma_2 > 0, with constants from :mod:`moe_prompt.theory.split_law`; where a family is not identifiable the split
error stays where least squares happens to stop, and the first moments alone are learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.starts import Initializer, Random
from moe_prompt.measures.losses import VoronoiLoss, first_moment_error, split_error
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.base import DATA, STARTS, Quantity, Relation, Study
from moe_prompt.studies.kinds import scoring
from moe_prompt.studies.kinds.relations import regression_relation
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.split_law import SplitLaw, split_law

SEARCH = 20_000  # observations whose fit costs as much as the search from random starts at the first rung
LAW = "predicted law of the split"
SPLIT, MOMENT = "split error  $t$", "masses and first moments"
FUNCTION, LOSS = r"$|\hat f-f_*|_{L_2}$", "Voronoi loss D"


@dataclass(frozen=True)
class OverLimits:
    """Constants of a cell: each multiplies its quantity's power of n."""

    parameters: int
    noise: float
    sigma_2: float | None = None
    joint_sigma_2: float | None = None
    split_constant: float | None = None
    loss_constant: float | None = None
    moment_constant: float | None = None
    function_constant: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, eq=False, kw_only=True)
class OverSpecifiedStudy(Study):
    """Every truth of L atoms fitted by its own family with L' = L + extra.

    `smooth` names the truths with sigma_2 > 0, whose splits have a law; the others' splits are not predicted. For the
    truths in `kinked`, whose experts have no second derivative, neither are first moments.
    """

    truths: Mapping[str, Population]
    extra: int = 1
    smooth: tuple[str, ...] = ()
    kinked: tuple[str, ...] = ()
    estimator: Estimator = field(default_factory=NewtonLeastSquares)
    starts: Initializer = field(default_factory=Random)
    nodes: int = 12**3

    columns = {  # noqa: RUF012 - not a field
        "parameter_loss": "REAL",  # Voronoi loss D
        "split_error": "REAL",  # of the cell where it is largest
        "first_moment_error": "REAL",
        "function_error": "REAL",  # |f_hat - f_*| in L2
        "least_mass": "REAL",  # of the fitted atoms
        "objective_at_truth": "REAL",
        "missed": "INTEGER",
        "escaped": "INTEGER",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.extra >= 1, f"study {self.name}: over-specified means at least one atom more: got {self.extra}.")
        unknown = {*self.smooth, *self.kinked} - set(self.truths)
        require(not unknown, f"study {self.name}: no truths {', '.join(sorted(unknown))} to be smooth or kinked.")

    def estimator_name(self, truth: str) -> str:
        return f"L' = {self.truths[truth].model.num_atoms + self.extra}"

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        return tuple((truth, self.estimator_name(truth)) for truth in self.truths)

    @property
    def content(self) -> Any:
        return (self.truths, self.extra, self.estimator, self.starts, self.seed, self.nodes)

    def title(self, truth: str, estimator: str) -> str:
        return truth

    def fitted(self, truth: str) -> RegressionModel:
        """The truth's family with `extra` atoms more."""
        own = self.truths[truth].model
        return own.with_atoms(own.num_atoms + self.extra)

    def relation(self, truth: str, estimator: str) -> Relation:
        population = self.truths[truth]
        return regression_relation(population.model, self.fitted(truth), population.family)

    def quantities(self, truth: str, estimator: str) -> tuple[Quantity, ...]:
        smooth, known = truth in self.smooth, truth not in self.kinked
        why = "no rate, as σ₂ = 0" if known else "no rate at a kink"
        quantity = partial(Quantity, prediction=LAW, why=why)
        return (
            quantity("parameter_loss", LOSS, -0.5 if smooth else None, "loss_constant", short="D"),
            quantity("split_error", SPLIT, -0.25 if smooth else None, "split_constant", short="split"),
            quantity("first_moment_error", MOMENT, -0.5 if known else None, "moment_constant", short="moments"),
            quantity("function_error", FUNCTION, -0.5, "function_constant", short="function"),
        )

    def cost(self, truth: str, estimator: str, n: int) -> float:
        return float((n + SEARCH) * (self.fitted(truth).num_parameters + 5) * self.extra)

    def limits(self, truth: str, estimator: str) -> OverLimits:
        population = self.truths[truth]
        s, p = population.noise, self.fitted(truth).num_parameters
        if truth not in self.smooth:
            return OverLimits(p, s)
        law: SplitLaw = split_law(LocalGeometry.of(population, self.nodes), self.extra)
        scaled = lambda constant: None if constant is None else s * constant  # noqa: E731
        return OverLimits(
            p,
            s,
            law.sigma_2,
            law.joint_sigma_2,
            s**0.5 * law.split,
            scaled(law.loss),
            scaled(law.moments),
            s * law.function,
        )

    def better(self, known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
        """The law's constants are those of this version's draws."""
        return True

    def fit_batch(
        self, truth: str, estimator: str, n: int, replicates: tuple[int, ...], limits: OverLimits
    ) -> list[dict[str, Any]]:
        population, model = self.truths[truth], self.fitted(truth)
        rngs = {stream: [self.rng(truth, n, r, stream) for r in replicates] for stream in (DATA, STARTS)}
        data = population.sample(n, rngs[DATA])
        fit = self.estimator.fit(model, data, self.starts.starts(model, None, rngs[STARTS]))
        true, at_truth = population.model.measure(population.theta), scoring.misfit(population, data)
        judged: scoring.Columns = {
            "parameter_loss": VoronoiLoss(model.symmetry)(fit.measure, true),
            "split_error": split_error(fit.measure, true, model.symmetry).amax(-1),
            "first_moment_error": first_moment_error(fit.measure, true, model.symmetry),
            "function_error": scoring.risk(model, fit.theta, population.noiseless(self.nodes)).sqrt(),
            "least_mass": fit.measure.weights.amin(-1),
            "objective_at_truth": at_truth,
            "missed": scoring.missed(fit, at_truth),
            "escaped": torch.zeros_like(fit.converged) if fit.escaped is None else fit.escaped,
        }
        return scoring.rows_of(fit, judged)
