"""The truths of over-specified fitted with two prompts too many.

Claim: as in over-specified: how many prompts are too many changes constants and no rate. One atom splits into three, or
two atoms into two each; the law takes the nearer to the data of both.

Command: moe-prompt study run over-specified-by-two      (--quick for a picture in a few minutes)
Cost:    1000 fits
Expect:  slope -0.50 of D, of masses and first moments and of the function, -0.25 of the split error, the constants
         those of the law with two vectors more.

Setting: that of over-specified with L' = L + 2: noise 0.02 as in vpt-vs-vapt, the same truths, drawn once and none
rejected, box [-3, 3] (masses are at least e^-3, which the law of the split needs), 8 random starts beside splits.
Pilots of up to 24 replicates at n <= 1e4, with the seed of this study, settled these; 20 replicates and not more, as a
fit costs four CPU seconds.
"""

from __future__ import annotations

from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.studies.named.over_specified_settings import SMOOTH, study


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified-by-two",
        "with two prompts too many the rates are those of one too many",
        SMOOTH,
        extra=2,
        replicates=20,
    )
