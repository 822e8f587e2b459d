"""Derivatives against autograd, flags against the defining equations evaluated on numbers."""

import math

import pytest
import torch

from moe_prompt.activations import ACTIVATIONS, Activation, activation
from moe_prompt.errors import InputError

Z = torch.cat([torch.linspace(-6, 6, 101, dtype=torch.float64) + 0.003, torch.tensor([-40.0, 40.0]).double()])
KNOWN = {
    "linear": lambda z: z,
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "gelu": lambda z: 0.5 * z * math.erfc(-z / math.sqrt(2)),
    "relu": lambda z: max(z, 0.0),
    "square": lambda z: z**2,
}


@pytest.fixture(params=ACTIVATIONS)
def act(request) -> Activation:
    return ACTIVATIONS[request.param]


def test_function_is_the_named_one(act):
    expected = torch.tensor([KNOWN[act.name](z) for z in Z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(act(Z), expected, rtol=1e-12, atol=1e-15)


def test_derivative_is_autograds(act):
    z = Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(act(z).sum(), z)
    torch.testing.assert_close(act.derivative(Z, act(Z)), expected, rtol=1e-11, atol=1e-14)


def test_flags_say_what_holds(act):
    def holds(left: torch.Tensor, right: torch.Tensor) -> bool:
        return bool(torch.allclose(left, right, rtol=1e-12, atol=1e-14))

    assert act.odd == holds(act(-Z), -act(Z))
    assert act.homogeneous == (holds(act(3.7 * Z), 3.7 * act(Z)) and holds(act(0.2 * Z), 0.2 * act(Z)))
    assert act.linear == holds(act(Z + Z.flip(0).roll(1)), act(Z) + act(Z.flip(0).roll(1)))


def test_lookup():
    assert activation("tanh") is ACTIVATIONS["tanh"]
    own = Activation("sin", torch.sin, lambda z, _: torch.cos(z), odd=True)
    assert activation(own) is own
    with pytest.raises(InputError, match=r"choose one of linear.*did you mean 'gelu'"):
        activation("gelo")
