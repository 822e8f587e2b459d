"""The figure of any study: which layout belongs to which kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from moe_prompt.plotting.over_specified import draw_over_specified
from moe_prompt.plotting.rates import draw_rates
from moe_prompt.studies.base import Study
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy


@singledispatch
def draw(study: Study, rows: pd.DataFrame, notes: Mapping[str, Any]) -> Figure:
    """A panel per cell and quantity, unless the kind of study has a layout of its own."""
    return draw_rates(study, rows, notes)


draw.register(OverSpecifiedStudy, draw_over_specified)
