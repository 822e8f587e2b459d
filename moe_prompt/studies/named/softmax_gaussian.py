"""A softmax-gated mixture of two Gaussian experts, fitted with two, three and four experts.

Claim: maximum likelihood learns the density at n^-1/2 (Hellinger distance) with two, three or four experts for two.
With two it also learns the parameters at n^-1/2, at the Cramer-Rao bound. With more, arXiv 2305.03288 proves n^-1/2 for
its Voronoi loss, but up to n = 1e5 the distribution of this loss has two humps: the loss falls if the surplus expert
lies beside a true one, and stays at its upper bound if it lies elsewhere. The slope of a median depends on which hump
has more fits.

Command: moe-prompt study run softmax-gaussian      (--quick for a picture in a minute)
Cost:    1560 fits, 9 CPU minutes: log in experiments/results/softmax-gaussian.json
Expect:  slope -0.50 of the median Hellinger distance in every cell. Slope -0.5 of the median Voronoi loss with two
         experts; with three and four, anything between -0.1 and -0.9 with a standard error of 0.15 to 0.25.

Setting: arXiv 2305.03288 as printed and as in its public code: d = 1, gates (-8, 25) and (0, 0), experts (15, -20)
and (-5, 20), standard deviations 0.3 and 0.4, X an even grid on [0, 1].

Coefficients are kept in [-40, 40] and standard deviations above 0.1, because the likelihood is unbounded. With a
surplus expert the maximum is often a narrow expert of a few observations that ends on this box, far from both true
experts. Losses are taken over translations of the gate, so that labels do not matter; the Voronoi loss is then at most
the true mass, 1.0003. Starts are random and do not depend on the truth or on n. A surplus expert makes many local
maxima. From 32 starts, half of the fits end in the best maximum known; on average a fit ends 0.3 to 1 log-likelihoods
below it, and every fit is above the truth. Pilots of 10 to 30 replicates settled the box and the starts; sizes and
window were fixed before.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from moe_prompt.likelihood.expectation_maximization import ExpectationMaximization
from moe_prompt.likelihood.models import GaussianMoE
from moe_prompt.likelihood.population import MixturePopulation
from moe_prompt.likelihood.starts import Scattered
from moe_prompt.models.covariates import EvenGrid
from moe_prompt.studies.kinds.likelihood import Contender, Fixed, LikelihoodStudy
from moe_prompt.studies.kinds.likelihood_scoring import SoftmaxGaussianJudge

SIZES = tuple(round(n) for n in np.geomspace(1e2, 1e5, 13))
TRUTH = [-8.0, 25.0, 15.0, -20.0, -5.0, 20.0, math.log(0.3), math.log(0.4)]


def truth() -> Fixed:
    return Fixed(MixturePopulation(GaussianMoE(2, 1), torch.tensor(TRUTH, dtype=torch.float64), EvenGrid()))


def build() -> LikelihoodStudy:
    starts = Scattered({"gate": 10.0, "mean": 12.0, "log_sd": 0.5}, log_sd=1.0, count=32)
    estimator = ExpectationMaximization(box=40.0, least_sd=0.1, shortlist=16)
    return LikelihoodStudy(
        name="softmax-gaussian",
        claim="a softmax-gated mixture of Gaussian experts, fitted with two, three and four of them",
        truths={"two": truth()},
        contenders={
            name: Contender(starts, GaussianMoE(k, 1), estimator) for name, k in (("two", 2), ("three", 3), ("four", 4))
        },
        judge=SoftmaxGaussianJudge(),
        counted="experts",
        sizes=SIZES,
        replicates=40,
        window=(1_000, 100_000),
        quick_sizes=SIZES[:9:2],
        quick_replicates=10,
    )
