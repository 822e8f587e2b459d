"""Prompt experts against their formulas, token by token; VAPT against an explicit convolution and two loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from moe_prompt.attention.prompts import (
    AdaptivePrompt,
    ConstantPrompt,
    FeatureProjector,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptExpert,
    PromptTokens,
    ReparameterizedPrefix,
)
from moe_prompt.errors import InputError

BATCH, RANK, DIM, PROMPTS = 2, 3, 5, 7
GRIDS = [((3, 4), 1), ((3, 4), 2), ((3, 4), 3), ((5, 2), 2), ((1, 6), 1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(number: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(BATCH, number, DIM, generator=seeded(seed), dtype=torch.float64) + 0.3


def adaptive(grid, kernel_size, activation="gelu", residual=False, scale=1.0, **switches) -> AdaptivePrompt:
    projector = FeatureProjector(DIM, RANK, activation, residual, scale, generator=seeded(1))
    prompt = AdaptivePrompt(PROMPTS, grid, projector, kernel_size, generator=seeded(2), **switches).double()
    for seed, parameter in enumerate(prompt.norm.parameters()):
        nn.init.normal_(parameter, generator=seeded(seed))
    if prompt.bias is not None:
        nn.init.normal_(prompt.bias, generator=seeded(3))
    return prompt


def explicit(prompt: AdaptivePrompt, x: torch.Tensor, activation) -> torch.Tensor:
    """W2 act(W1 (sum_k alpha_jk (F * X)_k + b_j)), one prompt and one position at a time."""
    height, width = prompt.grid
    if isinstance(prompt.norm, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * prompt.norm.weight + prompt.norm.bias
    image = x.mT.reshape(BATCH * DIM, 1, height, width)
    convolved = nn.functional.conv2d(image, prompt.kernel[None, None]).reshape(BATCH, DIM, -1)
    g, rows = prompt.feature_projector, []
    for j in range(PROMPTS):
        z = sum(prompt.alpha[j, k] * convolved[:, :, k] for k in range(convolved.shape[-1]))
        z = z if prompt.bias is None else z + prompt.bias[j]
        hidden = activation(torch.stack([z @ g.w1[r] for r in range(RANK)], dim=-1))
        projected = g.scale * sum(hidden[:, r, None] * g.w2[:, r] for r in range(RANK))
        rows.append(z + projected if g.residual else projected)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("grid", "kernel_size"), GRIDS)
@pytest.mark.parametrize(
    "switches",
    [
        {"layer_norm": False},
        {"layer_norm": True},
        {"layer_norm": True, "token_bias": True},
        {"layer_norm": True, "token_bias": True, "residual": True, "scale": 0.4},
    ],
    ids=lambda switches: "+".join(name for name, on in switches.items() if on) or "plain",
)
def test_adaptive_prompt_is_convolution_and_projectors(grid, kernel_size, switches):
    prompt, x = adaptive(grid, kernel_size, **switches), tokens(math.prod(grid))
    with torch.no_grad():
        expected = explicit(prompt, x, nn.functional.gelu)
        key, value = prompt(x)
    torch.testing.assert_close(key, expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(key, value)


def test_channel_dropout_drops_a_channel_for_all_prompts_before_the_bias():
    """P(some channel of 2 x 61 survives, some does not) > 1 - 2^-120."""
    dim, grid = 61, (2, 3)
    projector = FeatureProjector(dim, RANK, residual=True, scale=0.0)
    prompt = AdaptivePrompt(
        PROMPTS, grid, projector, layer_norm=False, channel_dropout=0.5, generator=seeded()
    ).double()
    x = torch.randn(BATCH, 6, dim, dtype=torch.float64)
    dropped = prompt.train()(x).value / prompt.eval()(x).value
    assert set(dropped.detach().round(decimals=9).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped[:, :1].round().expand_as(dropped), dropped.round())


def test_released_configuration_starts_at_exactly_zero():
    projector = FeatureProjector(DIM, RANK, "relu", residual=True, dropout=0.1)
    prompt = AdaptivePrompt(
        PROMPTS, (3, 4), projector, layer_norm=True, token_bias=True, channel_dropout=0.1, zero_init=True
    ).train()
    assert (prompt(tokens(12).float()).value == 0).all()
    prompt(tokens(12).float()).value.sum().backward()
    assert prompt.alpha.grad.abs().max() > 0


@pytest.mark.parametrize(("grid", "kernel_size"), GRIDS)
def test_flattened_is_the_same_function(grid, kernel_size):
    prompt = adaptive(grid, kernel_size, layer_norm=False, scale=0.7)
    flat, x = prompt.flattened(), tokens(math.prod(grid))
    assert isinstance(flat, FlatAdaptivePrompt) and flat.w1.shape == (PROMPTS, RANK, math.prod(grid) * DIM)
    torch.testing.assert_close(flat(x).value, prompt(x).value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("switches", [{"layer_norm": True}, {"token_bias": True}, {"residual": True}])
def test_flattened_refuses_what_is_not_flat(switches):
    with pytest.raises(InputError, match="without layer norm, token bias and residual"):
        adaptive((3, 4), 2, **{"layer_norm": False, **switches}).flattened()


def test_flat_adaptive_prompt_is_its_formula():
    prompt, x = FlatAdaptivePrompt(PROMPTS, DIM, RANK, num_tokens=11, generator=seeded()).double(), tokens(11)
    w1, w2 = prompt.w1.detach().numpy(), prompt.w2.detach().numpy()
    expected = [[w2 @ np.tanh(w1[j] @ np.concatenate(list(row))) for j in range(PROMPTS)] for row in x.numpy()]
    torch.testing.assert_close(prompt(x).value.detach(), torch.tensor(np.array(expected)), rtol=1e-11, atol=1e-12)


def test_linear_gate_expert_is_its_formula():
    prompt = LinearGateExpert(PROMPTS, DIM, 11, "square", bound=1.0, generator=seeded()).double()
    key, value = prompt(tokens(1))
    for b in range(BATCH):
        for j in range(PROMPTS):
            expected = (prompt.eta[j] @ tokens(1)[b, 0]) ** 2
            torch.testing.assert_close(value[b, j], expected, rtol=1e-11, atol=1e-12)
            assert torch.equal(key[b, j], prompt.beta[j])
    assert value.shape == (BATCH, PROMPTS, 11)


@pytest.mark.parametrize("free", [False, True])
def test_reparameterized_prefix_is_its_formula_and_holds_its_maps_unless_free(free):
    prompt = ReparameterizedPrefix(PROMPTS, DIM, free_maps=free, bound=1.0, generator=seeded()).double()
    key, value = prompt(tokens(11))
    for part, w in ((key, prompt.w1), (value, prompt.w2)):
        expected = torch.stack([torch.tanh(w @ p) for p in prompt.p])
        torch.testing.assert_close(part, expected.expand(BATCH, -1, -1), rtol=1e-12, atol=1e-13)
    assert {name for name, _ in prompt.named_parameters()} == ({"p", "w1", "w2"} if free else {"p"})


def test_constant_and_prefix_ignore_the_input():
    vpt, prefix = ConstantPrompt(PROMPTS, DIM, 2.0, seeded()), PrefixPrompt(PROMPTS, DIM, 2.0, 11, seeded())
    assert torch.equal(vpt(tokens(11)).key, vpt.p.expand(BATCH, -1, -1)) and torch.equal(*vpt(tokens(11)))
    key, value = prefix(tokens(11))
    assert torch.equal(key, prefix.key.expand(BATCH, -1, -1)) and value.shape == (BATCH, PROMPTS, 11)
    assert vpt.p.abs().max() <= 2 and vpt.p.abs().max() > 1.5  # fails by chance with probability .75^35 < 1e-4; seeded


EXPERTS = {
    "VPT": lambda: (ConstantPrompt(PROMPTS, DIM), {"p"}, set()),
    "prefix": lambda: (PrefixPrompt(PROMPTS, DIM), {"key", "value"}, set()),
    "reparameterised": lambda: (ReparameterizedPrefix(PROMPTS, DIM, free_maps=True), {"p"}, {"w1", "w2"}),
    "flat": lambda: (FlatAdaptivePrompt(PROMPTS, DIM, RANK), {"w1"}, {"w2"}),
    "linear gate": lambda: (LinearGateExpert(PROMPTS, DIM, 11), {"beta", "eta"}, set()),
    "VAPT": lambda: (
        adaptive((3, 4), 2, token_bias=True),
        {"alpha", "bias"},
        {"kernel", "norm.weight", "norm.bias", "feature_projector.w1", "feature_projector.w2"},
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_conventions(name):
    prompt, own, shared = EXPERTS[name]()
    names = {parameter for parameter, _ in prompt.named_parameters()}
    assert {parameter for parameter in names if not prompt.is_shared(parameter)} == own
    assert {parameter for parameter in names if prompt.is_shared(parameter)} == shared
    assert prompt.num_prompts == PROMPTS


def test_own_expert_must_keep_the_convention():
    class Bad(PromptExpert):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.scale = nn.Parameter(torch.zeros(PROMPTS, DIM)), nn.Parameter(torch.ones(()))

        def forward(self, tokens: torch.Tensor) -> PromptTokens:
            return PromptTokens.both(self.scale * self.p)

    with pytest.raises(InputError, match=r"Bad: every parameter needs .* got first axes \[0, 7\]"):
        _ = Bad().num_prompts
    Bad.shared = ("scale",)
    assert Bad().num_prompts == PROMPTS


def test_bad_sizes_are_named():
    with pytest.raises(InputError, match=r"got kernel size 4 on a grid of \(3, 4\)"):
        adaptive((3, 4), 4)
    with pytest.raises(InputError, match="needs 12 tokens: got 11"):
        adaptive((3, 4), 2)(tokens(11))


def test_same_generator_same_prompts():
    a, b = (adaptive((3, 4), 2) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
