"""The figure of the profiles over the split size: a valley that narrows with n, and one that never closes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_prompt.estimation.split_profile import split_profile
from moe_prompt.models.sampling import Population
from moe_prompt.plotting import style
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import sigma_2

SIZES = (1000, 10_000, 100_000)
SPLITS = np.geomspace(0.03, 1.0, 7)
CHI = 1.92  # half the 95 % quantile of chi^2_1
_LEAST, _MOST = 3e-2, 3e5
_NODES = 512


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
    with style.styled():
        figure = style.page(2.6)
        axes = figure.subplots(1, len(truths), sharey=True, squeeze=False)[0]
        for axis, (family, population) in zip(axes, truths.items(), strict=True):
            _panel(axis, curves(family, population, sizes), colours)
        axes[0].set_ylabel("rise of the objective, units of s²")
        style.letters(list(axes))
        style.legend_above(figure, axes, len(sizes) + 2)
        sns.despine(figure)
    return figure


def profiles_caption() -> str:
    """What is drawn."""
    return (
        "One sample for each n is fitted with one prompt more than its truth has, two of them held apart by t, and "
        "everything else free. Where sigma_2 > 0 the objective rises as n (e^b sigma_2 t^2)^2 / (2 s^2), to leading "
        "order in t (dashed, computed and not fitted), so that the valley narrows as n grows; where sigma_2 = 0 it "
        "does not rise beyond what noise decides (grey)."
    )


def profiles_note() -> str:
    """Settings."""
    return (
        f"Grey: at most {CHI:g}, half the 95 % quantile of chi-square with one degree of freedom. Rises below "
        f"{_LEAST:g} are drawn there."
    )


def _panel(axis: Axes, found: list[ProfileCurve], colours: list[Any]) -> None:
    identifiable = max(curve.line.max() for curve in found) > CHI
    axis.set(xscale="log", yscale="log", xlabel="size t of the split")
    axis.set_title(f"{found[0].family}\n{'the valley narrows' if identifiable else 'no rise, as σ₂ = 0'}")
    axis.axhspan(0.6 * _LEAST, CHI, color="0.9", lw=0, label="what noise decides")
    for curve, colour in zip(found, colours, strict=True):
        drawn = np.maximum(curve.rise, _LEAST)
        axis.plot(curve.t, drawn, "o-", ms=3, color=colour, label=f"n = {curve.n:,}")
        if identifiable:
            axis.plot(curve.t, curve.line, "--", color=colour)
    axis.plot([], [], "--", color=style.GREY, label="predicted rise")
    style.log_axes(axis, (0.6 * _LEAST, _MOST))
