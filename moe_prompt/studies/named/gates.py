"""Softmax and sigmoid gates on VPT: each parametric in its own model; and what neither can say of a top-K truth.

Claim: least squares reaches the Cramer-Rao bound at n^{-1/2} under a softmax and under a sigmoid gate with as many
prompts as the truth; on the other's data, and on those of a gate that takes one prompt of two, the error levels off at
the distance of the families. A sigmoid fit is no better or worse in rate: gates differ in what they can express.

Command: moe-prompt study run gates      (--quick for a picture in a minute)
Cost:    3000 fits, 2.5 CPU minutes: log in experiments/results/gates.json
Expect:  slope -0.50 of the parameter loss and -1 of the excess risk in matched cells, efficiency 1;
         excess risk 0.386 (softmax on sigmoid data), 0.360 (sigmoid on softmax data), 0.0747 and 0.501 (softmax and
         sigmoid on top-1 data) in the others.

Setting: that of the over-specified studies (X uniform on [-sqrt(3), sqrt(3)]^3, 2 frozen experts, 2 prompts, 2
outputs, noise 0.02, box [-3, 3], standard normal starts); one theta for all three truths, the gate alone differs. The
sigmoid's bias is -log 4, so that its weights add up to about one. The top-1 truth is discontinuous in x: quadrature
finds its floors to about one percent. A top-1 estimator is a study of its own, gates-top-k.
"""

from __future__ import annotations

import math
from dataclasses import replace

from moe_prompt.attention.gates import SigmoidGate, SoftmaxGate, TopKGate
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.named.over_specified_settings import BOX, FROZEN, NOISE, SIZES, truth
from moe_prompt.theory.families import FAMILIES

PROMPTS = 2
GATES = {"softmax": SoftmaxGate(), "sigmoid": SigmoidGate(-math.log(FROZEN + PROMPTS)), "top-1": TopKGate(1)}


def build() -> RateStudy:
    base = truth(FAMILIES["VPT, B injective"], PROMPTS, NOISE)
    truths = {name: replace(base, model=replace(base.model, gate=gate), family=None) for name, gate in GATES.items()}
    return RateStudy(
        name="gates",
        claim="softmax and sigmoid gates each learn at n^-1/2 in their own model and level off at a floor elsewhere",
        truths=truths,
        contenders={name: truths[name].model for name in ("softmax", "sigmoid")},
        sizes=SIZES,
        replicates=100,
        window=(1000, 100_000),
        estimator=LeastSquares(box=BOX),
        starts=Random(count=16),
        quick_sizes=(1000, 3162, 10_000),
    )
