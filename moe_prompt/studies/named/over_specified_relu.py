"""One prompt too many for VAPT with relu units: no sigma_2, so what is measured is what there is.

Claim: none of a split. A relu unit has a kink in its parameters, no second derivative in L2 and no sigma_2. What one
would expect, derived here and not proved: two halves of a unit e apart across its weights w differ from it in the slab
|w'x| < |e'x|, |e|^{3/2} in L2, so that noise leaves them n^{-1/3} apart; along w the unit scales and the score's
exponential alone bends, |e|^2 in L2, n^{-1/4}. The slower leads. The function is expected at n^-1/2.

Command: moe-prompt study run over-specified-relu      (--quick for a picture in a few minutes)
Cost:    400 fits
Expect:  slope -0.50 of the function; of the others nothing is predicted.

Setting: that of over-specified, one hidden unit, losses up to positive scaling of units; noise 0.02 as in vpt-vs-vapt,
truths drawn once and none rejected, box [-3, 3], 48 starts and keep = 3. Newton's second derivatives are those on
either side of the kink. Fits end within a tenth of a standard error of a minimum: many minima are at kinks, and there
Newton's step has a length that falls as n^-1/2 only (moe_prompt.estimation.over_specified.kinks). Pilots of up to 40
replicates at n <= 1e4, of other seeds for the tolerance and of this study's for the rest, settled these.
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
