"""The truths of the study over-specified, fitted with two prompts too many.

Claim: as in over-specified: the number of surplus prompts changes constants but no rate. Either one atom splits into
three, or two atoms split into two each; the law takes the one that is nearer to the data.

Command: moe-prompt study run over-specified-by-two      (--quick for a picture in a few minutes)
Cost:    1000 fits
Expect:  slope -0.50 of D, of masses and first moments and of the function, -0.25 of the split error, with the constants
         of the law of the split for two surplus prompts.

Setting: that of over-specified with L' = L + 2: noise 0.02 as in vpt-vs-vapt, the same truths, drawn once and none
rejected, box [-3, 3], 8 random starts beside splits. The box keeps masses above e^-3, as the law of the split requires.
Pilots of up to 24 replicates at n <= 1e4, with the seed of this study, settled these choices. There are only 20
replicates, because a fit takes four CPU seconds.
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
