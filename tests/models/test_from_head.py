"""A row of a head as a regression model: with nothing but the row and the number of tokens, the head's own row."""

import numpy as np
import pytest
import torch

from moe_prompt.attention.gates import NonlinearResidualGate, SigmoidGate, SoftmaxGate, TopKGate, ZeroInitGate
from moe_prompt.attention.heads import AttentionHeadMoE
from moe_prompt.attention.prompts import (
    AdaptivePrompt,
    ConstantPrompt,
    FeatureProjector,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    ReparameterizedPrefix,
)
from moe_prompt.errors import InputError
from moe_prompt.models.regression import RegressionModel

DIM, TOKENS, KEY, VALUE, PROMPTS = 3, 4, 5, 2, 2
PROMPT_EXPERTS = {
    "constant": lambda: ConstantPrompt(PROMPTS, DIM, bound=1.0),
    "prefix": lambda: PrefixPrompt(PROMPTS, DIM, bound=1.0),
    "known maps": lambda: ReparameterizedPrefix(PROMPTS, DIM),
    "free maps": lambda: ReparameterizedPrefix(PROMPTS, DIM, free_maps=True),
    "flat adaptive": lambda: FlatAdaptivePrompt(PROMPTS, DIM, 2, "gelu", num_tokens=TOKENS),
    "adaptive": lambda: AdaptivePrompt(PROMPTS, (2, 2), FeatureProjector(DIM, 2, residual=True), token_bias=True),
}
GATES = {
    "softmax": SoftmaxGate,
    "norga": lambda: NonlinearResidualGate(0.7, 1.3),
    "sigmoid": lambda: SigmoidGate(-1.0),
    "top-1": lambda: TopKGate(1),
    "zero-init": lambda: ZeroInitGate(0.4),
}


def head(prompt, gate, **options):
    torch.manual_seed(7)
    weights = [torch.randn(DIM, width, dtype=torch.float64) for width in (KEY, KEY, VALUE)]
    return AttentionHeadMoE(*weights, prompt=prompt and prompt.double(), gate=gate, **options)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("prompt", PROMPT_EXPERTS)
def test_model_is_the_heads_own_row(prompt, gate):
    own = head(PROMPT_EXPERTS[prompt](), GATES[gate]())
    x = torch.randn(11, TOKENS * DIM, dtype=torch.float64)
    for row in (0, 2):
        model = RegressionModel.from_head(own, row, TOKENS)
        with torch.no_grad():
            expected = own(x.unflatten(1, (TOKENS, DIM))).output[:, row]
            found = model.mean(model.theta_of(own.prompt), x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gate", GATES)
def test_jacobian_under_every_gate_is_that_of_differences(gate):
    model = RegressionModel.from_head(head(PROMPT_EXPERTS["flat adaptive"](), GATES[gate]()), 1, TOKENS)
    theta = 0.5 * torch.randn(model.num_parameters, dtype=torch.float64)
    x, h = torch.randn(7, TOKENS * DIM, dtype=torch.float64), 1e-6
    moves = h * torch.eye(len(theta), dtype=torch.float64)
    differences = (model.mean(theta + moves, x) - model.mean(theta - moves, x)).movedim(0, -1) / (2 * h)
    np.testing.assert_allclose(model.jacobian(theta, x), differences, atol=2e-8)


def test_another_expert_or_gate_can_be_named():
    own = head(PROMPT_EXPERTS["constant"](), NonlinearResidualGate())
    model = RegressionModel.from_head(own, 0, TOKENS, PrefixPrompt(3, DIM), gate=SoftmaxGate())
    assert isinstance(model.expert, PrefixPrompt) and isinstance(model.gate, SoftmaxGate) and model.num_atoms == 3


@pytest.mark.parametrize(
    "own, words",
    [
        (lambda: head(None, None), "needs a prompt expert"),
        (lambda: head(ConstantPrompt(2, DIM), None, prompt_tokens=slice(1, None)), "see every token"),
        (lambda: head(ConstantPrompt(2, DIM), None, b_q=torch.ones(KEY).double()), "without biases"),
    ],
)
def test_heads_that_are_no_such_model_are_refused(own, words):
    with pytest.raises(InputError, match=words):
        RegressionModel.from_head(own(), 0, TOKENS)


def test_a_linear_gate_expert_has_values_of_the_heads_width():
    own = head(LinearGateExpert(PROMPTS, DIM, DIM), None)
    x = torch.randn(5, DIM, dtype=torch.float64)
    model = RegressionModel.from_head(own, 0, 1)
    with torch.no_grad():
        expected = own(x[:, None]).output[:, 0]
    np.testing.assert_allclose(model.mean(model.theta_of(own.prompt), x).detach(), expected, atol=1e-12)
