"""What an estimator returns: a batch of fits as data, failures included; and the choice of the best start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from moe_prompt.measures.mixing_measure import MixingMeasure


@dataclass(frozen=True, eq=False)
class FitResult:
    """A batch of fits, theta (replicates, p); a fit that failed is a result too, with its reason in `message`."""

    model: Any  # what was fitted: has num_parameters and measure(theta)
    theta: Float64[Tensor, "replicates p"]
    objective: Float64[Tensor, "replicates"]  # 1/2 sum_i w_i |y_i - f(x_i)|^2, or minus the log-likelihood
    converged: Bool[Tensor, "replicates"]
    at_boundary: Bool[Tensor, "replicates"]
    steps: Int64[Tensor, "replicates"]  # of the last polish, where an estimator takes several
    gradient_norm: Float64[Tensor, "replicates"]
    offset: Float64[Tensor, "replicates"]  # relative offset: distance to the optimum in standard errors
    message: tuple[str, ...]
    escaped: Bool[Tensor, "replicates"] | None = None  # left a saddle on the way; None: the estimator does not look

    @property
    def measure(self) -> MixingMeasure:
        return self.model.measure(self.theta)

    def select(self, index: Int64[Tensor, "kept"]) -> FitResult:
        """Some of the fits, in the order of `index`."""
        picked: dict[str, Any] = {"model": self.model, "message": tuple(self.message[i] for i in index.tolist())}
        for name in {f.name for f in fields(self)} - set(picked):
            array = getattr(self, name)
            picked[name] = None if array is None else array[index]
        return FitResult(**picked)


class Estimator(ABC):
    """Fits a batch of replicates from given starts."""

    @abstractmethod
    def fit(self, model: Any, data: Any, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        """The best fit of every replicate over its starts."""


def best_of(result: FitResult, starts: int, keep: int) -> FitResult:
    """Of every `starts` consecutive problems the `keep` with the smallest objective, failed ones last."""
    objective = torch.where(result.objective.isfinite(), result.objective, torch.inf).unflatten(0, (-1, starts))
    order = objective.argsort(dim=1, stable=True)[:, :keep]
    return result.select((order + starts * torch.arange(len(order))[:, None]).flatten())


def distinct_best(result: FitResult, starts: int, keep: int, gap: Tensor) -> FitResult:
    """The same, but of fits whose objectives follow each other by less than `gap` (replicates,) only the first.

    Those are one minimum found several times; they fill up where there are too few others, before failed fits.
    """
    objective = torch.where(result.objective.isfinite(), result.objective, torch.inf).unflatten(0, (-1, starts))
    ordered, order = objective.sort(dim=1, stable=True)
    again = torch.nn.functional.pad(ordered.diff(dim=1) <= gap[:, None], (1, 0)) | ordered.isinf()
    order = order.gather(1, again.to(torch.int8).argsort(dim=1, stable=True))[:, :keep]
    return result.select((order + starts * torch.arange(len(order))[:, None]).flatten())
