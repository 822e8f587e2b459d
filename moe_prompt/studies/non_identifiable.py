"""DOC"""

from __future__ import annotations

from moe_prompt.over_specified import OverSpecifiedStudy
from moe_prompt.studies.over_specified_settings import study

FAMILIES = ("VPT, B singular", "prefix, non-shared", "VAPT, linear, r = 2")


def build() -> OverSpecifiedStudy:
    return study(
        "non-identifiable",
        "with one prompt too many, families with invisible splits learn masses and first moments, not the measure",
        FAMILIES,
    )
