"""The figure of `moe-prompt view`: a picture, the gates of some of its patches, and the experts that they weigh."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy import ndarray

from moe_prompt.attention.view import ViewReport

_QUERY_COLOURS = ("#e41a1c", "#ff9f1c", "#22d3ee")
_PROMPTS, _TRAINED, _UNTRAINED = "#0072b2", "#00734d", "#b2182b"
_WIDTH, _HEIGHT = 6.8, 7.2  # inches, as printed
_TYPE: dict[Any, Any] = dict.fromkeys(
    ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7
)
_ROBUST = 0.02  # the share of values at either end that may lie beyond the ends of a colour bar
_MOST_LINES = 20  # patches in a row up to which they are outlined


def draw_view(report: ViewReport, queries: Sequence[tuple[int, int]] | None = None, heads: int = 3) -> Figure:
    """The picture with its patches, gate maps of three queries, the mass on prompts, and the experts.

    Args:
        queries: up to three patches (row, column); None: three on the diagonal.
        heads: how many heads' gate maps to draw, the first ones.
    """
    rows, columns = report.grid
    queries = queries or [(rows // 5, columns // 4), (rows // 2, columns // 2), (4 * rows // 5, 3 * columns // 4)]
    shown = min(heads, len(report.gates))
    with sns.axes_style("ticks"), plt.rc_context({**_TYPE, "axes.titlesize": 8}):
        figure = plt.figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        title, upper, lower = cast("ndarray", figure.subfigures(3, 1, height_ratios=(0.13, 1, 0.5)))
        _draw_title(title, report)
        left, right = cast("ndarray", upper.subfigures(1, 2, width_ratios=(1, 1.6)))
        top, bottom = left.subplots(2, 1)
        _draw_picture(top, report, queries)
        _draw_prompt_mass(bottom, report)
        _draw_gates(right, report, queries, shown)
        beside, last = lower.subplots(1, 2)
        _draw_experts(beside, report)
        _draw_adaptivity(last, report)
    return figure


def _draw_title(figure: Any, report: ViewReport) -> None:
    """Whether the prompts are trained, in large type; below, whose prompts these are, as the user wrote it."""
    state, colour = ("TRAINED", _TRAINED) if report.trained else ("UNTRAINED", _UNTRAINED)
    figure.text(0.02, 0.95, f"{state} PROMPTS", fontsize=14, fontweight="bold", color=colour, va="top")
    words = (
        f"{report.num_prompts} prompts ({report.prompt}) beside {report.num_tokens} pre-trained experts, "
        f"{len(report.gates)} heads, {report.block}"
    )
    lines = textwrap.shorten(words, 210)
    figure.text(0.02, 0.42, _plain(textwrap.fill(lines, 105)), fontsize=8, va="top")


def _plain(words: str) -> str:
    """Words in which a dollar sign is one and begins no formula."""
    return words.replace("$", r"\$")


def _panel(axes: Axes, letter: str, title: str) -> None:
    axes.set_title(rf"$\bf{{{letter}}}$  {title}", loc="left")


def _draw_picture(axes: Axes, report: ViewReport, queries: Sequence[tuple[int, int]]) -> None:
    rows, columns = report.grid
    axes.imshow(report.picture, extent=(0, columns, rows, 0))
    axes.set(xticks=[], yticks=[])
    if max(rows, columns) <= _MOST_LINES:
        axes.set(xticks=range(columns + 1), yticks=range(rows + 1), xticklabels=[], yticklabels=[])
        axes.grid(color="white", linewidth=0.3, alpha=0.6)
        axes.tick_params(length=0)
    for number, ((row, column), colour) in enumerate(zip(queries, _QUERY_COLOURS, strict=False), start=1):
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=colour, linewidth=1.5))
        box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.15"}
        place = (column + 1 + columns / 30, row + 0.5)
        axes.text(*place, str(number), fontweight="bold", va="center", bbox=box)
    _panel(axes, "a", f"{rows} x {columns} patches, {len(queries)} queries")


def _draw_prompt_mass(axes: Axes, report: ViewReport) -> None:
    mass = report.prompt_mass.mean(dim=0).numpy()[report.special :].reshape(report.grid)
    low, high = np.quantile(mass, (_ROBUST, 1 - _ROBUST))
    extent = (0, report.grid[1], report.grid[0], 0)
    drawn = axes.imshow(mass, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), extent=extent)
    axes.set(xticks=[], yticks=[])
    _panel(axes, "b", "Weight of the prompts")
    bar = axes.figure.colorbar(drawn, ax=axes, extend="both", orientation="horizontal", shrink=0.9, aspect=25)
    bar.locator = plt.MaxNLocator(4)
    bar.update_ticks()
    bar.set_label(f"share of a query's gate, mean of heads\n(a uniform gate: {report.uniform_mass:.3f})")


def _draw_gates(figure: Any, report: ViewReport, queries: Sequence[tuple[int, int]], heads: int) -> None:
    """Gates in units of the uniform gate, on one logarithmic scale for all maps."""
    rows, columns = report.grid
    numbers = [report.special + row * columns + column for row, column in queries]
    relative = report.gates[:heads, numbers].numpy() * report.gates.shape[-1]
    patches = relative[..., report.special : report.num_tokens]
    span = gate_span(patches)
    logs = np.log2(np.maximum(patches, 2.0 ** (-2 * span)))
    axes = figure.subplots(len(queries), heads, squeeze=False)
    for q, (row, column) in enumerate(queries):
        for h in range(heads):
            gate = logs[h, q].reshape(rows, columns)
            drawn = axes[q, h].imshow(gate, cmap="RdBu_r", vmin=-span, vmax=span, extent=(0, columns, rows, 0))
            axes[q, h].add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=_QUERY_COLOURS[q], linewidth=1.2))
            axes[q, h].set(xticks=[], yticks=[])
            axes[q, h].set_xlabel(f"on prompts: {report.prompt_mass[h, numbers[q]]:.2g}", labelpad=2)
            if q == 0:
                axes[q, h].set_title(f"head {h}")
        axes[q, 0].set_ylabel(f"query {q + 1}", color=_QUERY_COLOURS[q], fontweight="bold", fontsize=8)
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", shrink=0.9, aspect=40, extend="both")
    step = max(1, int(span) // 2)
    ticks = [tick for tick in (-2 * step, -step, 0, step, 2 * step) if abs(tick) <= span]
    bar.set_ticks(ticks, labels=[f"{2**tick:g}" if tick >= 0 else f"1/{2**-tick:g}" for tick in ticks])
    bar.set_label("weight of a patch in the query's gate, in multiples of a uniform gate")
    figure.suptitle(r"$\bf{c}$  Where a query listens (red: more than a uniform gate, blue: less)", fontsize=8)


def gate_span(relative: ndarray) -> float:
    """Half the length of the gates' colour bar in powers of two, the same above and below a uniform gate.

    The bar holds all weights but the largest 2 % and the smallest 10 %, and ends at 1/32 below: under pre-trained heads
    most weights are far less, as far as 1e-9 of a uniform gate, and all of them are next to nothing.
    """
    smallest, largest = np.log2(np.maximum(np.quantile(relative, (0.1, 1 - _ROBUST)), 2.0**-5))
    return max(1.0, float(largest), -float(smallest))


def _draw_experts(axes: Axes, report: ViewReport) -> None:
    """Experts of the first head in the plane of their two largest principal components."""
    experts = report.experts[0].double().numpy()
    centred = experts - experts.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    share = 100 * singular**2 / max((singular**2).sum(), np.finfo(float).tiny)
    tokens = report.num_tokens
    (x, y), (prompt_x, prompt_y) = plane[report.special : tokens].T, plane[tokens:].T
    axes.scatter(x, y, s=6, c=_patch_colours(report), label="pre-trained, one per patch, in its colour")
    axes.scatter(prompt_x, prompt_y, s=45, marker="*", c=_PROMPTS, edgecolor="black", linewidth=0.5, label="prompts")
    axes.set(xlabel=f"first principal component ({share[0]:.0f} % of variance)", ylabel=f"second ({share[1]:.0f} %)")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom - 0.35 * (top - bottom), top)  # room for the legend
    _panel(axes, "d", "Experts of head 0")
    axes.legend(loc="lower left", frameon=False)
    sns.despine(ax=axes)


def _draw_adaptivity(axes: Axes, report: ViewReport) -> None:
    numbers, value = np.arange(report.num_prompts), report.adaptivity.numpy()
    axes.bar(numbers, value, 0.8, color=_PROMPTS)
    axes.set(xlabel="prompt", ylabel="variance / second moment")
    axes.set_ylim(0, 1.15 * value.max() if value.any() else 1)
    mean = f"mean {value.mean():.2g}" if value.any() else "exactly 0: the prompts do not look at the picture"
    axes.text(0.5, 0.97, mean, transform=axes.transAxes, ha="center", va="top")
    axes.xaxis.set_major_locator(plt.MaxNLocator(10, integer=True))
    _panel(axes, "e", "Share of a prompt that moves with the picture")
    sns.despine(ax=axes)


def _patch_colours(report: ViewReport) -> ndarray:
    """The mean colour of every patch, row by row, in [0, 1]."""
    rows, columns = report.grid
    height, width, _ = report.picture.shape
    patches = report.picture.reshape(rows, height // rows, columns, width // columns, 3)
    return patches.mean(axis=(1, 3)).reshape(-1, 3) / 255
