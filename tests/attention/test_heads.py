"""The explicit head against two oracles that share no code with it: numpy double loops and fused attention."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from moe_prompt.attention import prompts as experts
from moe_prompt.attention.attention_weights import AttentionWeights
from moe_prompt.attention.gates import NonlinearResidualGate, SigmoidGate, SoftmaxGate, TopKGate, ZeroInitGate
from moe_prompt.attention.heads import AttentionHeadMoE, MultiHeadAttentionMoE
from moe_prompt.errors import InputError

BATCH, KEY, VALUE, TOKENS, DIM, PROMPTS = 2, 3, 5, 7, 11, 13
GRID = (2, 3)  # the patch tokens, after one class token
RELATIVE = 1e-12


def softmax(scores: list[float]) -> np.ndarray:
    weights = np.array([math.exp(s - max(scores)) for s in scores])
    return weights / weights.sum()


def loop_softmax(row, column_means):
    return softmax(row)


def loop_norga(row, column_means):
    return softmax(row[:TOKENS] + [s + 0.7 * math.tanh(1.3 * s) for s in row[TOKENS:]])


def loop_sigmoid(row, column_means):
    return np.array([1 / (1 + math.exp(-(s - 1.5))) for s in row])


def loop_top_k(row, column_means):
    kept = sorted(range(PROMPTS), key=lambda j: -column_means[TOKENS + j])[:4]
    weights = np.zeros(TOKENS + PROMPTS)
    places = [*range(TOKENS), *(TOKENS + j for j in kept)]
    weights[places] = softmax(row[:TOKENS] + [column_means[TOKENS + j] for j in kept])
    return weights


def loop_zero_init(row, column_means):
    return np.concatenate([softmax(row[:TOKENS]), math.tanh(0.9) * softmax(row[TOKENS:])])


GATES = {
    "softmax": (SoftmaxGate, loop_softmax),
    "NoRGa": (lambda: NonlinearResidualGate(0.7, 1.3), loop_norga),
    "sigmoid": (lambda: SigmoidGate(-1.5), loop_sigmoid),
    "top-K": (lambda: TopKGate(4), loop_top_k),
    "zero-init": (lambda: ZeroInitGate(0.9), loop_zero_init),
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_prompts() -> dict[str, tuple[experts.PromptExpert, slice]]:
    patches, seeded = slice(1, None), {"generator": torch.Generator().manual_seed(5)}
    projector = experts.FeatureProjector(DIM, 3, "gelu", residual=True, scale=0.3, **seeded)
    adaptive = experts.AdaptivePrompt(PROMPTS, GRID, projector, token_bias=True, **seeded)
    return {
        "constant": (experts.ConstantPrompt(PROMPTS, DIM, 1.0, **seeded), slice(None)),
        "prefix": (experts.PrefixPrompt(PROMPTS, DIM, 1.0, **seeded), slice(None)),
        "reparameterised": (experts.ReparameterizedPrefix(PROMPTS, DIM, bound=1.0, **seeded), slice(None)),
        "flat": (experts.FlatAdaptivePrompt(PROMPTS, DIM, 3, num_tokens=math.prod(GRID), **seeded), patches),
        "adaptive": (adaptive, patches),
        "linear gate": (experts.LinearGateExpert(PROMPTS, DIM, DIM, bound=1.0, **seeded), slice(2, 3)),
    }


def make_head(prompt: str = "adaptive", gate: str = "softmax", biases: bool = True) -> AttentionHeadMoE:
    expert, seen = make_prompts()[prompt]
    weights = random(DIM, KEY, seed=1), random(DIM, KEY, seed=2), random(DIM, VALUE, seed=3)
    offsets = (random(KEY, seed=6), random(KEY, seed=7), random(VALUE, seed=8)) if biases else (None, None, None)
    return AttentionHeadMoE(*weights, expert.double(), GATES[gate][0](), *offsets, prompt_tokens=seen)


def loop_head(head: AttentionHeadMoE, tokens: np.ndarray, gate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, gates and experts of one sequence, one query and one expert at a time."""
    w_q, w_k, w_v, b_q, b_k, b_v = (getattr(head, name).numpy() for name in ("w_q", "w_k", "w_v", "b_q", "b_k", "b_v"))
    key, value = (part.detach().numpy() for part in head.prompt(torch.from_numpy(tokens)[head.prompt_tokens]))
    keys, values = [*tokens, *key], [*tokens, *value]
    scores = [[float((w_q.T @ x + b_q) @ (w_k.T @ k + b_k)) / math.sqrt(KEY) for k in keys] for x in tokens]
    means = [sum(row[j] for row in scores) / TOKENS for j in range(len(keys))]
    gates = np.stack([gate(row, means) for row in scores])
    mixed = [w_v.T @ v + b_v for v in values]
    output = [sum(gates[i, j] * mixed[j] for j in range(len(keys))) for i in range(TOKENS)]
    return np.stack(output), gates, np.stack(mixed)


def assert_close(actual: torch.Tensor, expected) -> None:
    actual, expected = actual.detach().numpy(), torch.as_tensor(expected).detach().numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= RELATIVE * np.abs(expected).max()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("prompt", make_prompts())
def test_head_is_the_double_loop(prompt, gate):
    head, tokens = make_head(prompt, gate), random(BATCH, TOKENS, DIM)
    mixture = head(tokens)
    for b in range(BATCH):
        output, gates, mixed = loop_head(head, tokens[b].numpy(), GATES[gate][1])
        assert_close(mixture.output[b], output)
        assert_close(mixture.gates[b], gates)
        assert_close(mixture.experts[b], mixed)


@pytest.mark.parametrize("gate", ["softmax", "NoRGa"])
@pytest.mark.parametrize("prompt", make_prompts())
def test_head_is_fused_attention_with_more_keys_and_values(prompt, gate):
    head, tokens = make_head(prompt, gate), random(BATCH, TOKENS, DIM)
    key, value = head.prompt(tokens[:, head.prompt_tokens])
    q = tokens @ head.w_q + head.b_q
    k = torch.cat([tokens, key], dim=1) @ head.w_k + head.b_k
    v = torch.cat([tokens, value], dim=1) @ head.w_v + head.b_v
    residual = torch.zeros(BATCH, TOKENS, TOKENS + PROMPTS, dtype=torch.float64)
    if gate == "NoRGa":
        residual[..., TOKENS:] = 0.7 * torch.tanh(1.3 * (q @ k.mT / math.sqrt(KEY))[..., TOKENS:])
    fused = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=residual)
    assert_close(head(tokens).output, fused)


def test_pretrained_head_has_no_prompts():
    head = make_head()
    head.prompt = None
    tokens = random(TOKENS, DIM)
    mixture = head(tokens)
    assert mixture.gates.shape == (TOKENS, TOKENS)
    q, k, v = (tokens @ getattr(head, f"w_{name}") + getattr(head, f"b_{name}") for name in "qkv")
    assert_close(mixture.output, nn.functional.scaled_dot_product_attention(q, k, v))


def test_only_prompt_and_gate_learn():
    head = make_head("constant", "NoRGa")
    assert {name for name, _ in head.named_parameters()} == {"prompt.p", "gate.alpha", "gate.tau"}
    head(random(TOKENS, DIM)).output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("row", [0, 3, TOKENS - 1])
@pytest.mark.parametrize("prompt", ["prefix", "adaptive"])
def test_row_mixture_gives_the_rows_scores_and_values(row, prompt):
    head, tokens = make_head(prompt, biases=False), random(TOKENS, DIM)
    model, x = head.row_mixture(row, TOKENS), tokens.flatten()
    scores, (key, value), mixture = head.scores(tokens), head.prompts(tokens), head(tokens)
    assert model.constant.tolist() == [0.0] * TOKENS
    assert_close(torch.stack([x @ a @ x for a in model.quadratic]), scores.pretrained[row])
    assert_close(torch.stack([x @ model.key_map @ k for k in key]), scores.prompts[row])
    values = [eta @ x for eta in model.values] + [model.value_map @ v for v in value]
    assert_close(torch.stack(values), mixture.experts)


@pytest.mark.parametrize("prompted", [False, True])
def test_layer_is_torch_multihead_attention(prompted):
    dim, heads = 3 * 5, 5
    reference = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=torch.float64)
    for seed, parameter in enumerate(reference.parameters()):
        parameter.data = random(*parameter.shape, seed=seed) / 2
    prompt = experts.PrefixPrompt(PROMPTS, dim, 1.0).double() if prompted else None
    maps, biases = reference.in_proj_weight.detach().chunk(3), reference.in_proj_bias.detach().chunk(3)
    out = reference.out_proj
    weights = AttentionWeights(*(part.mT for part in maps), out.weight.detach().mT, *biases, out.bias.detach())
    layer = MultiHeadAttentionMoE(weights, heads, prompt=prompt)
    tokens = random(BATCH, TOKENS, dim)
    keys, values = (
        ([tokens, part.expand(BATCH, -1, -1)] for part in (prompt.key, prompt.value)) if prompted else 2 * [[tokens]]
    )
    output, weights = reference(tokens, torch.cat(keys, 1), torch.cat(values, 1), average_attn_weights=False)
    mixture = layer(tokens)
    assert_close(mixture.output, output)
    assert_close(mixture.gates, weights)
    assert mixture.experts.shape == (BATCH, heads, TOKENS + PROMPTS * prompted, 3)
    for h, head in enumerate(layer.heads):
        assert torch.equal(head(tokens).gates, mixture.gates[:, h])
        assert torch.equal(head(tokens).experts, mixture.experts[:, h])


def test_random_layer_has_scores_of_unit_variance():
    """Over 64 independent heads the mean square score is within 5 standard errors of 1: false alarms below 1e-5."""
    dim = 256
    layer = MultiHeadAttentionMoE.random(dim, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tokens = math.sqrt(dim) * nn.functional.normalize(random(31, dim), dim=-1)
    squares = torch.stack([head.scores(tokens).pretrained.square().mean() for head in layer.heads])
    assert abs(squares.mean() - 1) < 5 * squares.std() / math.sqrt(64)
    again = MultiHeadAttentionMoE.random(dim, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(again.w_o, layer.w_o)


def test_prompts_are_evaluated_once_for_all_heads():
    prompt = experts.ConstantPrompt(PROMPTS, 15).double()
    layer = MultiHeadAttentionMoE.random(15, 5, prompt, dtype=torch.float64)
    calls = []
    prompt.register_forward_hook(lambda *_: calls.append(1))
    layer(random(TOKENS, 15))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: AttentionHeadMoE(random(5, 3), random(5, 2), random(5, 7)), r"one shape \(dim, d_k\)"),
        (lambda: AttentionHeadMoE(random(5, 3), random(5, 3), random(7, 5)), r"got \(5, 3\), \(5, 3\) and \(7, 5\)"),
        (lambda: AttentionHeadMoE(*3 * [random(5, 3)], b_k=random(2)), "b_k needs the 3 columns"),
        (lambda: make_head()(random(TOKENS, DIM + 1)), "dim 11 in torch.float64: got dim 12"),
        (lambda: make_head()(random(TOKENS, DIM).float()), "got dim 11 in torch.float32"),
        (lambda: _with_prompt(experts.ConstantPrompt(2, 5).double()), "ConstantPrompt gave dims 5 and 5"),
        (lambda: _with_prompt(experts.ConstantPrompt(2, DIM).float()), "in torch.float32"),
        (lambda: make_head().row_mixture(0, 2), "without b_q, b_k and b_v"),
        (lambda: make_head(biases=False).row_mixture(2, 2), r"0..1: got 2"),
        (lambda: make_head(biases=False).row_mixture(0, 200), "use fewer"),
        (lambda: MultiHeadAttentionMoE.random(10, 3), "number of heads must divide the width"),
        (lambda: MultiHeadAttentionMoE.random(10, 0), "got 0 heads"),
    ],
)
def test_bad_input_is_named(act, says):
    with pytest.raises(InputError, match=says):
        act()


def _with_prompt(prompt: experts.PromptExpert) -> None:
    head = make_head()
    head.prompt = prompt
    head(random(TOKENS, DIM))
