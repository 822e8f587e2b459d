"""The data of softmax-gaussian fitted as the published simulation did: what start and stop rule make of a slope.

Claim: with starts beside the truth and a stop when the likelihood changes by less than a millionth, the loss of a fit
with an expert too many falls faster than any theory says, because at large n the fit stays where it started.

Command: moe-prompt study run softmax-gaussian-published      (--quick for a picture in a minute)
Cost:    1040 fits, 3 CPU minutes: log in experiments/results/softmax-gaussian-published.json
Expect:  with two experts as softmax-gaussian; with three, slope about -1.5 of the median Voronoi loss on [1e3, 1e5],
         3 EM steps at n = 1e5 against 170 at n = 1e3, and the Hellinger distance of two experts.

Setting: the public code of arXiv 2305.03288 and of the package it calls. Each start copies true experts, labels
known, and adds noise of order n^-0.083 to coefficients of size 5 to 25 (0.005 to gates, 0.05 to experts; intercept
and slope get the same number) and n^-0.25 to the variances, which are set to the true standard deviations. EM stops
when |L_t - L_{t-1}| <= 1e-6 |L_{t-1}|, at the latest after 2000 iterations; one start with two experts, the best of
five with three. All that is read from that code. Ours differ in the sizes (13 from 1e2 to 1e5 for both, one window),
in losses over translations of the gate, and in leaving out four experts, whose EM takes seconds a fit.
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
