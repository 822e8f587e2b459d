"""The figure of `moe-prompt view`: a picture, the gates of some of its patches, and the experts that they weigh."""

from __future__ import annotations

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
_KIND_COLOURS = {"vpt": "#7f7f7f", "vapt": "#0072b2"}


def draw_view(report: ViewReport, queries: Sequence[tuple[int, int]] | None = None, heads: int = 3) -> Figure:
    """The picture with its patches, gate maps of three queries, the mass on prompts, and the experts.

    Args:
        queries: up to three patches (row, column); None: three on the diagonal.
        heads: how many heads' gate maps to draw, the first ones.
    """
    rows, columns = report.grid
    queries = queries or [(rows // 5, columns // 4), (rows // 2, columns // 2), (4 * rows // 5, 3 * columns // 4)]
    shown = min(heads, len(report.gates))
    with sns.axes_style("ticks"), plt.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = plt.figure(figsize=(16, 8.5), layout="constrained")
        left, middle, right = cast("ndarray", figure.subfigures(1, 3, width_ratios=(1, 0.3 + 0.45 * shown, 1.3)))
        top, bottom = left.subplots(2, 1)
        _draw_picture(top, report, queries)
        _draw_prompt_mass(bottom, report)
        _draw_gates(middle, report, queries, shown)
        top, bottom = right.subplots(2, 1)
        _draw_experts(top, report)
        _draw_adaptivity(bottom, report)
        figure.suptitle(_title(report), fontsize=12)
        figure.supxlabel("; ".join((*report.notes, "prompts are untrained")) + ".", fontsize=9, color="0.35")
    return figure


def _title(report: ViewReport) -> str:
    return (
        f"Each patch's attention is a mixture of {report.num_tokens} pre-trained and {report.num_prompts} "
        f"{report.prompt.upper()} prompt experts ({report.block}, {len(report.gates)} heads)"
    )


def _draw_picture(axes: Axes, report: ViewReport, queries: Sequence[tuple[int, int]]) -> None:
    rows, columns = report.grid
    axes.imshow(report.picture, extent=(0, columns, rows, 0))
    axes.set(xticks=range(columns + 1), yticks=range(rows + 1), xticklabels=[], yticklabels=[])
    axes.grid(color="white", linewidth=0.4, alpha=0.6)
    axes.tick_params(length=0)
    for number, ((row, column), colour) in enumerate(zip(queries, _QUERY_COLOURS, strict=False), start=1):
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=colour, linewidth=3))
        box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.15"}
        axes.text(column + 1.25, row + 0.5, str(number), fontweight="bold", va="center", bbox=box)
    axes.set_title(f"{rows} x {columns} patches, {len(queries)} of them queries")


def _draw_prompt_mass(axes: Axes, report: ViewReport) -> None:
    mass = _over_grid(report, report.prompt_mass.mean(dim=0).numpy())
    drawn = axes.imshow(mass, cmap="viridis", extent=(0, report.grid[1], report.grid[0], 0))
    axes.set(xticks=[], yticks=[], title="Each patch's gate on prompts")
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label(f"sum of the prompts' weights, mean over heads\n(a uniform gate: {report.uniform_mass:.3f})")


def _draw_gates(figure: Any, report: ViewReport, queries: Sequence[tuple[int, int]], heads: int) -> None:
    """Gates in units of the uniform gate, on one logarithmic scale for all maps."""
    rows, columns = report.grid
    numbers = [report.special + row * columns + column for row, column in queries]
    relative = report.gates[:heads, numbers].numpy() * report.gates.shape[-1]
    patches = slice(report.special, report.num_tokens)
    span = max(1.0, float(np.abs(np.log2(np.quantile(relative[..., patches], (0.01, 0.99)))).max()))
    axes = np.atleast_2d(figure.subplots(len(queries), heads, squeeze=False))
    for q, (row, column) in enumerate(queries):
        for h in range(heads):
            gate = np.log2(relative[h, q, patches]).reshape(rows, columns)
            drawn = axes[q, h].imshow(gate, cmap="RdBu_r", vmin=-span, vmax=span, extent=(0, columns, rows, 0))
            axes[q, h].add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=_QUERY_COLOURS[q], linewidth=2))
            on_prompts = relative[h, q, report.num_tokens :].sum() / report.gates.shape[-1]
            axes[q, h].set(xticks=[], yticks=[], xlabel=f"on prompts: {on_prompts:.3f}")
            if q == 0:
                axes[q, h].set_title(f"head {h}")
        axes[q, 0].set_ylabel(f"query {q + 1}", color=_QUERY_COLOURS[q], fontweight="bold", fontsize=11)
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", shrink=0.8, aspect=40, extend="both")
    ticks = np.unique((np.linspace(-1, 1, 5) * np.floor(span)).round())
    bar.set_ticks(ticks, labels=[f"{2**tick:g}" if tick >= 0 else f"1/{2**-tick:g}" for tick in ticks])
    bar.set_label("weight that the query gives to each patch, in multiples of a uniform gate")
    figure.suptitle("Gates: where a query listens (red: more than uniform, blue: less)", fontsize=10)


def _draw_experts(axes: Axes, report: ViewReport) -> None:
    """Experts of the first head in the plane of their two largest principal components."""
    experts = report.experts[0].double().numpy()
    centred = experts - experts.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    share = 100 * singular**2 / (singular**2).sum()
    tokens = report.num_tokens
    (x, y), (prompt_x, prompt_y) = plane[report.special : tokens].T, plane[tokens:].T
    kind, colour = report.prompt, _KIND_COLOURS[report.prompt]
    axes.scatter(x, y, s=14, c=_patch_colours(report), label="pre-trained, one per patch")
    axes.scatter(prompt_x, prompt_y, s=130, marker="*", c=colour, edgecolor="black", label=f"{kind.upper()} prompts")
    axes.set(
        xlabel=f"first principal component ({share[0]:.0f} % of variance)",
        ylabel=f"second ({share[1]:.0f} %)",
        title="Experts of head 0, in the colour of their patch",
    )
    axes.legend(loc="best", frameon=True)


def _draw_adaptivity(axes: Axes, report: ViewReport) -> None:
    numbers = np.arange(report.num_prompts)
    width = 0.8 / len(report.adaptivity)
    for place, (kind, value) in enumerate(report.adaptivity.items()):
        label = f"{kind.upper()}: mean {float(value.mean()):.2g}" + ("" if value.any() else ", exactly")
        colour = _KIND_COLOURS[kind]
        axes.bar(numbers + place * width, value.numpy(), width, label=label, color=colour, ec=colour, lw=2)
    axes.set(
        xlabel="prompt",
        ylabel="variance / second moment",
        title="Share of a prompt that moves when the picture shifts",
        xticks=numbers + 0.2 if report.num_prompts <= 25 else [],
    )
    if report.num_prompts <= 25:
        axes.set_xticklabels([str(number) for number in numbers])
    axes.legend(loc="best", frameon=True)


def _over_grid(report: ViewReport, per_token: ndarray) -> ndarray:
    return per_token[report.special :].reshape(report.grid)


def _patch_colours(report: ViewReport) -> ndarray:
    """The mean colour of every patch, row by row, in [0, 1]."""
    rows, columns = report.grid
    height, width, _ = report.picture.shape
    patches = report.picture.reshape(rows, height // rows, columns, width // columns, 3)
    return patches.mean(axis=(1, 3)).reshape(-1, 3) / 255
