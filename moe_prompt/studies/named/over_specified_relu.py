"""One prompt too many for VAPT with relu units, where no theorem predicts the split: a measurement.

Claim: nothing is claimed of the split. A relu unit has a kink in its parameters, so it has no second derivative in L2,
and sigma_2 is not defined. The function is expected at n^-1/2.

A heuristic, derived here and not proved. Let two halves of a unit with weights w lie e apart. If e is orthogonal to w,
they differ from the unit in the slab |w'x| < |e'x| only, by |e|^{3/2} in L2, and noise leaves them n^{-1/3} apart. If e
is parallel to w, the unit is only rescaled and the exponential of the score alone is curved: the difference is |e|^2 in
L2, and noise leaves them n^{-1/4} apart. The slower rate, n^{-1/4}, dominates.

Command: moe-prompt study run over-specified-relu      (--quick for a picture in a few minutes)
Cost:    400 fits
Expect:  slope -0.50 of the function; nothing is predicted of the other quantities.

Setting: that of over-specified with one hidden unit; losses are taken up to positive scaling of units. Noise 0.02 as in
vpt-vs-vapt, truths drawn once and none rejected, box [-3, 3], 48 starts and keep = 3. Newton's method uses the second
derivatives on either side of the kink. Fits end within a tenth of a standard error of a minimum: many minima lie at
kinks, and there the length of Newton's step falls as n^-1/2 only (`estimation.over_specified.kinks`). Pilots of up to
40 replicates at n <= 1e4 settled these choices; those for the tolerance had other seeds, the rest the seed of this
study.
"""

from __future__ import annotations

from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.studies.named.over_specified_settings import study
from moe_prompt.theory.families import FAMILIES


def build() -> OverSpecifiedStudy:
    return study(
        "over-specified-relu",
        "relu units have a kink, no second derivative and no sigma_2: what is measured is what there is",
        (FAMILIES["VAPT, relu"],),
        replicates=40,
        splits=False,
        tolerance=0.1,
    )
