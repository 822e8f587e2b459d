"""DOC"""

from __future__ import annotations

from moe_prompt.over_specified import OverSpecifiedStudy
from moe_prompt.studies.over_specified_settings import study


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified-relu",
        "relu units have a kink, no second derivative and no sigma_2: what is measured is what there is",
        ("VAPT, relu",),
    )
