"""A top-1 gate, which chooses one of two prompts: the boundary of the choice is learned at 1/n, the rest at n^{-1/2}.

Claim: f jumps where the scores of the two prompts are equal, which is a hyperplane in x. Least squares learns this
boundary like a change point, at n^{-1}. It learns the other p - q = 5 directions of theta at n^{-1/2}, with the same
constants as if the boundary were known. The Cramer-Rao bound of E[J'J] is not a bound for this model and is not drawn
(`models.gating`, `studies.kinds.top_k`).

Command: moe-prompt study run gates-top-k      (--quick for a picture in a minute)
Cost:    500 fits, 6 CPU minutes: log in experiments/results/gates-top-k.json
Expect:  every fit converges, and

    | quantity                                             | slope                    | ratio to bound |
    |------------------------------------------------------|--------------------------|----------------|
    | median error of the boundary                         | near -1 (measured -0.97) |                |
    | parameter loss                                       | -1/2                     | 1              |
    | risk at x where truth and fit choose the same prompt | -1                       | 1              |

    The bound is that for a known boundary. At some sizes, up to a third of the fits stop at a minimum that is a few s^2
    above the truth's objective (s is the noise). The column `missed` counts them.

Setting: that of the study gates, with noise 0.5 instead of 0.02 and gating biases larger by 2. With noise 0.02 and
n <= 1e5, the smooth part of f carries more information on the boundary than the jumps do, and the error of the boundary
falls as n^{-1/2}. The window begins at n = 10 000 for the same reason. Noises of 0.02, 0.1, 0.2, 0.4, 0.5 and 0.8 and
both biases were tried on up to 16 replicates. Starts are standard normal and do not depend on the truth.
"""

from __future__ import annotations

from dataclasses import replace

from moe_prompt.attention.gates import TopKGate
from moe_prompt.estimation.starts import Random
from moe_prompt.estimation.top_one.least_squares import TopOneLeastSquares
from moe_prompt.studies.kinds.top_k import ChoiceStudy
from moe_prompt.studies.named.over_specified_settings import BOX, SIZES, truth
from moe_prompt.theory.families import FAMILIES

NOISE, RAISED = 0.5, 2.0


def build() -> ChoiceStudy:
    base = truth(FAMILIES["VPT, B injective"], 2, NOISE)
    theta = base.theta.clone()
    theta[base.model.slices["b"]] += RAISED
    own = replace(base, model=replace(base.model, gate=TopKGate(1)), theta=theta, family=None)
    return ChoiceStudy(
        name="gates-top-k",
        claim="under a top-1 gate the boundary of the choice is learned at 1/n and the rest at n^-1/2",
        truths={"top-1": own},
        contenders={"top-1": own.model},
        sizes=SIZES,
        replicates=100,
        window=(10_000, 100_000),
        estimator=TopOneLeastSquares(box=BOX),
        starts=Random(count=16),
        quick_sizes=(1000, 10_000, 31_623),
        quick_replicates=20,
    )
