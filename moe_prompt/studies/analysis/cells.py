"""The cells of a study with their rows, and what the rows of a cell say of each quantity.

Tables, captions, figures, plans and pages take cells, so that nothing is summarised twice. What takes time, the slopes
with their bootstrap errors, is computed when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from moe_prompt.studies.analysis.rate_fit import RateFit, errors_by_size, fit_rate
from moe_prompt.studies.base import Quantity, Relation, Study
from moe_prompt.studies.running.database import limits_note

Errors = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Ends:
    """How the fits of a cell ended."""

    fits: int
    failed: int  # not converged, or not finite
    at_boundary: int  # on the boundary of the parameter box
    missed: int | None  # the truth fits better than the estimate; None where the family lacks the truth


@dataclass(frozen=True)
class SizeSummary:
    """One quantity of a cell at one sample size."""

    n: int
    fits: int
    mean: float
    median: float
    quantile_10: float
    quantile_90: float
    over_prediction: float | None  # the quantity's statistic over constant * n^slope
    efficiency: float | None  # mean of n e' I e / p, the squared error over the Cramer-Rao bound in the bound's metric
    efficiency_stderr: float | None  # sqrt(2 / (p R)): its Monte Carlo error where the bound is reached
    mse_over_bound: float | None  # n E|e|^2 / (s^2 tr I^-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cell:
    """A truth and a contender: how the two are related, what theory predicts, and the rows of their fits.

    A quantity falls as error ~ constant * n^slope: `summaries` have the slope that was measured and the predicted one.
    """

    truth: str
    estimator: str
    title: str
    relation: Relation
    quantities: tuple[Quantity, ...]
    window: tuple[int, int]  # of the sizes on which slopes are fitted
    limits: Mapping[str, Any]
    rows: pd.DataFrame

    @cached_property
    def summaries(self) -> tuple[CellSummary, ...]:
        """One for each quantity."""
        return tuple(CellSummary(self, quantity) for quantity in self.quantities)

    def __getitem__(self, name: str) -> CellSummary:
        """The summary of the quantity of this name; KeyError where the cell has none."""
        return {summary.name: summary for summary in self.summaries}[name]

    @cached_property
    def ends(self) -> Ends:
        rows = self.rows
        failed = ~rows.converged.astype(bool) | ~np.isfinite(rows.objective)
        known = "missed" in rows and rows.missed.notna().any()
        return Ends(
            fits=len(rows),
            failed=int(failed.sum()),
            at_boundary=int(rows.at_boundary.sum()),
            missed=int(rows.missed.sum()) if known else None,
        )

    @property
    def floor(self) -> float | None:
        """Excess risk of the best approximation; None where the truth can be reached, or where it is not known."""
        return self.limits.get("floor") or None

    @cached_property
    def projection(self) -> RateFit | None:
        """How E|f_hat - f_projection|^2 falls, where there is a floor."""
        if self.floor is None or "projection_risk" not in self.rows:
            return None
        return fit_rate(errors_by_size(self.rows, "projection_risk"), self.window)


@dataclass(frozen=True, eq=False)
class CellSummary:
    """What the rows of a cell say of one quantity."""

    cell: Cell
    quantity: Quantity

    @property
    def name(self) -> str:
        return self.quantity.name

    @cached_property
    def errors(self) -> Errors:
        """n -> the finite values of all replicates."""
        return errors_by_size(self.cell.rows, self.quantity.column)

    @cached_property
    def mean_fit(self) -> RateFit | None:
        """The slope of the mean; None where fewer than two sizes of the window have one."""
        return fit_rate(self.errors, self.cell.window, "mean")

    @cached_property
    def median_fit(self) -> RateFit | None:
        return fit_rate(self.errors, self.cell.window, "median")

    @property
    def fit(self) -> RateFit | None:
        """The slope of the quantity's own statistic."""
        return self.median_fit if self.quantity.statistic == "median" else self.mean_fit

    @property
    def slope(self) -> float | None:
        return None if self.fit is None else self.fit.slope

    @property
    def stderr(self) -> float | None:
        """None for a single replicate."""
        return None if self.fit is None else self.fit.error

    @property
    def constant(self) -> float | None:
        """Theory predicts constant * n^slope of the quantity's statistic; None where it gives no such law."""
        quantity = self.quantity
        found = self.cell.limits.get(quantity.constant) if quantity.constant else None
        return None if not found or quantity.slope is None else float(found)

    def predicted(self, n: Any) -> Any:
        """constant * n^slope; only where there is a constant."""
        assert self.constant is not None and self.quantity.slope is not None
        return self.constant * n**self.quantity.slope

    @cached_property
    def by_size(self) -> tuple[SizeSummary, ...]:
        return tuple(self._at(int(n), group) for n, group in self.cell.rows.groupby("n"))

    @property
    def last(self) -> SizeSummary:
        """At the largest size."""
        return self.by_size[-1]

    @property
    def over_prediction(self) -> float | None:
        """The quantity's statistic at the largest size over what theory predicts there."""
        return self.last.over_prediction

    @property
    def over_floor(self) -> float | None:
        """The mean at the largest size over the floor."""
        return None if self.cell.floor is None else self.last.mean / self.cell.floor

    def _at(self, n: int, group: pd.DataFrame) -> SizeSummary:
        errors = group[self.quantity.column][np.isfinite(group[self.quantity.column])]
        low, middle, high = (float(q) for q in errors.quantile([0.1, 0.5, 0.9]))
        mean = float(errors.mean())
        statistic = middle if self.quantity.statistic == "median" else mean
        return SizeSummary(
            n=n,
            fits=len(group),
            mean=mean,
            median=middle,
            quantile_10=low,
            quantile_90=high,
            over_prediction=None if self.constant is None else float(statistic / self.predicted(n)),
            **_efficiency(n, group, self.cell.limits),
        )

    def to_dict(self) -> dict[str, Any]:
        """In the terms of JSON, flat: what is not a finite number is null."""
        cell, last = self.cell, self.last
        told = {
            "truth": cell.truth,
            "estimator": cell.estimator,
            "loss": self.name,
            "column": self.quantity.column,
            "label": self.quantity.label,
            **_slope("", self.fit),
            "predicted_slope": self.quantity.slope,
            "statistic": self.quantity.statistic,
            "over_prediction": self.over_prediction,
            **_slope("mean_", self.mean_fit),
            **_slope("median_", self.median_fit),
            "window": cell.window,
            "floor": cell.floor,
            "risk_over_floor": self.over_floor,
            **_slope("projection_", cell.projection),
            "efficiency": last.efficiency,
            "efficiency_stderr": last.efficiency_stderr,
            "leverage": cell.limits.get("leverage"),
            "by_size": [_finite(asdict(size)) for size in self.by_size],
            **asdict(cell.ends),
        }
        return _finite(told)


def cells_of(study: Study, rows: pd.DataFrame, notes: Mapping[str, Any]) -> tuple[Cell, ...]:
    """The cells of a study that have rows, (truth, contender) by (truth, contender).

    `rows` has one line for each fit; `notes` are those of the study's database or export.
    """
    found = []
    for truth, estimator in study.cells:
        own = rows[(rows.truth == truth) & (rows.estimator == estimator)]
        if len(own):
            cell = Cell(
                truth=truth,
                estimator=estimator,
                title=study.title(truth, estimator),
                relation=study.relation(truth, estimator),
                quantities=study.quantities(truth, estimator),
                window=study.window,
                limits=notes.get(limits_note(truth, estimator), {}),
                rows=own,
            )
            found.append(cell)
    return tuple(found)


def all_summaries(cells: Iterable[Cell]) -> list[CellSummary]:
    """Cell by cell, quantity by quantity."""
    return [summary for cell in cells for summary in cell.summaries]


def _efficiency(n: int, group: pd.DataFrame, limits: Mapping[str, Any]) -> dict[str, float | None]:
    """Squared errors over their bounds, where rows and limits tell."""
    found: dict[str, float | None] = dict.fromkeys(("efficiency", "efficiency_stderr", "mse_over_bound"))
    if "efficiency" in group and group.efficiency.notna().any():
        found["efficiency"] = float(group.efficiency.mean())
        if limits:
            found["efficiency_stderr"] = float(np.sqrt(2 / (limits["parameters"] * len(group))))
        if bound := limits.get("squared_error_constant"):
            found["mse_over_bound"] = float(n * group.squared_error.mean() / bound)
    return found


def _slope(prefix: str, fit: RateFit | None) -> dict[str, float | None]:
    slope, error = (None, None) if fit is None else (fit.slope, fit.error)
    return {f"{prefix}slope": slope, f"{prefix}stderr": error}


def _finite(told: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in told.items()}
