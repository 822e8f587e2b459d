"""What the rows of a study say, as text in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moe_prompt.studies.analysis.cells import Cell, CellSummary, all_summaries
from moe_prompt.studies.analysis.rate_fit import RateFit


def cells_table(cells: Iterable[Cell]) -> str:
    """A line for each quantity of each cell."""
    head = ("truth", "estimator", "loss", "slope", "predicted", "median's slope", "over prediction", "n e'Ie/p")
    return aligned([(*head, "over floor", "failed"), *map(_line, all_summaries(cells))])


def _line(summary: CellSummary) -> tuple[str, ...]:
    cell, last, predicted = summary.cell, summary.last, summary.quantity.slope
    return (
        cell.truth,
        cell.estimator,
        summary.name,
        _fitted(summary.fit),
        "-" if predicted is None else f"{predicted:g}",
        _fitted(summary.median_fit),
        _plus_minus(summary.over_prediction, None, 2),
        _plus_minus(last.efficiency, last.efficiency_stderr, 2),
        _plus_minus(summary.over_floor, None, 3),
        f"{cell.ends.failed}/{cell.ends.fits}",
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as text in columns.

    >>> aligned([("a", "bcd"), ("ef", "g")]).splitlines()
    ['a   bcd', 'ef  g  ']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)


def _fitted(fit: RateFit | None) -> str:
    return "-" if fit is None else _plus_minus(fit.slope, fit.error, 3)


def _plus_minus(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
