"""What every gate promises, and what makes each of them different. Loops over queries and experts: test_attention."""

import math

import pytest
import torch

from moe_prompt.attention.activations import ACTIVATIONS
from moe_prompt.attention.gates import (
    ExponentialGate,
    NonlinearResidualGate,
    SigmoidGate,
    SoftmaxGate,
    TopKGate,
    ZeroInitGate,
)
from moe_prompt.errors import InputError

BATCH, QUERIES, PRETRAINED, PROMPTS = 2, 3, 5, 7
GATES = {
    "softmax": SoftmaxGate,
    "NoRGa": lambda: NonlinearResidualGate(0.8, 1.7),
    "sigmoid": lambda: SigmoidGate(-1.0),
    "top-K": lambda: TopKGate(3),
    "zero-init": lambda: ZeroInitGate(0.6),
}


def scores(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(BATCH, QUERIES, PRETRAINED + PROMPTS, generator=torch.Generator().manual_seed(seed)).double()
    return drawn[..., :PRETRAINED], drawn[..., PRETRAINED:]


@pytest.fixture(params=GATES)
def gate(request):
    return GATES[request.param]()


def test_contract(gate):
    pretrained, prompts = scores()
    weights = gate(pretrained, prompts)
    assert weights.shape == (BATCH, QUERIES, PRETRAINED + PROMPTS) and weights.dtype == torch.float64
    assert weights.min() >= 0
    order = torch.randperm(PROMPTS, generator=torch.Generator().manual_seed(1))
    permuted = gate(pretrained, prompts[..., order])
    torch.testing.assert_close(permuted[..., PRETRAINED:], weights[..., PRETRAINED:][..., order])
    torch.testing.assert_close(permuted[..., :PRETRAINED], weights[..., :PRETRAINED])
    assert gate(pretrained.float(), prompts.float()).dtype == torch.float32


def test_total_weight(gate):
    total = gate(*scores()).sum(dim=-1)
    if isinstance(gate, SigmoidGate):
        assert total.std() > 0.1
    else:
        expected = 1 + math.tanh(0.6) * isinstance(gate, ZeroInitGate)
        torch.testing.assert_close(total, torch.full_like(total, expected))


@pytest.mark.parametrize("name", ["softmax", "NoRGa", "zero-init"])
def test_log_weight_counts_a_prompt_again(name):
    """A prompt with log-weight log 2 is two copies of it, in every gate that sums over prompts."""
    gate = GATES[name]()
    pretrained, prompts = scores()
    log_weights = torch.zeros(PROMPTS, dtype=torch.float64)
    log_weights[2] = math.log(2)
    weighted = gate(pretrained, prompts, log_weights)
    copied = gate(pretrained, torch.cat([prompts, prompts[..., 2:3]], dim=-1))
    copied[..., PRETRAINED + 2] += copied[..., -1]
    torch.testing.assert_close(weighted, copied[..., :-1])


def test_log_weights_shift_the_scores_of_sigmoid_and_top_k():
    pretrained, prompts = scores()
    b = torch.linspace(-3, 3, PROMPTS, dtype=torch.float64)
    for gate in (SigmoidGate(), TopKGate(3)):
        torch.testing.assert_close(gate(pretrained, prompts, b), gate(pretrained, prompts + b))


@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
def test_link_derivative_is_autograds(name):
    gate: ExponentialGate = SoftmaxGate() if name is None else NonlinearResidualGate(0.8, 1.7, name)
    z = scores()[1].clone().requires_grad_()
    link, derivative = gate.link(z)
    (expected,) = torch.autograd.grad(link.sum(), z)
    actual = torch.ones_like(z) if derivative is None else derivative.detach()
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
def test_bend_is_the_derivative_of_the_links(name):
    """By differences of fourth order: errors of h^4 and of rounding / h."""
    gate: ExponentialGate = (
        SoftmaxGate() if name is None else NonlinearResidualGate(0.8, 1.7, name).requires_grad_(False)
    )
    z, h = scores()[1], 1e-3
    slope = lambda point: gate.link(point)[1]  # noqa: E731
    if name is None:
        assert gate.bend(z) is None and slope(z) is None
        return
    expected = (8 * (slope(z + h) - slope(z - h)) - (slope(z + 2 * h) - slope(z - 2 * h))) / (12 * h)
    assert bool(expected.abs().max() > 0.1) == (name not in ("linear", "relu"))
    torch.testing.assert_close(gate.bend(z), expected, rtol=1e-8, atol=1e-9)
    assert gate.bend(z.float()).dtype == torch.float32


def test_norga_without_alpha_is_softmax_and_touches_prompts_only():
    pretrained, prompts = scores()
    torch.testing.assert_close(NonlinearResidualGate(0.0)(pretrained, prompts), SoftmaxGate()(pretrained, prompts))
    weights = NonlinearResidualGate(5.0)(pretrained, prompts)[..., :PRETRAINED]
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), pretrained.softmax(-1))


def test_zero_init_leaves_the_pretrained_head_alone_and_learns():
    pretrained, prompts = scores()
    gate = ZeroInitGate()
    weights = gate(pretrained, prompts)
    torch.testing.assert_close(weights[..., :PRETRAINED], pretrained.softmax(-1))
    assert (weights[..., PRETRAINED:] == 0).all()
    weights[..., PRETRAINED:].sum().backward()
    torch.testing.assert_close(gate.a.grad, torch.tensor(float(BATCH * QUERIES), dtype=torch.float64))


def test_sigmoid_experts_do_not_compete():
    pretrained, prompts = scores()
    raised = prompts.clone()
    raised[..., 3] += 10
    before, after = SigmoidGate()(pretrained, prompts), SigmoidGate()(pretrained, raised)
    changed = (before != after).any(dim=0).any(dim=0).nonzero().flatten().tolist()
    assert changed == [PRETRAINED + 3]


def test_top_k_keeps_the_k_best_on_average_for_every_query():
    pretrained, prompts = scores()
    kept = TopKGate(3)(pretrained, prompts)[..., PRETRAINED:] > 0
    for b in range(BATCH):
        best = sorted(range(PROMPTS), key=lambda j: -float(prompts[b, :, j].sum()))[:3]
        assert all(sorted(row.nonzero().flatten().tolist()) == sorted(best) for row in kept[b])


@pytest.mark.parametrize(("k", "says"), [(0, "got k = 0"), (8, "got k = 8, 7 prompts")])
def test_top_k_out_of_range(k, says):
    with pytest.raises(InputError, match=says):
        TopKGate(k)(*scores())
