"""Two gates and three experts, one prompt too many: it is the expert that makes a split visible, not the gate.

Claim: under the linear gate and under NoRGa's alike, splits of tanh experts have sigma_2 > 0 and fall as n^-1/4, and
splits of linear and of constant experts are invisible: values split at equal scores leave f as it is. arXiv 2405.14124
proposes the gate so that less data are needed; in these cells it changes constants and no rate.

Command: moe-prompt study run norga      (--quick for a picture in a few minutes)
Cost:    1500 fits
Expect:  slope -0.50 of masses and first moments and of the function in all six cells; in the two of tanh experts -0.50
         of D and -0.25 of the split error where n is large (sigma_2 is about 0.01: at n = 1000 the law's split is
         0.26 to 0.28 and not small); in the other four the split error has no rate: it is long or short as the noise
         has it, see non-identifiable.

Setting: that of over-specified with one prompt, B and C the identity; noise 0.02 as in vpt-vs-vapt, truths drawn once
and none rejected, box [-3, 3] (masses are at least e^-3, which the law of the split needs), 8 random starts beside
splits. Pilots of up to 24 replicates at n <= 1e4, with the seed of this study, settled these.
"""

from __future__ import annotations

from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.studies.named.over_specified_settings import study
from moe_prompt.theory.families import FAMILIES, Family, prefix

CELLS = (
    FAMILIES["linear gate + linear expert"],
    Family("linear gate + constant expert", prefix, random_maps=False),
    FAMILIES["linear gate + tanh ridge"],
    FAMILIES["NoRGa + linear expert"],
    FAMILIES["NoRGa + constant expert"],
    FAMILIES["NoRGa + tanh ridge"],
)


def build() -> OverSpecifiedStudy:
    return study(
        "norga",
        "the expert, not the gate, makes splits visible: tanh experts under both gates, linear, constant under none",
        CELLS,
        atoms=(1,),
        replicates=50,
    )
