"""The figure of the bad sequences: measures that stay away from the truth, functions that never left it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.theory.bad_sequences import SEQUENCES, evidence
from moe_prompt.theory.families import FAMILIES
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import sigma_2
from moe_prompt.theory.split_distance import split_distance

IDENTIFIABLE = ("VPT, B injective", "reparameterised prefix, maps known", "VAPT, tanh", "linear gate + tanh ridge")
NOISE = 0.01
_NODES = 256
_SIZES = np.geomspace(1e2, 1e6, 9)
_SPLITS = np.array([0.02, 0.04, 0.07, 0.12, 0.22, 0.39])
_LEVELS = np.geomspace(0.15, 0.02, len(SEQUENCES))  # apart, so that seven level lines are seen; any level would do
_BAD, _GOOD = sns.color_palette("flare", len(SEQUENCES)), ("#0b3c6f", "#2a7ab9", "#3fa7a0", "#7a5fb5")
_MARKERS, _OPEN = "osD^vP*", "oshd"
_LEAST = 1e-15  # rounding, which is another on another machine
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 9.5}
_PLAIN: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8,
    "alignment": "left",
    "borderaxespad": 0,
    "columnspacing": 1.2,
}


@dataclass(frozen=True)
class SequenceCurves:
    """One family: the distance to f_* of its splits of size t, and the loss D of the measure G_n."""

    family: str
    t: np.ndarray
    distance: np.ndarray
    loss: np.ndarray  # at the sizes n of the figure
    line: np.ndarray  # e^b sigma_2 t^2


def bad(family: str, level: float, shift: float = 1.0) -> SequenceCurves:
    """The bad sequence of a family, G_n = G(t) with t^2 = level e^{-b}: D(G_n, G*) = level at every n.

    `shift` multiplies the sizes t at which its distance is measured: families that coincide are then seen apart.
    """
    truth = FAMILIES[family].build()
    model, theta = truth.model, truth.theta
    sequence, nodes = SEQUENCES[family](model, theta), truth.covariates.nodes(_NODES)
    fixed = float((level / model.unflatten(theta)[0][0].exp()).sqrt())
    t = shift * _SPLITS
    t = t[sequence.reach > t]
    distance = [evidence(sequence, size, nodes).distance for size in t.tolist()]
    loss = evidence(sequence, fixed, nodes).voronoi
    return SequenceCurves(family, t, np.array(distance), np.full(len(_SIZES), loss), 0 * t)


def identifiable(family: str) -> SequenceCurves:
    """The nearest split of a family with sigma_2 > 0, and the loss e^b t_n^2 of that which n samples do not resolve.

    e^b sigma_2 t_n^2 = s sqrt(p / n), the distance at which least squares leaves p parameters.
    """
    geometry = LocalGeometry.of(FAMILIES[family].build(), _NODES)
    model, mass = geometry.model, float(geometry.model.unflatten(geometry.theta)[0][0].exp())
    index = sigma_2(geometry, starts=16)
    start = index.direction.vector
    distance = [split_distance(geometry, 0, t, start, starts=0).distance for t in _SPLITS.tolist()]
    loss = NOISE * np.sqrt(model.num_parameters / _SIZES) / index.sigma_2
    loss[loss > mass] = np.nan
    return SequenceCurves(family, _SPLITS, np.array(distance), loss, mass * index.sigma_2 * _SPLITS**2)


def draw_sequences() -> Figure:
    """Left, the loss between measures against n; right, the distance between functions against the size of a split."""
    shifts = np.geomspace(1.0, 1.5, len(SEQUENCES)).tolist()
    hidden = [bad(*each) for each in zip(SEQUENCES, _LEVELS.tolist(), shifts, strict=True)]
    seen = [identifiable(family) for family in IDENTIFIABLE]
    with mpl.rc_context(_STYLE), sns.axes_style("ticks"):
        figure = Figure(figsize=(10.5, 6.2), layout="constrained")
        axes = figure.subplots(2, 2, height_ratios=(1, 0.24))
        _losses(axes[0, 0], hidden, seen)
        _distances(axes[0, 1], hidden, seen)
        handles, labels = axes[0, 1].get_legend_handles_labels()
        for axis, part, title in (
            (axes[1, 0], slice(0, len(hidden)), "Not identifiable: G(t) by formula"),
            (axes[1, 1], slice(len(hidden), None), "Identifiable: the nearest split of size t"),
        ):
            axis.set_axis_off()
            own = axis.legend(handles[part], labels[part], title=title, loc="upper left", ncols=2, **_PLAIN)
            own.set_in_layout(False)  # it may be wider than the panel above it
        figure.supxlabel(textwrap.fill(caption(), 145), x=0.01, ha="left", fontsize=8.5)
        sns.despine(figure)
    return figure


def caption() -> str:
    """What is drawn."""
    return (
        "Left: solid, the explicit sequences, which stay at whatever distance they are put; dashed, the splits that n "
        f"samples with noise {NOISE:g} leave unseen where sigma_2 > 0, e^b t^2 = s sqrt(p / n) / sigma_2, as far as t "
        "< 1. Right: what a split does to the function, by quadrature; the lines through the open points are "
        "e^b sigma_2 t^2, computed, not fitted; what is less than "
        f"{_LEAST:g} is drawn there."
    )


def _losses(axis: Axes, hidden: Sequence[SequenceCurves], seen: Sequence[SequenceCurves]) -> None:
    axis.set(xscale="log", yscale="log", xlabel="sample size n", ylabel=r"Voronoi loss  $D(G_n, G_*)$")
    axis.set_title("Between measures: level, or falling", loc="left")
    for curve, colour, marker in zip(hidden, _BAD, _MARKERS, strict=True):
        axis.plot(_SIZES, curve.loss, marker=marker, ms=4, lw=1.2, color=colour)
    for curve, colour in zip(seen, _GOOD, strict=True):
        axis.plot(_SIZES, curve.loss, "--", lw=1.3, color=colour)
    words = "$n^{-1/2}$: $t_n$ of order $n^{-1/4}$"
    axis.annotate(words, (0.04, 0.05), xycoords="axes fraction", color=_GOOD[0])


def _distances(axis: Axes, hidden: Sequence[SequenceCurves], seen: Sequence[SequenceCurves]) -> None:
    axis.set(xscale="log", yscale="log", xlabel="size t of the split", ylabel=r"$|f_G-f_*|_{L_2(\mu)}$")
    axis.set_title("Between functions: nothing, or of order $t^2$", loc="left")
    axis.set_xticks(ticks := [0.02, 0.05, 0.1, 0.2, 0.4], [f"{t:g}" for t in ticks])
    axis.set_xticks([], minor=True)
    for curve, colour, marker in zip(hidden, _BAD, _MARKERS, strict=True):
        drawn = np.maximum(curve.distance, _LEAST)
        axis.plot(curve.t, drawn, marker=marker, ms=4, lw=0.8, color=colour, label=curve.family)
    for curve, colour, marker in zip(seen, _GOOD, _OPEN, strict=True):
        axis.plot(curve.t, curve.distance, marker, ms=6, mfc="none", mew=1.2, color=colour, label=curve.family)
        axis.plot(curve.t, curve.line, lw=1.1, color=colour)
    axis.annotate(f"rounding: at most {_LEAST:g}", (0.02, 2 * _LEAST), va="bottom", color=_BAD[-1])
    axis.set_ylim(_LEAST / 100, 1)
