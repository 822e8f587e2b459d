"""How starts and the window of a fit make a slope: a likelihood study beside the same data fitted as was published."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.plotting import style
from moe_prompt.studies.analysis.rate_fit import errors_by_size, fit_rate

WINDOWS = ((100, 100_000), (1000, 100_000), (10_000, 100_000))
STORED = {"two": -0.64}
"""The slope that the stored results of arXiv 2305.03288's public code give."""
COLUMN, OURS, PUBLISHED = "voronoi_loss", "random starts and the maximum", "published starts and stop rule"
COLOURS = {OURS: style.INK, PUBLISHED: style.LINE}
MARKS = {"mean": "o", "median": "s"}
COUNTS = {"two": "two experts fitted to two", "three": "three experts fitted to two"}


def draw_windows(ours: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """A row per number of experts: errors and where fits start on the left, slopes by window on the right."""
    rows = {OURS: ours, PUBLISHED: published}
    with style.styled():
        figure = style.page(4.4)
        axes = figure.subplots(2, 2, sharex="col", sharey="col")
        for (left, right), (estimator, title) in zip(axes, COUNTS.items(), strict=True):
            cells = {name: frame[frame.estimator == estimator] for name, frame in rows.items()}
            _errors(left, cells)
            _slopes(right, cells)
            left.set_title(title)
            right.set_title(title)
            if estimator in STORED:
                right.axhline(STORED[estimator], color=style.GREY, ls="-.", label="slope of the published results")
        axes[1, 0].set_xlabel("sample size n")
        axes[1, 1].set_xlabel("window of n that the line is fitted on")
        for left, _ in axes:
            style.log_axes(left, left.get_ylim())
        style.letters(list(axes.flat))
        style.legend_above(figure, axes.flat, 2)
    return figure


def window_slopes(rows: pd.DataFrame) -> dict[tuple[str, tuple[int, int]], tuple[float, float]]:
    """(statistic, window) -> slope and standard error of one cell."""
    errors, found = errors_by_size(rows, COLUMN), {}
    for statistic in MARKS:
        for window in WINDOWS:
            fit = fit_rate(errors, window, statistic)
            if fit is not None:
                found[statistic, window] = (fit.slope, fit.stderr)
    return found


def windows_caption(ours: pd.DataFrame, published: pd.DataFrame) -> str:
    """What the slopes of three experts say, in sentences made from the rows."""
    ranges = []
    for name, frame in ((OURS, ours), (PUBLISHED, published)):
        slopes = [slope for slope, _ in window_slopes(frame[frame.estimator == "three"]).values()]
        if slopes:
            ranges.append(f"from {min(slopes):.2f} to {max(slopes):.2f} with {name}")
    return (
        "The slope of the Voronoi loss depends on the window of n and on the statistic that a line is fitted to: for "
        f"three experts fitted to two, on the same data, it runs {' and '.join(ranges)}. The published starts lie "
        "beside the truth, and the published stop rule, a small relative change of the likelihood, leaves large "
        "samples close to where they started."
    )


def windows_note(ours: pd.DataFrame, published: pd.DataFrame) -> str:
    """Counts of fits, and what is drawn."""
    return (
        f"{len(ours):,} and {len(published):,} fits. Left: means and medians over replicates. Right: fitted slopes "
        "with their 95 % intervals from a bootstrap over replicates."
    )


def _errors(axis: Axes, cells: Mapping[str, pd.DataFrame]) -> None:
    axis.set(xscale="log", yscale="log", ylabel="Voronoi loss D")
    for name, rows in cells.items():
        errors = errors_by_size(rows, COLUMN)
        n = sorted(errors)
        means, medians = [errors[k].mean() for k in n], [np.median(errors[k]) for k in n]
        axis.plot(n, means, "o-", mfc="white", ms=3, lw=0.8, color=COLOURS[name], label=f"mean, {name}")
        axis.plot(n, medians, "s-", ms=3, lw=0.8, color=COLOURS[name], label=f"median, {name}")
    starts = errors_by_size(cells[PUBLISHED], f"start_{COLUMN}")
    axis.plot(list(starts), [np.median(v) for v in starts.values()], ":", color=style.GREY, label="published starts")
    sns.despine(ax=axis)


def _slopes(axis: Axes, cells: Mapping[str, pd.DataFrame]) -> None:
    for offset, (name, rows) in zip((-0.12, 0.12), cells.items(), strict=True):
        for (statistic, window), (slope, error) in window_slopes(rows).items():
            x = WINDOWS.index(window) + offset + (0.05 if statistic == "median" else -0.05)
            filled = COLOURS[name] if statistic == "median" else "white"
            axis.errorbar(
                x, slope, 1.96 * error, fmt=MARKS[statistic], color=COLOURS[name], mfc=filled, ms=4, lw=0.8, capsize=2
            )
    axis.axhline(-0.5, color=style.FIT, lw=0.8, ls="--", label="predicted slope \N{MINUS SIGN}1/2")
    axis.set_xticks(range(len(WINDOWS)), [f"{style.short(low)} to {style.short(high)}" for low, high in WINDOWS])
    axis.set(ylabel="fitted slope", xlim=(-0.5, len(WINDOWS) - 0.5))
    sns.despine(ax=axis)
