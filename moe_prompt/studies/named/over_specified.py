"""One prompt too many, and splits that show: the measure is still learned, split atoms at n^-1/4, all else at n^-1/2.

Claim: in families with sigma_2 > 0, least squares with L' = L + 1 prompts errs as n^{-1/2} in the Voronoi loss D, in
masses and first moments and in the function, and as n^{-1/4} in the size of its splits, in VPT as in VAPT. Means are
those of the law of the split, whose constants come from sigma_2's geometry and from no fit.

Command: moe-prompt study run over-specified      (--quick for a picture in a few minutes)
Cost:    5000 fits, 52 CPU minutes
Expect:  slope -0.50 of D, of masses and first moments and of the function, -0.25 of the split error, and means over
         the law that approach 1; D and split of the reparameterised prefix only where n is large: its sigma_2 is 0.005
         to 0.007, so that at n = 1000 the law's split is 0.3 and not small. Elsewhere sigma_2 is 0.009 to 4.1.

Setting: five families with one prompt and with two in the setting of over_specified_settings.py; noise 0.02, that of
vpt-vs-vapt. Every truth was drawn once and none was rejected. The box of the fits is [-3, 3]: with it masses are at
least e^-3, which the law of the split needs, for an atom of vanishing mass may lie anywhere. How mass is shared within
a split is seen by higher orders only, so that many fits end on the box. Starts are 8 standard normal vectors, which
know nothing of the truth, and the splits of a fit with one prompt less
(:mod:`moe_prompt.estimation.over_specified.split_starts`). Pilots of up to 24 replicates at n <= 1e4, with the seed of
this study, settled the box. The starts were settled by a first run of the whole study from 48 normal vectors: where the
truth has two prompts, a tenth of its fits ended in the second-best minimum.
"""

from __future__ import annotations

from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.studies.named.over_specified_settings import SMOOTH, study


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified",
        "with one prompt too many, families with sigma_2 > 0 learn their measure at n^-1/2 in D, n^-1/4 in the split",
        SMOOTH,
    )
