"""One prompt too many where splits do not show: means are learned, the measure is not.

Claim: where sigma_2 = 0 because a split leaves f as it is, least squares learns the function, masses and first moments
at n^-1/2 and stops anywhere on a flat set of splits: the split error has no rate, at any n.

Command: moe-prompt study run non-identifiable      (--quick for a picture in a few minutes)
Cost:    3000 fits, of which 900 took 33 CPU minutes
Expect:  slope -0.50 of masses and first moments and of the function; the 90 % quantile of the split error at n = 1e5
         about that at n = 1000, or more. Its median may fall: nothing holds a fit where it stops, and one of the
         starts is the shortest split that the data ask for.

Setting: that of over-specified with three families: VPT with B of rank 2 in 3 dimensions, split along its kernel;
non-shared prefixes, whose values split at equal keys; VAPT with two linear units, of whose product the score sees the
symmetric part alone. First moments are the least over all ways to give fitted atoms to true ones: long splits cross
cells. Noise 0.02 as in vpt-vs-vapt, truths drawn once and none rejected, 48 random starts; the box [-3, 3]
is what ends the flat sets, and fits end at 1e-3 standard errors, since along a flat set the last digits of the
objective never settle. All starts are random: starts from splits are short ones, and fits would stay there, among the
many minima that are as good.
Pilots of up to 24 replicates at n <= 1e4, with the seed of this study, settled these.
"""

from __future__ import annotations

from moe_prompt.over_specified import OverSpecifiedStudy
from moe_prompt.studies.over_specified_settings import study

FAMILIES = ("VPT, B singular", "prefix, non-shared", "VAPT, linear, r = 2")


def build() -> OverSpecifiedStudy:
    return study(
        "non-identifiable",
        "with one prompt too many, families with invisible splits learn masses and first moments, not the measure",
        FAMILIES,
        splits=False,
        tolerance=1e-3,
    )
