"""The cells of the study over-specified at a tenth of the noise, where small samples already follow the asymptotic law.

Claim: as in over-specified. The law's splits are shorter by the square root of the noise ratio, so that its constants
are reached at smaller n.

Command: moe-prompt study run over-specified-low-noise      (--quick for a picture in a few minutes)
Cost:    5000 fits
Expect:  the slopes of over-specified. The ratios of mean errors to the law are nearer to 1 at every n, above all for
         the reparameterised prefix: its predicted split at n = 1000 is 0.1 instead of 0.3.

Setting: that of over-specified with noise 0.002, a tenth: the same truths, drawn once and none rejected, box [-3, 3],
8 random starts beside splits. The box keeps masses above e^-3, as the law of the split requires. Pilots of up to 24
replicates at n <= 1e4, with the seed of this study, settled these choices.
"""

from __future__ import annotations

from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.studies.named.over_specified_settings import SMOOTH, study


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified-low-noise",
        "the same at a tenth of the noise, where small samples are asymptotic too",
        SMOOTH,
        noise=0.002,
    )
