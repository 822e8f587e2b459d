"""Counted arithmetic against sums over layers, and what a step takes at least."""

import pytest
import torch
from torch import nn

from moe_prompt.errors import InputError
from moe_prompt.vision.runtime.metering import flops, measure

BATCH, HEIGHT, WIDTH = 3, 7, 11


class Attending(nn.Module):
    """A frozen patch embedding, frozen fused attention, a learned map and a head."""

    def __init__(self, dim: int = 10, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, dim, (2, 3), stride=(2, 3)).requires_grad_(False)
        self.tuned = nn.Linear(dim, dim, bias=False)
        self.head = nn.Linear(dim, 5)

    def forward(self, images):
        tokens = self.tuned(self.embed(images).flatten(2).mT)
        q = tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(q, q, q)
        return self.head(attended.transpose(1, 2).flatten(2).mean(1))


def test_arithmetic_is_the_sum_over_layers():
    """Tokens 3 x 3; fused attention counted too; backward: twice a learned layer, nothing for what is frozen."""
    cost = measure(Attending(), (HEIGHT, WIDTH), BATCH, repeats=1)
    tokens, dim = 9, 10
    embed = 2 * BATCH * tokens * dim * 3 * 2 * 3
    tuned = 2 * BATCH * tokens * dim * dim
    attention = 2 * 2 * BATCH * tokens * tokens * dim
    head = 2 * BATCH * dim * 5
    assert cost.flops_forward == embed + tuned + attention + head
    # the learned map is the first with a gradient: of its two backward products only that of the weight
    assert cost.flops_step == cost.flops_forward + tuned + 2 * attention + 2 * head
    assert (cost.tuned_parameters, cost.head_parameters) == (100, 55)
    assert cost.all_parameters == 155 + 10 * 18 + 10


def test_measuring_leaves_no_trace():
    model = Attending().eval()
    model.tuned.weight.grad = torch.ones_like(model.tuned.weight)
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    cost = measure(model, (HEIGHT, WIDTH), BATCH, "bf16", repeats=2)
    assert torch.equal(torch.rand(1), expected) and not model.training
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
    assert model.tuned.weight.grad.eq(1).all() and model.head.weight.grad is None
    assert cost.seconds_step > 0 and cost.images_per_second == BATCH / cost.seconds_step


def test_memory_of_a_step_grows_with_the_batch():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 96, 96))
    kept_mb = 200 * 16 * 96 * 96 * 4 / 2**20  # of the activations that backward needs, one at least
    assert measure(model, 96, 200, repeats=1).peak_memory_mb > kept_mb


def test_flops_of_a_picture_are_a_part_of_the_batch():
    cost = measure(Attending(), (HEIGHT, WIDTH), BATCH, repeats=1)
    assert flops(Attending(), (HEIGHT, WIDTH)) == (cost.flops_forward // BATCH, cost.flops_step // BATCH)


def test_nothing_to_measure_is_told():
    with pytest.raises(InputError, match="needs a batch"):
        measure(Attending(), 8, batch=0)
