"""One prompt too many, where splits are visible: split prompts are learned at n^-1/4, everything else at n^-1/2.

With one prompt more than the truth, two fitted prompts share a true prompt. Their distance is called the *split*, and
sigma_2 measures how strongly a split changes the function at second order.

Claim: in families with sigma_2 > 0, least squares with L' = L + 1 prompts errs as n^{-1/2} in the Voronoi loss D, in
masses and first moments and in the function, and as n^{-1/4} in the length of splits, for VPT as for VAPT. The mean
errors are those of the law of the split (`theory.split_law`), whose constants are computed and not fitted.

Command: moe-prompt study run over-specified      (--quick for a picture in a few minutes)
Cost:    5000 fits, 52 CPU minutes
Expect:  slope -0.50 of D, of masses and first moments and of the function, and -0.25 of the split error. The ratios of
         mean errors to the law approach 1. The reparameterised prefix gets there only at large n: its sigma_2 is 0.005
         to 0.007, and the split predicted at n = 1000 is 0.3, which is not small. In the other families sigma_2 is
         0.009 to 4.1.

Setting: five families, each with a truth of one prompt and one of two, in the common setting of
`over_specified_settings`; noise 0.02, that of vpt-vs-vapt. Every truth was drawn once and none was rejected. The box of
the fits is [-3, 3]. It keeps masses above e^-3, as the law of the split requires: an atom of vanishing mass could lie
anywhere. Only terms of higher order determine how two atoms of a split share their mass, so many fits end on the box.
Starts are 8 standard normal vectors, which do not depend on the truth, and the splits of a fit with one prompt less
(`estimation.over_specified.split_starts`). Pilots of up to 24 replicates at n <= 1e4, with the seed of this study,
settled the box. A first run of the whole study, from 48 normal vectors, settled the starts: with two true prompts, a
tenth of its fits ended in the second-best minimum.
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
