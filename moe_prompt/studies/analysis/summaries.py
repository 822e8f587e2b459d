"""From rows to findings: slopes with errors, what was measured over what was predicted, floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from moe_prompt.studies.analysis.rate_fit import RateFit, fit_rate
from moe_prompt.studies.base import Quantity, Study
from moe_prompt.tables import aligned

Limits = Mapping[str, Any]


@dataclass(frozen=True)
class CellSummary:
    """One cell under one loss. Slopes are None where fewer than two sizes of the window have rows."""

    truth: str
    estimator: str
    loss: str
    column: str  # of the rows
    label: str  # on an axis
    slope: float | None  # of the mean, or of the median where `statistic` says so
    stderr: float | None
    predicted_slope: float | None  # None: a floor is predicted, or nothing
    statistic: str
    over_prediction: float | None  # that statistic at the largest size over constant * n^slope, where there is one
    mean_slope: float | None
    mean_stderr: float | None
    median_slope: float | None
    median_stderr: float | None
    window: tuple[int, int]
    floor: float | None  # excess risk of the projection, mismatched cells
    risk_over_floor: float | None  # mean excess risk at the largest size / floor
    projection_slope: float | None  # of E|f_hat - f_projection|^2, mismatched cells
    projection_stderr: float | None
    efficiency: float | None  # mean of n e' I e / p at the largest size
    efficiency_stderr: float | None  # sqrt(2 / (p R)): its Monte Carlo error where the bound is reached
    leverage: float | None
    by_size: list[dict[str, Any]] = field(default_factory=list)
    fits: int = 0
    failed: int = 0  # not converged, or not finite
    at_boundary: int = 0
    missed: int | None = None  # the truth fits better than the estimate; None where the family lacks the truth

    @property
    def matched(self) -> bool:
        return self.truth == self.estimator

    def to_dict(self) -> dict[str, Any]:
        """In the terms of JSON: what is not a finite number is null."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def summarize(study: Study, rows: pd.DataFrame, notes: Mapping[str, Any]) -> list[CellSummary]:
    """Every cell and quantity that has rows."""
    cells = []
    for truth, estimator in study.cells:
        own = rows[(rows.truth == truth) & (rows.estimator == estimator)]
        limits = notes.get(f"limits {truth} {estimator}", {})
        if len(own):
            cells += [_cell(study, own, limits, q) for q in study.quantities(truth, estimator)]
    return cells


def by_size(rows: pd.DataFrame, column: str) -> dict[int, np.ndarray]:
    """n -> finite values of a column."""
    return {int(n): group.to_numpy(float) for n, group in rows[np.isfinite(rows[column])].groupby("n")[column]}


def _cell(study: Study, rows: pd.DataFrame, limits: Limits, quantity: Quantity) -> CellSummary:
    errors = by_size(rows, quantity.column)
    fits = {statistic: fit_rate(errors, study.window, statistic) for statistic in ("mean", "median")}
    floor = limits.get("floor") or None  # matched cells have a floor of zero
    projected = "projection_risk" in rows and floor is not None
    sizes = _sizes(rows, limits, quantity)
    last = sizes[-1]
    return CellSummary(
        str(rows.truth.iloc[0]),
        str(rows.estimator.iloc[0]),
        quantity.name,
        quantity.column,
        quantity.label,
        *_pair(fits[quantity.statistic]),
        quantity.slope,
        quantity.statistic,
        last["over_prediction"],
        *_pair(fits["mean"]),
        *_pair(fits["median"]),
        study.window,
        floor,
        last["mean"] / floor if floor else None,
        *_pair(fit_rate(by_size(rows, "projection_risk"), study.window) if projected else None),
        last["efficiency"],
        last["efficiency_stderr"],
        limits.get("leverage"),
        sizes,
        len(rows),
        int((~rows.converged.astype(bool) | ~np.isfinite(rows.objective)).sum()),
        int(rows.at_boundary.sum()),
        int(rows.missed.sum()) if "missed" in rows and rows.missed.notna().any() else None,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [{name: _finite(number) for name, number in entry.items()} for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _pair(fit: RateFit | None) -> tuple[float | None, float | None]:
    return (None, None) if fit is None else (fit.slope, fit.stderr if np.isfinite(fit.stderr) else None)


def _sizes(rows: pd.DataFrame, limits: Limits, quantity: Quantity) -> list[dict[str, Any]]:
    """Per size: count, mean, median, quantiles; over its prediction; efficiency, squared error over its bound."""
    found = []
    for n, group in rows.groupby("n"):
        errors = group[quantity.column][np.isfinite(group[quantity.column])]
        low, middle, high = (float(q) for q in errors.quantile([0.1, 0.5, 0.9]))
        entry: dict[str, Any] = {"n": int(n), "fits": len(group), "mean": float(errors.mean())}
        entry |= {"median": middle, "quantile_10": low, "quantile_90": high}
        entry["over_prediction"] = _over_prediction(entry, limits, quantity)
        entry |= dict.fromkeys(("efficiency", "efficiency_stderr", "mse_over_bound"))
        if "efficiency" in group and group.efficiency.notna().any():
            entry["efficiency"] = float(group.efficiency.mean())
            entry["efficiency_stderr"] = float(np.sqrt(2 / (limits["parameters"] * len(group)))) if limits else None
            bound = limits.get("squared_error_constant")
            entry["mse_over_bound"] = float(n * group.squared_error.mean() / bound) if bound else None
        found.append(entry)
    return found


def _over_prediction(entry: Mapping[str, Any], limits: Limits, quantity: Quantity) -> float | None:
    constant = limits.get(quantity.constant) if quantity.constant else None
    if not constant or quantity.slope is None:
        return None
    return float(entry[quantity.statistic] / (constant * entry["n"] ** quantity.slope))


def table(cells: list[CellSummary]) -> str:
    """Cells as aligned text."""
    head = ("truth", "estimator", "loss", "slope", "predicted", "median's slope", "over prediction", "n e'Ie/p")
    rows = [(*head, "over floor", "failed")]
    for cell in cells:
        rows.append(
            (
                cell.truth,
                cell.estimator,
                cell.loss,
                _plus_minus(cell.slope, cell.stderr, 3),
                "-" if cell.predicted_slope is None else f"{cell.predicted_slope:g}",
                _plus_minus(cell.median_slope, cell.median_stderr, 3),
                _plus_minus(cell.over_prediction, None, 2),
                _plus_minus(cell.efficiency, cell.efficiency_stderr, 2),
                "-" if cell.risk_over_floor is None else f"{cell.risk_over_floor:.3f}",
                f"{cell.failed}/{cell.fits}",
            )
        )
    return aligned(rows)


def _plus_minus(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")
