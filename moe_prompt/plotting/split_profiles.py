"""The figure of the profiles over the split size: a valley that narrows with n, and one that never closes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.estimation.split_profile import split_profile
from moe_prompt.models.sampling import Population
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import sigma_2

SIZES = (1000, 10_000, 100_000)
SPLITS = np.geomspace(0.03, 1.0, 7)
CHI = 1.92  # half the 95 % quantile of chi^2_1
_LEAST, _MOST = 3e-2, 3e5
_NODES = 512
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 9.5}


@dataclass(frozen=True)
class ProfileCurve:
    """One family at one n: the profile of one sample, and the predicted rise (0: no rise)."""

    family: str
    n: int
    t: np.ndarray
    rise: np.ndarray
    line: np.ndarray


def curves(family: str, population: Population, sizes: tuple[int, ...] = SIZES) -> list[ProfileCurve]:
    """The profiles of one truth's first prompt, split in a fit with one prompt more; one sample of every size."""
    geometry, noise = LocalGeometry.of(population, _NODES), population.noise
    mass = float(geometry.model.unflatten(geometry.theta)[0][0].exp())
    index = sigma_2(geometry, 0).sigma_2
    found = []
    for n in sizes:
        sample = population.sample(n, [np.random.default_rng([n, 0])])
        profile = split_profile(geometry, sample, SPLITS.tolist(), noise, starts=1)
        line = n * (index * mass * SPLITS**2) ** 2 / (2 * noise**2)
        found.append(ProfileCurve(family, n, SPLITS, profile.rise.numpy(), line))
    return found


def draw_profiles(truths: Mapping[str, Population], sizes: tuple[int, ...] = SIZES) -> Figure:
    """A panel per truth, a colour per n; points are computed from one sample, dashed lines predicted."""
    colours = sns.color_palette("crest", len(sizes))
    with mpl.rc_context(_STYLE), sns.axes_style("ticks"):
        figure = Figure(figsize=(10.5, 4.1), layout="constrained")
        axes = figure.subplots(1, len(truths), sharey=True, squeeze=False)[0]
        for axis, (family, population) in zip(axes, truths.items(), strict=True):
            _panel(axis, curves(family, population, sizes), colours)
        axes[0].set_ylabel(r"rise of the objective over its least,  units of $s^2$")
        axes[0].legend(frameon=False, fontsize=8, loc="upper left")
        figure.supxlabel(textwrap.fill(caption(), 160), x=0.01, ha="left", fontsize=8.5)
        sns.despine(figure)
    return figure


def caption() -> str:
    """What is drawn."""
    return (
        "One sample per n; a prompt of the truth is two in the fit, held apart by t, everything else free. Dashed: "
        "n (e^b sigma_2 t^2)^2 / (2 s^2), computed from the truth, not fitted; it is of leading order in t. Grey: at "
        f"most {CHI:g}, half the 95 % quantile of chi-square, what noise alone decides. What is less than {_LEAST:g} "
        "is drawn there."
    )


def _panel(axis: Axes, found: list[ProfileCurve], colours: list[Any]) -> None:
    identifiable = max(curve.line.max() for curve in found) > CHI
    axis.set(xscale="log", yscale="log", xlabel="size t of the split", ylim=(0.6 * _LEAST, _MOST))
    axis.set_title(
        f"{found[0].family}\n{'the valley closes in' if identifiable else 'not identifiable: no far side'}", loc="left"
    )
    axis.axhspan(0.6 * _LEAST, CHI, color="0.93", lw=0)
    for curve, colour in zip(found, colours, strict=True):
        drawn = np.maximum(curve.rise, _LEAST)
        axis.plot(curve.t, drawn, "o-", ms=4, lw=1.1, color=colour, label=f"n = {curve.n:,}".replace(",", " "))
        if identifiable:
            axis.plot(curve.t, curve.line, "--", lw=1.1, color=colour)
    axis.set_xticks(ticks := [0.03, 0.1, 0.3, 1.0], [f"{t:g}" for t in ticks])
    axis.set_xticks([], minor=True)
