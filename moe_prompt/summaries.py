"""From rows to findings: slopes with errors, efficiency against the Cramer-Rao bound, floors, a caption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from moe_prompt.rates import RateFit, RateStudy, fit_rate

SHARP = 0.05  # a slope with a larger standard error than this supports no verdict
COLUMN = {"parameter": "parameter_loss", "excess_risk": "excess_risk"}
PREDICTED = {"parameter": -0.5, "excess_risk": -1.0}
Limits = Mapping[str, Any]


@dataclass(frozen=True)
class CellSummary:
    """One cell under one loss. Slopes are None where fewer than two sizes of the window have rows."""

    truth: str
    estimator: str
    loss: str
    slope: float | None  # of the mean
    stderr: float | None
    predicted_slope: float | None  # None: a floor is predicted, not a slope
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


def summarize(study: RateStudy, rows: pd.DataFrame, notes: Mapping[str, Any]) -> list[CellSummary]:
    """Every cell and loss that has rows."""
    cells = []
    for truth in study.truths:
        for estimator in study.contenders:
            own = rows[(rows.truth == truth) & (rows.estimator == estimator)]
            limits = notes.get(f"limits {truth} {estimator}", {})
            losses = ("parameter", "excess_risk") if study.matched(truth, estimator) else ("excess_risk",)
            cells += [_cell(study, own, limits, truth, estimator, loss) for loss in losses if len(own)]
    return cells


def by_size(rows: pd.DataFrame, column: str) -> dict[int, np.ndarray]:
    """n -> finite values of a column."""
    return {int(n): group.to_numpy(float) for n, group in rows[np.isfinite(rows[column])].groupby("n")[column]}


def _cell(study: RateStudy, rows: pd.DataFrame, limits: Limits, truth: str, estimator: str, loss: str) -> CellSummary:
    errors, matched = by_size(rows, COLUMN[loss]), study.matched(truth, estimator)
    mean, median = (fit_rate(errors, study.window, statistic) for statistic in ("mean", "median"))
    projection = None if matched else fit_rate(by_size(rows, "projection_risk"), study.window)
    floor = None if matched else limits.get("floor")
    sizes = _sizes(rows, limits, COLUMN[loss])
    last = sizes[-1]
    return CellSummary(
        truth,
        estimator,
        loss,
        *_pair(mean),
        PREDICTED[loss] if matched else None,
        *_pair(median),
        study.window,
        floor,
        last["mean"] / floor if floor else None,
        *_pair(projection),
        last["efficiency"],
        last["efficiency_stderr"],
        limits.get("leverage"),
        sizes,
        len(rows),
        int((~rows.converged.astype(bool) | ~np.isfinite(rows.objective)).sum()),
        int(rows.at_boundary.sum()),
        int(rows.missed.fillna(0).sum()) if matched else None,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [{name: _finite(number) for name, number in entry.items()} for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _pair(fit: RateFit | None) -> tuple[float | None, float | None]:
    return (None, None) if fit is None else (fit.slope, fit.stderr if np.isfinite(fit.stderr) else None)


def _sizes(rows: pd.DataFrame, limits: Limits, column: str) -> list[dict[str, Any]]:
    """Per size: count, mean, median, quantiles; efficiency and mean squared error over its bound where defined."""
    found = []
    for n, group in rows.groupby("n"):
        errors = group[column][np.isfinite(group[column])]
        low, middle, high = (float(q) for q in errors.quantile([0.1, 0.5, 0.9]))
        entry: dict[str, Any] = {"n": int(n), "fits": len(group), "mean": float(errors.mean())}
        entry |= {"median": middle, "quantile_10": low, "quantile_90": high}
        entry |= dict.fromkeys(("efficiency", "efficiency_stderr", "mse_over_bound"))
        if group.efficiency.notna().any():
            entry["efficiency"] = float(group.efficiency.mean())
            entry["efficiency_stderr"] = float(np.sqrt(2 / (limits["parameters"] * len(group)))) if limits else None
            bound = limits.get("squared_error_constant")
            entry["mse_over_bound"] = float(n * group.squared_error.mean() / bound) if bound else None
        found.append(entry)
    return found


def caption(study: RateStudy, cells: list[CellSummary]) -> str:
    """What the rows say, in sentences made from them."""
    matched = [cell for cell in cells if cell.matched and cell.loss == "parameter"]
    others = [cell for cell in cells if not cell.matched]
    sentences = [_rate_sentence(cell) for cell in matched] + [_floor_sentence(cell) for cell in others]
    counted = matched + others
    fits, failed, boundary = (sum(getattr(c, name) for c in counted) for name in ("fits", "failed", "at_boundary"))
    missed = sum(cell.missed or 0 for cell in matched)
    complete = len(counted) == len(study.truths) * len(study.contenders)
    sentences.append(
        f"{fits} fits: {failed} did not converge, {boundary} ended on the boundary of the parameter box, {missed} of "
        f"the {sum(cell.fits for cell in matched)} whose family holds the truth missed the global minimum (the truth "
        "fits their data better; the others may have, unseen); all that gave a number are in the means."
    )
    return " ".join([*sentences, _verdict(matched, others) if complete else ""]).strip()


def _verdict(matched: list[CellSummary], others: list[CellSummary]) -> str:
    """What the cells say together, if they say it: rates sharp and as predicted, floors within five percent."""
    slopes = [c for c in matched if c.slope is not None and c.stderr is not None]
    off = [c for c in slopes if abs(c.slope - PREDICTED[c.loss]) > 3 * c.stderr]  # type: ignore[operator]
    if off:
        names = " and ".join(c.estimator.upper() for c in off)
        return f"The slope of {names} is more than three standard errors from the predicted {PREDICTED[off[0].loss]:g}."
    reached = others and all(c.risk_over_floor is not None and abs(c.risk_over_floor - 1) < 0.05 for c in others)
    sharp = len(slopes) == len(matched) and all(c.stderr is not None and c.stderr <= SHARP for c in slopes)
    if not (sharp and reached):
        return ""
    return (
        "Each method learns at the parametric rate in its own model; in the other's, its error stops at what it cannot "
        "express. This is a difference of expressiveness, not of rate."
    )


def _rate_sentence(cell: CellSummary) -> str:
    name = cell.estimator.upper()
    if cell.slope is None or cell.stderr is None:
        few = f"too few sizes in the window {cell.window}, or too few replicates, for a slope."
        return f"{name} on data from {cell.truth.upper()}: {few}"
    sentence = f"{name} on data from {cell.truth.upper()}: error ~ n^({cell.slope:.3f} +- {cell.stderr:.3f})"
    if cell.efficiency is None or cell.efficiency_stderr is None:
        return sentence + "."
    return sentence + (
        f", at n = {cell.by_size[-1]['n']} {cell.efficiency:.2f} +- {cell.efficiency_stderr:.2f} times the "
        "Cramer-Rao bound."
    )


def _floor_sentence(cell: CellSummary) -> str:
    sentence = f"{cell.estimator.upper()} on data from {cell.truth.upper()}: the excess risk is "
    last = cell.by_size[-1]
    if cell.floor is None or cell.risk_over_floor is None:
        return sentence + f"{last['mean']:.3g} at n = {last['n']}."
    return sentence + f"{cell.risk_over_floor:.3f} times its floor of {cell.floor:.3g} at n = {last['n']}."


def table(cells: list[CellSummary]) -> str:
    """Cells as aligned text."""
    rows = [("truth", "estimator", "loss", "slope", "predicted", "median's slope", "n e'Ie/p", "over floor", "failed")]
    for cell in cells:
        rows.append(
            (
                cell.truth,
                cell.estimator,
                cell.loss,
                _plus_minus(cell.slope, cell.stderr, 3),
                "-" if cell.predicted_slope is None else f"{cell.predicted_slope:g}",
                _plus_minus(cell.median_slope, cell.median_stderr, 3),
                _plus_minus(cell.efficiency, cell.efficiency_stderr, 2),
                "-" if cell.risk_over_floor is None else f"{cell.risk_over_floor:.3f}",
                f"{cell.failed}/{cell.fits}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)


def _plus_minus(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")
