"""How starts and the window of a fit make a slope: a likelihood study beside the same data fitted as was published."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.plotting.rates import STYLE, legend
from moe_prompt.studies.analysis.cells import errors_by_size
from moe_prompt.studies.analysis.rate_fit import fit_rate

WINDOWS = ((100, 100_000), (1000, 100_000), (10_000, 100_000))
STORED = {"two": -0.64}
"""The slope that the stored results of arXiv 2305.03288's public code give."""
COLUMN, OURS, PUBLISHED = "voronoi_loss", "random starts, to the maximum", "published starts and stop rule"
COLOURS = {OURS: "#1f5a94", PUBLISHED: "#c1440e"}
MARKS = {"mean": "o", "median": "s"}
COUNTS = {"two": "two experts fitted to two", "three": "three experts fitted to two"}


def draw_windows(ours: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """A row per number of experts: errors and where fits start on the left, slopes by window on the right."""
    rows = {OURS: ours, PUBLISHED: published}
    with mpl.rc_context(STYLE), sns.axes_style("ticks"):
        figure = Figure(figsize=(9.5, 7.4), layout="constrained")
        axes = figure.subplots(2, 2, squeeze=False, width_ratios=(1.15, 1))
        for (left, right), (estimator, title) in zip(axes, COUNTS.items(), strict=True):
            cells = {name: frame[frame.estimator == estimator] for name, frame in rows.items()}
            _errors(left, cells)
            _slopes(right, cells)
            left.set_title(title, loc="left")
            right.set_title("slope by window, mean and median", loc="left")
            if estimator in STORED:
                right.axhline(STORED[estimator], color="#777777", lw=1, ls="-.", label="slope of the stored results")
        figure.legend(*legend(axes.ravel()), loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
        figure.supxlabel(textwrap.fill(words(ours, published), 125), x=0.01, ha="left", fontsize=8.5)
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


def words(ours: pd.DataFrame, published: pd.DataFrame) -> str:
    """What the slopes of three experts say, in a sentence made from the rows."""
    ranges = []
    for name, frame in ((OURS, ours), (PUBLISHED, published)):
        slopes = [slope for slope, _ in window_slopes(frame[frame.estimator == "three"]).values()]
        if slopes:
            ranges.append(f"with {name} from {min(slopes):.2f} to {max(slopes):.2f}")
    return (
        f"Three experts fitted to two, the same data: slopes of the Voronoi loss run {', '.join(ranges)}, by window "
        "and statistic alone. The published starts are beside the truth, and a stop by relative likelihood leaves "
        "large samples where they started."
    )


def _errors(axis: Axes, cells: Mapping[str, pd.DataFrame]) -> None:
    axis.set(xscale="log", yscale="log", xlabel="sample size n", ylabel="Voronoi loss")
    for name, rows in cells.items():
        errors = errors_by_size(rows, COLUMN)
        n = sorted(errors)
        axis.plot(n, [errors[k].mean() for k in n], "-", color=COLOURS[name], lw=1, alpha=0.5, label=f"{name}: mean")
        axis.plot(n, [np.median(errors[k]) for k in n], "s-", color=COLOURS[name], ms=3.5, label=f"{name}: median")
    starts = errors_by_size(cells[PUBLISHED], f"start_{COLUMN}")
    axis.plot(list(starts), [np.median(v) for v in starts.values()], ":", color="#999999", label="published starts")
    sns.despine(ax=axis)


def _slopes(axis: Axes, cells: Mapping[str, pd.DataFrame]) -> None:
    for offset, (name, rows) in zip((-0.12, 0.12), cells.items(), strict=True):
        for (statistic, window), (slope, error) in window_slopes(rows).items():
            x = WINDOWS.index(window) + offset + (0.05 if statistic == "median" else -0.05)
            filled = COLOURS[name] if statistic == "median" else "white"
            axis.errorbar(
                x, slope, 1.96 * error, fmt=MARKS[statistic], color=COLOURS[name], mfc=filled, ms=5, lw=1, capsize=2
            )
    axis.axhline(-0.5, color="#222222", lw=0.8, ls="--", label="-1/2")
    axis.set_xticks(range(len(WINDOWS)), [f"{low:,} to {high:,}" for low, high in WINDOWS], fontsize=8)
    axis.set(xlabel="window of the fit", ylabel="fitted slope, 95 % interval", xlim=(-0.5, len(WINDOWS) - 0.5))
    sns.despine(ax=axis)
