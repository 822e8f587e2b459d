"""Figures of rate studies: error against n on log axes, with the lines that theory draws."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.plotting import style
from moe_prompt.studies.analysis.cells import Cell, CellSummary
from moe_prompt.studies.analysis.rate_fit import errors_by_size

MOST = 4  # panels beside each other
FITTED = {"mean": "--", "median": ":"}


def draw_rates(cells: Sequence[Cell]) -> Figure:
    """A panel per cell and quantity: a row for each cell, or for each truth where cells have few quantities."""
    rows = _rows(cells)
    wide = max(map(len, rows))
    with style.styled():
        figure = style.page(0.6 + (1.75 if wide < MOST else 1.55) * len(rows))
        axes = figure.subplots(len(rows), wide, squeeze=False, sharex=True)
        drawn = []
        for beside, summaries in zip(axes, rows, strict=True):
            for axis, summary in zip(beside, summaries, strict=False):
                _panel(axis, summary, _limits(summary, cells))
                drawn.append(axis)
            _labels(beside, summaries)
        for column in axes.T:
            lowest = [axis for axis in column if axis.axison][-1]
            lowest.set_xlabel("sample size n")
            lowest.tick_params(labelbottom=True)
        style.letters(drawn)
        style.legend_above(figure, drawn, 3)
    return figure


def _rows(cells: Sequence[Cell]) -> list[list[CellSummary]]:
    """Panels row by row.

    A row is a cell where all have as many quantities, at least two; else a truth, whose own model comes first.
    """
    counts = {len(cell.quantities) for cell in cells}
    if len(counts) == 1 and 2 <= max(counts) <= MOST:
        return [list(cell.summaries) for cell in cells]
    rows: dict[str, list[CellSummary]] = {}
    for cell in sorted(cells, key=lambda cell: cell.relation.misspecified):
        rows.setdefault(cell.truth, []).extend(cell.summaries)
    truths = dict.fromkeys(cell.truth for cell in cells)
    return [rows[truth][k : k + MOST] for truth in truths for k in range(0, len(rows[truth]), MOST)]


def _labels(axes: np.ndarray, summaries: Sequence[CellSummary]) -> None:
    """Above the first panel of a cell its title, above every panel its theory; a label where the quantity is new."""
    before = None
    for axis, summary in zip(axes, summaries, strict=False):
        cell, label = summary.cell, summary.quantity.label
        new = before is None or before.cell is not cell
        room = len(cell.quantities) * (style.PAGE / len(axes) - 0.45) * 72 / 3.9  # letters
        title = textwrap.fill(cell.title, int(room)) if new else ""
        axis.set_title(f"{title}\n{theory(summary)}")
        shown = label if before is None or before.quantity.label != label else ""
        axis.set_ylabel(shown.replace("  ", "\n"), size=style.label_size(shown))
        before = summary
    for axis in axes[len(summaries) :]:
        axis.set_axis_off()


def theory(summary: CellSummary) -> str:
    """What theory predicts for a panel, or why it predicts nothing."""
    slope, floor = summary.quantity.slope, summary.cell.floor
    if slope is not None:
        return f"predicted {style.exponent(slope)}"
    return f"floor {floor:.3g}" if floor is not None else summary.quantity.why or "no rate predicted"


def _limits(summary: CellSummary, cells: Sequence[Cell]) -> tuple[float, float] | None:
    """One range for all panels of a quantity: quantiles and means at every size, and the floors."""
    values: list[float] = []
    for cell in cells:
        for other in cell.summaries:
            if other.quantity.column == summary.quantity.column:
                values += [v for size in other.by_size for v in (size.quantile_10, size.quantile_90, size.mean)]
                values += [cell.floor] if cell.floor else []
    return style.log_limits(values, below=0.3)


def _panel(axis: Axes, summary: CellSummary, limits: tuple[float, float] | None) -> None:
    n, (low, high) = np.array(sorted(summary.errors), float), summary.cell.window
    axis.set(xscale="log", yscale="log")
    _measured(axis, summary.errors, n)
    words: list[tuple[str, str, int]] = []
    if summary.cell.floor is not None:
        axis.axhline(summary.cell.floor, color=style.LINE, ls="-.", label="floor: least risk of the fitted model")
    elif (fit := summary.fit) is not None:
        inside, statistic = n[(n >= low) & (n <= high)], summary.quantity.statistic
        axis.plot(
            inside, fit.line(inside), FITTED[statistic], color=style.FIT, label=f"line fitted to the {statistic}s"
        )
        words.append((style.power(fit), style.FIT, style.NUMBER))
    if summary.constant is not None:
        axis.plot(n, summary.predicted(n), color=style.LINE, label=summary.quantity.prediction)
    elif summary.quantity.slope is not None:
        words.append(("constant unknown", style.LINE, 7))
    style.words_inside(axis, [*words, *_start(summary)])
    sns.despine(ax=axis)
    style.log_axes(axis, limits)


def _start(summary: CellSummary) -> list[tuple[str, str, int]]:
    """The level of the starts is a number: as a line it would take most of the axis."""
    column = f"start_{summary.quantity.column}"
    if column not in summary.cell.rows or summary.cell.rows[column].isna().all():
        return []
    level = np.median(np.concatenate(list(errors_by_size(summary.cell.rows, column).values())))
    return [(f"starts at {level:.2g}", style.GREY, 7)]


def _measured(axis: Axes, errors: Mapping[int, np.ndarray], n: np.ndarray) -> None:
    low, median, high = (np.array([np.quantile(errors[k], q) for k in n]) for q in (0.1, 0.5, 0.9))
    axis.fill_between(n, low, high, color=style.INK, alpha=0.18, lw=0, label="10 % to 90 % of replicates")
    axis.plot(n, median, color=style.INK, label="median")
    means = np.array([errors[k].mean() for k in n])
    ends = np.array([_interval(errors[k]) for k in n]).T
    spread = np.abs(ends - means)
    axis.errorbar(
        n, means, spread, fmt="o", color=style.INK, ms=2.5, lw=0.8, capsize=1.5, label="mean and its 95 % interval"
    )


def _interval(values: np.ndarray) -> np.ndarray:
    """Bootstrap percentiles of the mean: positive where the values are, as log axes need."""
    resampled = values[np.random.default_rng(0).integers(len(values), size=(1000, len(values)))].mean(1)
    return np.quantile(resampled, [0.025, 0.975])
