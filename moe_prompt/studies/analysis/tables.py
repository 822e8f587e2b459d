"""What the rows of a study say, as text in columns; what every column means is said under the table."""

from __future__ import annotations

from collections.abc import Iterable

from moe_prompt.basics.tables import explained
from moe_prompt.studies.analysis.cells import Cell, CellSummary, all_summaries
from moe_prompt.studies.analysis.rate_fit import RateFit

PLACE = {
    "truth": "where the data come from",
    "estimator": "what is fitted to them",
    "loss": "the error of a fit that is looked at",
}
COLUMNS = {
    **PLACE,
    "of": "the statistic over replicates that `slope` and `ratio` are of",
    "slope": "fitted power of n on the study's window, and its standard error",
    "predicted": "the power of n that theory predicts; - where it predicts none",
    "median's slope": "the same as `slope`, of the median over replicates",
    "ratio": "measured over predicted error at the largest n, where theory gives a constant",
    "efficiency": "squared error of the parameters at the largest n over the Cramér-Rao bound, in the bound's metric",
    "risk/floor": "excess risk at the largest n over the least that the fitted model can have on these data",
    "failed": "fits that did not converge, of all fits",
}


def cells_table(cells: Iterable[Cell]) -> str:
    """A line for each quantity of each cell."""
    return explained(COLUMNS, map(_line, all_summaries(cells)))


def _line(summary: CellSummary) -> tuple[str, ...]:
    cell, last, predicted = summary.cell, summary.last, summary.quantity.slope
    return (
        cell.truth,
        cell.estimator,
        summary.name,
        summary.quantity.statistic,
        _fitted(summary.fit),
        "-" if predicted is None else f"{predicted:g}",
        _fitted(summary.median_fit),
        _plus_minus(summary.over_prediction, None, 2),
        _plus_minus(last.efficiency, last.efficiency_stderr, 2),
        _plus_minus(summary.over_floor, None, 3),
        f"{cell.ends.failed}/{cell.ends.fits}",
    )


def _fitted(fit: RateFit | None) -> str:
    return "-" if fit is None else _plus_minus(fit.slope, fit.error, 3)


def _plus_minus(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
