"""The data of softmax-gaussian, fitted as in the published simulation: what starts and stopping rule do to a slope.

Claim: the published fits start beside the truth and stop when the likelihood changes by less than a millionth. With an
expert too many, their loss then falls faster than any theory says, because at large n a fit stays where it started.

Command: moe-prompt study run softmax-gaussian-published      (--quick for a picture in a minute)
Cost:    1040 fits, 3 CPU minutes: log in experiments/results/softmax-gaussian-published.json
Expect:  with two experts, the results of softmax-gaussian. With three, a slope of about -1.5 of the median Voronoi loss
         on [1e3, 1e5], 3 EM steps at n = 1e5 against 170 at n = 1e3, and the Hellinger distance of two experts.

Setting: the public code of arXiv 2305.03288 and of the package that it calls, from which all of this is read:

- A start copies true experts, with known labels, and adds noise. The noise is of order n^-0.083 on coefficients of size
  5 to 25, with factor 0.005 for gates and 0.05 for experts; intercept and slope get the same number. It is of order
  n^-0.25 on the variances, which the code sets to the true standard deviations.
- EM stops when |L_t - L_{t-1}| <= 1e-6 |L_{t-1}|, at the latest after 2000 iterations.
- Two experts are fitted from one start, three from five starts of which the best fit counts.

We differ in three respects. Both cells have 13 sizes from 1e2 to 1e5 and one window. Losses are taken over translations
of the gate. Four experts are left out, since their EM takes seconds a fit.
"""

from __future__ import annotations

from moe_prompt.likelihood.models import GaussianMoE
from moe_prompt.likelihood.published_em import PublishedEM
from moe_prompt.likelihood.starts import BesideTruth
from moe_prompt.studies.kinds.likelihood import Contender, LikelihoodStudy
from moe_prompt.studies.kinds.likelihood_scoring import SoftmaxGaussianJudge
from moe_prompt.studies.named.softmax_gaussian import SIZES, truth


def build() -> LikelihoodStudy:
    return LikelihoodStudy(
        name="softmax-gaussian-published",
        claim="the same data with the starts and the stop rule of the published simulation",
        truths={"two": truth()},
        contenders={
            "two": Contender(BesideTruth(1), GaussianMoE(2, 1), PublishedEM()),
            "three": Contender(BesideTruth(5), GaussianMoE(3, 1), PublishedEM()),
        },
        judge=SoftmaxGaussianJudge(),
        counted="experts",
        sizes=SIZES,
        replicates=40,
        window=(1_000, 100_000),
        quick_sizes=SIZES[:9:2],
        quick_replicates=10,
    )
