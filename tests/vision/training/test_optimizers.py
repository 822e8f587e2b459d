"""Steps against the optimizers' formulas, and which parameters decay."""

import pytest
import torch
from torch import nn

from moe_prompt.errors import InputError
from moe_prompt.vision.training.optimizers import make_optimizer


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"prompt": (5, 7), "norm.weight": (7,), "gamma": (), "head.weight": (3, 7), "head.bias": (3,)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("rule", "decayed"),
    [
        ("matrices", {"prompt", "head.weight"}),
        ("all", {"prompt", "norm.weight", "gamma", "head.weight"}),
    ],
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_decays(rule, decayed, name):
    """Without a gradient, decay alone moves a parameter, by the share rate * decay."""
    learned = parameters()
    before = {name: p.detach().clone() for name, p in learned.items()}
    optimizer = make_optimizer(learned, name, weight_decay=0.5, decay=rule)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in learned.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in learned.items():
        torch.testing.assert_close(parameter.detach(), before[key] * (0.95 if key in decayed else 1.0))


def test_sgd_with_momentum_is_its_formula():
    x, momentum, decay = 2.0, 0.9, 0.01
    learned = {"w": nn.Parameter(torch.full((1, 1), x, dtype=torch.float64))}
    optimizer = make_optimizer(learned, "sgd", decay, momentum)
    velocity = None
    for rate in (0.1, 0.3, 0.2):
        gradient = 3 * x**2 + decay * x
        velocity = gradient if velocity is None else momentum * velocity + gradient
        x -= rate * velocity
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (learned["w"] ** 3).sum().backward()
        optimizer.step()
    assert learned["w"].item() == pytest.approx(x, rel=1e-12)


def test_adamw_decays_beside_its_step():
    """The first step is the rate times the gradient's sign, after a decay by rate * decay."""
    learned = {"w": nn.Parameter(torch.full((1, 1), 2.0, dtype=torch.float64))}
    optimizer = make_optimizer(learned, "adamw", 0.3)
    optimizer.param_groups[0]["lr"] = 0.1
    (5 * learned["w"]).sum().backward()
    optimizer.step()
    assert learned["w"].item() == pytest.approx(2.0 * (1 - 0.1 * 0.3) - 0.1, abs=1e-8)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown optimizer"):
        make_optimizer(parameters(), "lion")
    with pytest.raises(InputError, match="unknown rule of weight decay"):
        make_optimizer(parameters(), decay="none")
