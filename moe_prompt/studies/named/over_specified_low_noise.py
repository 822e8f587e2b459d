"""The cells of over-specified at a tenth of the noise, where small samples are asymptotic too.

Claim: as in over-specified; the law's splits are shorter by the root of the noise, so that its constants are met at
smaller n.

Command: moe-prompt study run over-specified-low-noise      (--quick for a picture in a few minutes)
Cost:    5000 fits
Expect:  slopes of over-specified; means over the law nearer to 1 at every n, above all of the reparameterised prefix,
         whose law's split is 0.1 at n = 1000 where it was 0.3.

Setting: that of over-specified with noise 0.002, a tenth: the same truths, drawn once and none rejected, box [-3, 3]
(masses are at least e^-3, which the law of the split needs), 8 random starts beside splits. Pilots of up to 24
replicates at n <= 1e4, with the seed of this study, settled these.
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
