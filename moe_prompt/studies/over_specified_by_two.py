"""DOC"""

from __future__ import annotations

from moe_prompt.over_specified import OverSpecifiedStudy
from moe_prompt.studies.over_specified_settings import SMOOTH, study


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified-by-two",
        "with two prompts too many the rates are those of one too many",
        SMOOTH,
        extra=2,
    )
