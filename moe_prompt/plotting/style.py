"""How figures look: drawn at the width they are printed at, no type under 7 points, equal bytes for equal rows."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea, VPacker
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from moe_prompt.studies.analysis.rate_fit import RateFit

PAGE = 6.8  # inches: the width of a page's text; 3.3 is that of one of its two columns
INK, LINE, FIT, GREY = "#1f5a94", "#c1440e", "#222222", "#6b6b6b"
NUMBER = 10  # points: the exponent of a slope is set at 7/10 of this
STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 3,
    "axes.labelpad": 2,
}
FILES: dict[Any, Any] = {"svg.hashsalt": "moe_prompt", "pdf.fonttype": 42}  # read when a file is written, not before


def styled() -> Any:
    """The settings within which a figure is made; the user's own are left alone."""
    return mpl.rc_context({**sns.axes_style("ticks"), **STYLE})


def page(height: float) -> Figure:
    """A figure as wide as a page; the height is in inches."""
    return Figure(figsize=(PAGE, height), layout="constrained")


def write_figure(figure: Figure, path: Path, metadata: dict[str, Any]) -> None:
    """Write a figure; equal figures give equal bytes if `metadata` has no date."""
    with mpl.rc_context(FILES):
        figure.savefig(path, dpi=200, metadata=metadata)


def log_axes(axis: Axes, ylim: tuple[float, float] | None = None) -> None:
    """Both axes logarithmic, few ticks, numbers without exponents in small type."""
    axis.set(xscale="log", yscale="log")
    if ylim is not None:
        axis.set_ylim(*ylim)
    for side in (axis.xaxis, axis.yaxis):
        low, high = side.get_view_interval()
        few = high / low < 30
        side.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=5))
        side.set_major_formatter(FuncFormatter(short if side is axis.xaxis else plain))
        side.set_minor_formatter(NullFormatter())


def plain(value: float | int, _: Any = None) -> str:
    """A tick without an exponent in small type.

    >>> [plain(value) for value in (1000, 0.001, 1e-6)]
    ['1000', '0.001', '1e-6']
    """
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")


def short(value: float | int, _: Any = None) -> str:
    """A sample size: k for thousands, M for millions.

    >>> [short(value) for value in (200, 1000, 100_000, 1e6)]
    ['200', '1k', '100k', '1M']
    """
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return plain(value)


def power(fit: RateFit) -> str:
    r"""The fitted power of n with its standard error, for mathtext.

    >>> power(RateFit(-0.498, 0.0123, 0.0)), power(RateFit(-0.498, 0.004, 0.0)), power(RateFit(-0.5, np.nan, 0.0))
    ('$n^{-0.50\\pm0.01}$', '$n^{-0.498\\pm0.004}$', '$n^{-0.500}$')
    """
    error = fit.error
    digits = 2 if error is not None and error >= 0.00995 else 3
    scatter = "" if error is None else f"\\pm{error:.{digits}f}"
    return f"$n^{{{fit.slope:.{digits}f}{scatter}}}$"


def exponent(value: float) -> str:
    """A predicted exponent with a true minus sign, as a fraction where it is a common one.

    >>> [exponent(value)[1:] for value in (-0.25, -1.0, -0.46)]
    ['1/4', '1', '0.46']
    """
    named = {-0.25: "-1/4", -0.5: "-1/2"}
    return named.get(value, f"{value:g}").replace("-", "\N{MINUS SIGN}")


def label_size(text: str) -> float:
    """Points of a label, larger where it has indices, which are set at 7/10 of it."""
    return 9.5 if "_" in text or "^" in text else 7.5


def words_inside(axis: Axes, lines: Iterable[tuple[str, str, int]], corner: str = "lower left") -> None:
    """Lines of (text, colour, points) in a corner of a panel."""
    areas: list[Artist] = [
        TextArea(text, textprops={"color": colour, "fontsize": size}) for text, colour, size in lines
    ]
    if areas:
        packed = VPacker(children=areas, align="left", pad=0, sep=2)
        axis.add_artist(AnchoredOffsetbox(corner, child=packed, pad=0.2, borderpad=0.2, frameon=False))


def letters(axes: Sequence[Axes]) -> None:
    """(a), (b), ... before the titles of the panels."""
    for axis, letter in zip(axes, _letters(len(axes)), strict=True):
        title = axis.get_title(loc="left")
        *above, last = title.split("\n")
        axis.set_title("\n".join([*above, f"({letter}) {last}".rstrip()]), loc="left")


def _letters(count: int) -> list[str]:
    single = string.ascii_lowercase
    return [single[i] if i < 26 else single[i // 26 - 1] + single[i % 26] for i in range(count)]


def legend_above(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """Every label of some axes once, over all panels."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=columns)


def log_limits(values: Sequence[float], below: float = 0.08, above: float = 0.06) -> tuple[float, float] | None:
    """Limits of a logarithmic axis about positive values, with shares of its length left free; None without values."""
    positive = np.array([value for value in values if np.isfinite(value) and value > 0])
    if not len(positive):
        return None
    low, high = np.log(positive.min()), np.log(positive.max())
    length = max(high - low, np.log(2.0))
    return float(np.exp(high - length - below * length)), float(np.exp(high + above * length))
