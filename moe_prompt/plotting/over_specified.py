"""Figures of over-specified studies: families as rows, quantities as columns, the law's line drawn and not fitted."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.plotting.rates import LINE, STYLE, legend
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.summaries import CellSummary, by_size, summarize
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy

COLOURS = ("#1f5a94", "#3d8b5f", "#8a5a9e")


def draw_over_specified(study: OverSpecifiedStudy, rows: pd.DataFrame, notes: Mapping[str, Any]) -> Figure:
    """A row per family with its numbers of atoms in one panel, a column per quantity, the caption below."""
    cells = summarize(study, rows, notes)
    families = list(dict.fromkeys(family_of(cell.truth) for cell in cells))
    losses = list(dict.fromkeys(cell.loss for cell in cells))
    with mpl.rc_context(STYLE), sns.axes_style("ticks"):
        figure = Figure(figsize=(3.3 * len(losses), 2.35 * len(families) + 2.0), layout="constrained")
        axes = figure.subplots(len(families), len(losses), squeeze=False, sharex=True)
        for axis, (family, loss) in zip(axes.flat, [(f, q) for f in families for q in losses], strict=True):
            here = [cell for cell in cells if family_of(cell.truth) == family and cell.loss == loss]
            _panel(axis, study, here, rows, notes)
        for axis, loss in zip(axes[0], losses, strict=True):
            axis.set_title(next(cell.label for cell in cells if cell.loss == loss))
        for row, family in zip(axes, families, strict=True):
            row[0].set_ylabel("\n".join(textwrap.wrap(family, 22)))
        for axis in axes[-1]:
            axis.set_xlabel("sample size n")
        figure.legend(*legend(axes.ravel()), loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
        words = textwrap.fill(caption(study, cells), 40 * len(losses))
        figure.supxlabel(words, x=0.01, ha="left", fontsize=8.5)
    return figure


def family_of(truth: str) -> str:
    """The family's name without its number of atoms."""
    return truth.rsplit(", L = ", 1)[0]


def _panel(
    axis: Axes, study: OverSpecifiedStudy, cells: list[CellSummary], rows: pd.DataFrame, notes: Mapping[str, Any]
) -> None:
    axis.set(xscale="log", yscale="log")
    words = []
    for cell, colour in zip(cells, cycle(COLOURS), strict=False):
        own = rows[(rows.truth == cell.truth) & (rows.estimator == cell.estimator)]
        errors = by_size(own, cell.column)
        n = np.array(sorted(errors), float)
        low, middle, high = (np.array([np.quantile(errors[k], q) for k in n]) for q in (0.1, 0.5, 0.9))
        atoms = cell.truth.removeprefix(family_of(cell.truth)).removeprefix(", ") or cell.estimator
        axis.fill_between(n, low, high, color=colour, alpha=0.15, lw=0, label=f"{atoms}: 10 % to 90 % of replicates")
        axis.plot(n, middle, ":", color=colour, lw=1.2, label=f"{atoms}: median")
        axis.plot(n, [errors[k].mean() for k in n], "o-", color=colour, ms=3, lw=1, label=f"{atoms}: mean")
        limits = notes.get(f"limits {cell.truth} {cell.estimator}", {})
        quantity = next(q for q in study.quantities(cell.truth, cell.estimator) if q.name == cell.loss)
        if quantity.constant and quantity.slope is not None and limits.get(quantity.constant):
            line = limits[quantity.constant] * n**quantity.slope
            axis.plot(n, line, "--", color=LINE, lw=1, label=quantity.prediction)
        if cell.slope is not None and cell.stderr is not None:
            words.append(f"{atoms}: {cell.slope:.3f} ± {cell.stderr:.3f}")
    axis.annotate("\n".join(["slope", *words]), (0.04, 0.05), xycoords="axes fraction", fontsize=7)
    sns.despine(ax=axis)
