"""The figure of any study: which layout belongs to which kind."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from moe_prompt.errors import require
from moe_prompt.plotting.over_specified import draw_over_specified
from moe_prompt.plotting.rates import draw_rates
from moe_prompt.studies.analysis.cells import Cell
from moe_prompt.studies.base import Study
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy


def draw_study(study: Study, cells: Sequence[Cell]) -> Figure:
    """Families by quantities for over-specified studies; for all others a panel per cell and quantity."""
    require(len(cells) > 0, f"study {study.name} has no rows to draw: run it first.")
    return draw_over_specified(cells) if isinstance(study, OverSpecifiedStudy) else draw_rates(cells)
