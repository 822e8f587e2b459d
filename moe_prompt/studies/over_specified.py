"""DOC"""

from __future__ import annotations

from moe_prompt.over_specified import OverSpecifiedStudy
from moe_prompt.studies.over_specified_settings import SMOOTH, study


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified",
        "with one prompt too many, families with sigma_2 > 0 learn their measure at n^-1/2 in D, n^-1/4 in the split",
        SMOOTH,
    )
