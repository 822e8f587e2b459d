"""DOC"""

from __future__ import annotations

from moe_prompt.over_specified import OverSpecifiedStudy
from moe_prompt.studies.over_specified_settings import SMOOTH, study


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified-low-noise",
        "the same at a tenth of the noise, where small samples are asymptotic too",
        SMOOTH,
        noise=0.002,
    )
