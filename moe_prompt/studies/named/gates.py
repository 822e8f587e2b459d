"""Softmax and sigmoid gates on VPT: each learns its own truth at the parametric rate, and neither learns a top-1 truth.

Claim: with as many prompts as the truth, least squares errs as n^{-1/2}, at the Cramer-Rao bound, if the fitted gate is
the true one, for the softmax and for the sigmoid gate. On data from another gate, the error levels off at the distance
of the two families. The gates differ in what they can express and not in their rate.

Command: moe-prompt study run gates      (--quick for a picture in a minute)
Cost:    3000 fits, 2.5 CPU minutes: log in experiments/results/gates.json
Expect:  with the true gate: slope -0.50 of the parameter loss and -1 of the excess risk, efficiency 1.
         With another gate: an excess risk that levels off at

    | fitted  | softmax data | sigmoid data | top-1 data |
    |---------|--------------|--------------|------------|
    | softmax | none         | 0.386        | 0.0747     |
    | sigmoid | 0.360        | none         | 0.501      |

Setting: that of the over-specified studies: X uniform on [-sqrt(3), sqrt(3)]^3, 2 frozen experts, 2 prompts, 2 outputs,
noise 0.02, box [-3, 3], standard normal starts. All three truths have the same theta and differ in the gate alone. The
sigmoid's bias is -log 4, so that the weights of the 4 experts sum to about one. The top-1 truth jumps in x, so that
quadrature finds its two floors to about one percent only. The study gates-top-k fits a top-1 gate to top-1 data.
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
