"""The figure of any study: which layout belongs to which kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from matplotlib.figure import Figure

from moe_prompt.plotting.over_specified import draw_over_specified
from moe_prompt.plotting.rates import draw_rates
from moe_prompt.studies.analysis.cells import Cell
from moe_prompt.studies.base import Study
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy


@singledispatch
def draw_study(study: Study, cells: Sequence[Cell]) -> Figure:
    """A panel per cell and quantity, unless the kind of study has a layout of its own."""
    return draw_rates(study, cells)


draw_study.register(OverSpecifiedStudy, draw_over_specified)
