"""The figure of the bad sequences: measures that stay away from the truth, functions that never left it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_prompt.plotting import style
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
    with style.styled():
        figure = style.page(4.2)
        axes = figure.subplots(1, 2)
        _losses(axes[0], hidden, seen)
        _distances(axes[1], hidden, seen)
        style.letters(list(axes))
        _legends(figure, hidden, seen)
        sns.despine(figure)
    return figure


def _legends(figure: Figure, hidden: Sequence[SequenceCurves], seen: Sequence[SequenceCurves]) -> None:
    """Families by colour and mark, which are the same in both panels."""
    solid = [
        Line2D([], [], marker=marker, ms=3, color=colour, label=curve.family)
        for curve, colour, marker in zip(hidden, _BAD, _MARKERS, strict=True)
    ]
    dashed = [
        Line2D([], [], ls="--", marker=marker, ms=5, mfc="none", color=colour, label=curve.family)
        for curve, colour, marker in zip(seen, _GOOD, _OPEN, strict=True)
    ]
    told: dict[str, Any] = {"alignment": "left", "title_fontsize": 7.5}
    figure.legend(handles=solid, title="Not identifiable: G(t) by formula", loc="outside upper left", ncols=2, **told)
    title = "Identifiable: the nearest split of size t"
    figure.legend(handles=dashed, title=title, loc="outside upper right", **told)


def sequences_caption() -> str:
    """What the two panels show."""
    return (
        "For a family that is not identifiable, a fit can stay at any distance from the true measure (a, solid lines) "
        "and yet give the same function (b, filled marks, at the level of rounding). Where sigma_2 > 0 every split of "
        "size t changes the function by about e^b sigma_2 t^2 (b, dashed lines, computed and not fitted), so that the "
        "splits that n samples leave unseen shrink with n (a, dashed lines)."
    )


def sequences_note() -> str:
    """Settings."""
    return (
        f"Noise s = {NOISE:g}. Dashed lines in (a) are e^b t^2 = s sqrt(p / n) / sigma_2, where t < 1; open marks in "
        f"(b) are by quadrature. Distances below {_LEAST:g} are drawn there."
    )


def _losses(axis: Axes, hidden: Sequence[SequenceCurves], seen: Sequence[SequenceCurves]) -> None:
    axis.set(xscale="log", yscale="log", xlabel="sample size n")
    axis.set_ylabel(label := r"Voronoi loss  $D(G_n, G_*)$", size=style.label_size(label))
    axis.set_title("distance of measures: level, or falling")
    for curve, colour, marker in zip(hidden, _BAD, _MARKERS, strict=True):
        axis.plot(_SIZES, curve.loss, marker=marker, ms=3, color=colour)
    for curve, colour in zip(seen, _GOOD, strict=True):
        axis.plot(_SIZES, curve.loss, "--", color=colour)
    style.words_inside(axis, [("$n^{-1/2}$", _GOOD[0], style.NUMBER)])
    style.log_axes(axis)


def _distances(axis: Axes, hidden: Sequence[SequenceCurves], seen: Sequence[SequenceCurves]) -> None:
    axis.set(xscale="log", yscale="log", xlabel="size t of the split")
    axis.set_ylabel(label := r"$|f_G-f_*|_{L_2(\mu)}$", size=style.label_size(label))
    axis.set_title("distance of functions: none, or rising as t²")
    for curve, colour, marker in zip(hidden, _BAD, _MARKERS, strict=True):
        drawn = np.maximum(curve.distance, _LEAST)
        axis.plot(curve.t, drawn, marker=marker, ms=3, lw=0.8, color=colour, label=curve.family)
    for curve, colour, marker in zip(seen, _GOOD, _OPEN, strict=True):
        axis.plot(curve.t, curve.distance, marker, ms=5, mfc="none", mew=1.0, color=colour, label=curve.family)
        axis.plot(curve.t, curve.line, "--", color=colour)
    style.log_axes(axis, (_LEAST / 100, 1.0))
    axis.annotate(f"rounding: at most {style.plain(_LEAST)}", (0.02, 2 * _LEAST), va="bottom", color=_BAD[-1])
