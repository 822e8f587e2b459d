"""Two gates and three experts, one prompt too many: the expert decides whether splits are visible, the gate does not.

Claim: splits of tanh experts have sigma_2 > 0 under the linear gate and under NoRGa's, and fall as n^-1/4 under both.
Splits of linear and of constant experts are invisible under both: if values are split at equal scores, f does not
change. arXiv 2405.14124 proposes the NoRGa gate to save data; in these cells it changes constants but no rate.

Command: moe-prompt study run norga      (--quick for a picture in a few minutes)
Cost:    1500 fits
Expect:  slope -0.50 of masses and first moments and of the function in all six cells. For the rest,

    | cells                       | slope of D | slope of the split error | when                              |
    |-----------------------------|------------|--------------------------|-----------------------------------|
    | tanh experts, two cells     | -0.50      | -0.25                    | n is large                        |
    | the other four              |            | none                     | splits are long or short by chance |

    For tanh experts sigma_2 is about 0.01, so that the split predicted at n = 1000 is 0.26 to 0.28, which is not small.
    The study non-identifiable explains the other four cells.

Setting: that of over-specified with one prompt, B and C the identity; noise 0.02 as in vpt-vs-vapt, truths drawn once
and none rejected, box [-3, 3], 8 random starts beside splits. The box keeps masses above e^-3, as the law of the split
requires. Pilots of up to 24 replicates at n <= 1e4, with the seed of this study, settled these choices.
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
