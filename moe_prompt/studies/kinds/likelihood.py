r"""Studies of maximum likelihood in latent mixtures: every truth fitted by every contender.

A truth may move with the sample size: it is a function of n. What a fit is judged by belongs to the study.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator, FitResult
from moe_prompt.likelihood.expectation_maximization import ExpectationMaximization
from moe_prompt.likelihood.models import GatedMixture
from moe_prompt.likelihood.population import MixturePopulation
from moe_prompt.likelihood.starts import MixtureStarts
from moe_prompt.studies.base import DATA, STARTS, Limits, Quantity, Relation, Study
from moe_prompt.studies.kinds.relations import mixture_relation
from moe_prompt.studies.kinds.scoring import Columns, rows_of

SEARCH = 30_000  # observations whose fit costs as much as the search from random starts at the first rung


class Truth(ABC):
    """Where data of size n come from."""

    @abstractmethod
    def at(self, n: int) -> MixturePopulation:
        """The population of samples of size n."""


@dataclass(frozen=True, eq=False)
class Fixed(Truth):
    """One population for every n."""

    population: MixturePopulation

    def at(self, n: int) -> MixturePopulation:
        return self.population


@dataclass(frozen=True, eq=False)
class Contender:
    """Who fits: a model (None: the truth's own), from where, and how."""

    starts: MixtureStarts
    model: GatedMixture | None = None
    estimator: Estimator = field(default_factory=ExpectationMaximization)

    def fitted(self, truth: Truth, n: int) -> GatedMixture:
        return truth.at(n).model if self.model is None else self.model


class Judge(ABC):
    """What a fit is judged by, and what theory says of it."""

    columns: Mapping[str, str]

    @property
    @abstractmethod
    def content(self) -> Any:
        """What a judged number depends on beside the fit."""

    @abstractmethod
    def judge(self, population: MixturePopulation, fit: FitResult, first: Tensor) -> Columns:
        """Judged numbers (replicates,) by name; `first` (replicates, p) are the first starts."""

    @abstractmethod
    def quantities(self, truth: str, model: GatedMixture, population: MixturePopulation) -> tuple[Quantity, ...]:
        """The numbers whose fall with n is looked at when `model` is fitted."""

    @abstractmethod
    def limits(self, truth: str, model: GatedMixture, populations: Mapping[int, MixturePopulation]) -> Limits:
        """What theory predicts, from the populations at some sizes."""


@dataclass(frozen=True)
class Numbers:
    """Limits that are numbers with names."""

    values: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.values)


@dataclass(frozen=True, eq=False, kw_only=True)
class LikelihoodStudy(Study):
    """Error of maximum likelihood against n, error ~ constant * n^slope, for every truth and every contender."""

    truths: Mapping[str, Truth]
    contenders: Mapping[str, Contender]
    judge: Judge
    counted: str = ""  # what truths and contenders are numbers of, in titles

    def __post_init__(self) -> None:
        super().__post_init__()
        for truth, estimator in self.cells:
            least = self._model(truth, estimator).num_parameters
            require(
                min(self.sizes) >= least,
                f"study {self.name}: estimator {estimator} has {least} parameters on {truth} and needs n >= {least}; "
                f"got n = {min(self.sizes)}, raise the smallest size.",
            )

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        return tuple((truth, estimator) for truth in self.truths for estimator in self.contenders)

    @property
    def content(self) -> Any:
        return (self.truths, self.contenders, self.judge.content, self.seed)

    def title(self, truth: str, estimator: str) -> str:
        return f"{estimator} {self.counted} fitted to {truth}" if self.counted else f"maximum likelihood, {truth}"

    @property
    def columns(self) -> Mapping[str, str]:
        """The judge's, minus the log-likelihood at the truth, and whether that is less than at the estimate."""
        return {**self.judge.columns, "objective_at_truth": "REAL", "missed": "INTEGER"}

    def _model(self, truth: str, estimator: str) -> GatedMixture:
        return self.contenders[estimator].fitted(self.truths[truth], self.sizes[0])

    def relation(self, truth: str, estimator: str) -> Relation:
        return mixture_relation(self.truths[truth].at(self.sizes[0]).model, self._model(truth, estimator))

    def quantities(self, truth: str, estimator: str) -> tuple[Quantity, ...]:
        population = self.truths[truth].at(self.sizes[0])
        return self.judge.quantities(truth, self._model(truth, estimator), population)

    def limits(self, truth: str, estimator: str) -> Limits:
        low, high = self.window
        sizes = sorted({round(low * (high / low) ** (k / 4)) for k in range(5)})
        populations = {n: self.truths[truth].at(n) for n in sizes}
        return self.judge.limits(truth, self._model(truth, estimator), populations)

    def cost(self, truth: str, estimator: str, n: int) -> float:
        return float((n + SEARCH) * self._model(truth, estimator).num_parameters ** 2)

    def fit_batch(
        self, truth: str, estimator: str, n: int, replicates: tuple[int, ...], limits: Any
    ) -> list[dict[str, Any]]:
        population, contender = self.truths[truth].at(n), self.contenders[estimator]
        rngs = {stream: [self.rng(truth, n, r, stream) for r in replicates] for stream in (DATA, STARTS)}
        data, model = population.sample(n, rngs[DATA]), contender.fitted(self.truths[truth], n)
        starts = contender.starts.starts(model, population, n, rngs[STARTS])
        fit = contender.estimator.fit(model, data, starts)
        true = population.theta.expand(len(replicates), -1)
        at_truth = -population.model.log_density(true, data.x, data.y).sum(1)
        columns = {"objective_at_truth": at_truth, "missed": fit.objective > at_truth + 1e-9 * (at_truth.abs() + n)}
        judged = self.judge.judge(population, fit, starts[:, 0])
        return rows_of(fit, {**dict.fromkeys(self.columns), **judged, **columns})
