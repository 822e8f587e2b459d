"""Figures of rate studies: error against n on log axes, with the lines that theory draws."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.cells import Cell, CellSummary, all_summaries, errors_by_size
from moe_prompt.studies.base import Study

INK, START, LINE, FIT = "#1f5a94", "#b0b0b0", "#c1440e", "#222222"
STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 9.5}
FILES: dict[Any, Any] = {"svg.hashsalt": "moe_prompt", "pdf.fonttype": 42}  # read when a file is written, not before


def draw_rates(study: Study, cells: Sequence[Cell]) -> Figure:
    """One panel per cell and loss: matched cells have two, the others their excess risk; caption below."""
    summaries = all_summaries(cells)
    with mpl.rc_context(STYLE), sns.axes_style("ticks"):
        columns = _columns(cells)
        figure_rows = -(-len(summaries) // columns)
        figure = Figure(figsize=(4.1 * columns, 3.3 * figure_rows + 1.35), layout="constrained")
        axes = np.atleast_1d(figure.subplots(figure_rows, columns, squeeze=False)).ravel()
        truths = list(dict.fromkeys(truth for truth, _ in study.cells))
        ordered = sorted(summaries, key=lambda s: (truths.index(s.cell.truth), not s.cell.relation.exact))
        for axis, summary in zip(axes, ordered, strict=False):
            _panel(axis, summary)
        for axis in axes[len(summaries) :]:
            axis.set_axis_off()
        handles, labels = legend(axes[: len(summaries)])
        beside = min(4 if columns > 2 else columns, len(labels))
        figure.legend(handles, labels, loc="outside upper center", ncols=beside, frameon=False, fontsize=8.5)
        words = textwrap.fill(caption(study, cells), 46 * columns)
        figure.supxlabel(words, x=0.01, ha="left", fontsize=8.5)
    return figure


def _columns(cells: Sequence[Cell]) -> int:
    """A row per cell where all cells have as many quantities, two to four; else three panels a row."""
    counts = {len(cell.quantities) for cell in cells}
    each = counts.pop() if len(counts) == 1 else 0
    return each if 2 <= each <= 4 else min(3, sum(len(cell.quantities) for cell in cells))


def write(figure: Figure, path: Path, metadata: dict[str, Any]) -> None:
    """Write a figure; equal figures give equal bytes if `metadata` has no date."""
    with mpl.rc_context(FILES):
        figure.savefig(path, dpi=160, metadata=metadata)


def _panel(axis: Axes, summary: CellSummary) -> None:
    cell, quantity, errors = summary.cell, summary.quantity, summary.errors
    axis.set(xscale="log", yscale="log", xlabel="sample size n", ylabel=quantity.label)
    axis.set_title(cell.title, loc="left")
    n = np.array(sorted(errors), float)
    _measured(axis, errors, n)
    if f"start_{quantity.column}" in cell.rows:
        starts = errors_by_size(cell.rows, f"start_{quantity.column}")
        middle = [np.median(values) for values in starts.values()]
        axis.plot(list(starts), middle, ":", color=START, label="where the fits start (median)")
    _predicted(axis, summary, n)
    if cell.floor is None:
        _slope(axis, summary, n)
    sns.despine(ax=axis)


def _measured(axis: Axes, errors: Mapping[int, np.ndarray], n: np.ndarray) -> None:
    low, median, high = (np.array([np.quantile(errors[k], q) for k in n]) for q in (0.1, 0.5, 0.9))
    axis.fill_between(n, low, high, color=INK, alpha=0.18, lw=0, label="10 % to 90 % of replicates")
    axis.plot(n, median, color=INK, lw=1.4, label="median")
    means = np.array([errors[k].mean() for k in n])
    ends = np.array([_interval(errors[k]) for k in n]).T
    spread = np.abs(ends - means)
    axis.errorbar(n, means, spread, fmt="o", color=INK, ms=3.5, lw=1, capsize=2, label="mean and its 95 % interval")


def _interval(values: np.ndarray) -> np.ndarray:
    """Bootstrap percentiles of the mean: positive where the values are, as log axes need."""
    resampled = values[np.random.default_rng(0).integers(len(values), size=(1000, len(values)))].mean(1)
    return np.quantile(resampled, [0.025, 0.975])


def _slope(axis: Axes, summary: CellSummary, n: np.ndarray) -> None:
    fit, (low, high) = summary.fit, summary.cell.window
    if fit is None:
        return
    inside = n[(n >= low) & (n <= high)]
    label = f"fitted slope of the {summary.quantity.statistic}, on the study's window"
    axis.plot(inside, fit.line(inside), "--", color=FIT, lw=1, label=label)
    words = f"slope {fit.slope:.3f} ± {fit.stderr:.3f}"
    if summary.quantity.slope is not None:
        words += f"\npredicted {summary.quantity.slope:g}"
    axis.annotate(words, (0.04, 0.06), xycoords="axes fraction", fontsize=8.5)


def _predicted(axis: Axes, summary: CellSummary, n: np.ndarray) -> None:
    """The line that is drawn, not fitted."""
    floor = summary.cell.floor
    if summary.constant is not None:
        axis.plot(n, summary.predicted(n), color=LINE, lw=1.2, label=summary.quantity.prediction)
    elif floor:
        axis.axhline(floor, color=LINE, lw=1.2, ls="-.", label="floor: best approximation, by quadrature")
        axis.annotate(f"floor {floor:.3g}", (n[0], floor), xytext=(0, -11), textcoords="offset points", fontsize=8.5)
        bottom, top = axis.get_ylim()
        axis.set_ylim(min(bottom, floor / 3), top)


def legend(axes: np.ndarray) -> tuple[list, list[str]]:
    """Every label of some axes once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
