"""Figures of over-specified studies: families as rows, quantities as columns, the law's line drawn and not fitted."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.plotting.rates import LINE, STYLE, legend
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.cells import Cell
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy

COLOURS = ("#1f5a94", "#3d8b5f", "#8a5a9e")


def draw_over_specified(study: OverSpecifiedStudy, cells: Sequence[Cell]) -> Figure:
    """A row per family with its numbers of atoms in one panel, a column per quantity, the caption below."""
    families = list(dict.fromkeys(map(_row, cells)))
    losses = {quantity.name: quantity.label for cell in cells for quantity in cell.quantities}
    with mpl.rc_context(STYLE), sns.axes_style("ticks"):
        figure = Figure(figsize=(3.3 * len(losses), 2.35 * len(families) + 2.0), layout="constrained")
        axes = figure.subplots(len(families), len(losses), squeeze=False, sharex=True)
        for axis, (family, loss) in zip(axes.flat, [(f, q) for f in families for q in losses], strict=True):
            _panel(axis, [cell for cell in cells if _row(cell) == family], loss)
        for axis, label in zip(axes[0], losses.values(), strict=True):
            axis.set_title(label)
        for row, family in zip(axes, families, strict=True):
            row[0].set_ylabel("\n".join(textwrap.wrap(family, 22)))
        for axis in axes[-1]:
            axis.set_xlabel("sample size n")
        figure.legend(*legend(axes.ravel()), loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
        words = textwrap.fill(caption(study, cells), 40 * len(losses))
        figure.supxlabel(words, x=0.01, ha="left", fontsize=8.5)
    return figure


def _row(cell: Cell) -> str:
    """Cells of one family share a row; a truth of no family has one of its own."""
    return cell.relation.family or cell.truth


def _panel(axis: Axes, cells: Sequence[Cell], loss: str) -> None:
    axis.set(xscale="log", yscale="log")
    words = []
    for cell, colour in zip(cells, cycle(COLOURS), strict=False):
        summary, atoms = cell[loss], f"L = {cell.relation.true_atoms}"
        n = np.array(sorted(summary.errors), float)
        low, middle, high = (np.array([np.quantile(summary.errors[k], q) for k in n]) for q in (0.1, 0.5, 0.9))
        axis.fill_between(n, low, high, color=colour, alpha=0.15, lw=0, label=f"{atoms}: 10 % to 90 % of replicates")
        axis.plot(n, middle, ":", color=colour, lw=1.2, label=f"{atoms}: median")
        axis.plot(n, [summary.errors[k].mean() for k in n], "o-", color=colour, ms=3, lw=1, label=f"{atoms}: mean")
        if summary.constant is not None:
            axis.plot(n, summary.predicted(n), "--", color=LINE, lw=1, label=summary.quantity.prediction)
        if summary.stderr is not None:
            words.append(f"{atoms}: {summary.slope:.3f} ± {summary.stderr:.3f}")
    axis.annotate("\n".join(["slope", *words]), (0.04, 0.05), xycoords="axes fraction", fontsize=7)
    sns.despine(ax=axis)
