"""A top-K gate, K = 1 of two prompts: the boundary of the choice is learned at 1/n, everything else at n^{-1/2}.

Claim: f jumps in x where the two prompts score alike, so that the hyperplane between them is learned as a change point,
n^{-1}, and the other p - q = 5 directions of theta at n^{-1/2}, with the constants of a known hyperplane. The
Cramer-Rao bound of E[J'J] is no bound here and is not drawn (moe_prompt/models/gating.py,
moe_prompt/studies/kinds/top_k.py).

Command: moe-prompt study run gates-top-k      (--quick for a picture in a minute)
Cost:    500 fits, 6 CPU minutes: log in experiments/results/gates-top-k.json
Expect:  median of the boundary's error near n^{-1} (measured: -0.97), parameter loss n^{-1/2} and the risk where
         both choose alike n^{-1}, each 1 times the bound of a known boundary; every fit converged. Up to a third
         of the fits at a size stop at a minimum a few s^2 above the truth's objective: the column `missed`.

Setting: that of the study gates with noise 0.5 instead of 0.02 and gating biases higher by 2. With noise 0.02 the
smooth part of f tells more of the hyperplane than its jumps do up to n = 1e5, and the error falls by n^{-1/2} there;
noises 0.02, 0.1, 0.2, 0.4, 0.5 and 0.8 and both biases were tried on up to 16 replicates. The window begins at
n = 10 000 for the same reason. Starts are standard normal and know nothing of the truth.
"""

from __future__ import annotations

from dataclasses import replace

from moe_prompt.attention.gates import TopKGate
from moe_prompt.estimation.starts import Random
from moe_prompt.estimation.top_one.least_squares import TopOneLeastSquares
from moe_prompt.studies.kinds.top_k import ChoiceStudy
from moe_prompt.studies.named.over_specified_settings import BOX, SIZES, truth

NOISE, RAISED = 0.5, 2.0


def build() -> ChoiceStudy:
    base = truth("VPT, B injective", 2, NOISE)
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
