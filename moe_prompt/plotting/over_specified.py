"""Figures of over-specified studies: families as rows, quantities as columns, the law's line drawn and not fitted."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moe_prompt.plotting import style
from moe_prompt.plotting.rates import theory
from moe_prompt.studies.analysis.cells import Cell

COLOURS = tuple(sns.color_palette("colorblind", 8).as_hex())


def draw_over_specified(cells: Sequence[Cell]) -> Figure:
    """A row per family with its numbers of atoms in one panel, a column per quantity."""
    families: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        families.setdefault(cell.relation.family or cell.truth, {})[_name(cell)] = cell
    colours = dict(zip(dict.fromkeys(map(_name, cells)), COLOURS * len(cells), strict=False))
    losses = {quantity.name: quantity.label for cell in cells for quantity in cell.quantities}
    with style.styled():
        figure = style.page(0.7 + 1.4 * len(families))
        axes = figure.subplots(len(families), len(losses), squeeze=False, sharex=True, sharey="col")
        for row, (family, own) in zip(axes, families.items(), strict=True):
            for axis, loss in zip(row, losses, strict=True):
                _panel(axis, {colours[name]: cell for name, cell in own.items()}, loss)
            row[0].set_ylabel("\n".join(textwrap.wrap(family.replace(" = ", "\xa0=\xa0"), 20)))
        for column, (loss, label) in zip(axes.T, losses.items(), strict=True):
            above = {"xycoords": "axes fraction", "xytext": (0, 15), "textcoords": "offset points"}
            column[0].annotate(label, (0, 1), **above, size=style.label_size(label))
            limits = _limits(cells, loss)
            for axis in column:
                style.log_axes(axis, limits)
        for axis in axes[-1]:
            axis.set_xlabel("sample size n")
        style.letters(list(axes.flat))
        laws = dict.fromkeys(q.prediction for cell in cells for q in cell.quantities)
        _legend(figure, colours, [law for law in laws if any(law == line.get_label() for line in _lines(axes))])
    return figure


def _name(cell: Cell) -> str:
    relation = cell.relation
    return f"{relation.true_atoms} true prompt{'s' * (relation.true_atoms > 1)}, {relation.fitted_atoms} fitted"


def _lines(axes: np.ndarray) -> list[Line2D]:
    return [line for axis in axes.flat for line in axis.get_lines()]


def _limits(cells: Sequence[Cell], loss: str) -> tuple[float, float] | None:
    sizes = [size for cell in cells for size in cell[loss].by_size]
    return style.log_limits(
        [v for size in sizes for v in (size.quantile_10, size.quantile_90, size.mean)], below=0.55, above=0.2
    )


def _panel(axis: Axes, cells: dict[str, Cell], loss: str) -> None:
    words: list[tuple[str, str, int]] = []
    for colour, cell in cells.items():
        summary, name = cell[loss], _name(cell)
        n = np.array(sorted(summary.errors), float)
        low, middle, high = (np.array([np.quantile(summary.errors[k], q) for k in n]) for q in (0.1, 0.5, 0.9))
        axis.fill_between(n, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(n, middle, ":", color=colour, label=f"{name}: median")
        axis.plot(n, [summary.errors[k].mean() for k in n], "o-", color=colour, ms=2.2, lw=0.8, label=f"{name}: mean")
        if summary.constant is not None:
            axis.plot(n, summary.predicted(n), "--", color=style.FIT, lw=0.8, label=summary.quantity.prediction)
        if summary.fit is not None:
            words.append((style.power(summary.fit), colour, style.NUMBER))
    style.words_inside(axis, words)
    if any(cell[loss].constant is None and cell[loss].quantity.slope is not None for cell in cells.values()):
        style.words_inside(axis, [("constant unknown", style.FIT, 7)], "upper right")
    axis.set_title(" / ".join(dict.fromkeys(theory(cell[loss]) for cell in cells.values())))
    sns.despine(ax=axis)


def _legend(figure: Figure, colours: dict[str, str], laws: Sequence[str]) -> None:
    """What a colour and what a kind of line is."""
    grey = style.GREY
    handles: list[Artist] = [Line2D([], [], color=colour, lw=3, label=name) for name, colour in colours.items()]
    handles += [
        Line2D([], [], color=grey, marker="o", ms=2.2, lw=0.8, label="mean"),
        Line2D([], [], color=grey, ls=":", label="median"),
        Patch(color=grey, alpha=0.25, lw=0, label="10 % to 90 % of replicates"),
        *(Line2D([], [], color=style.FIT, ls="--", lw=0.8, label=law) for law in laws),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
