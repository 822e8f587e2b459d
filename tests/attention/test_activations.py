"""Derivatives against autograd, flags against the defining equations evaluated on numbers."""

import math

import pytest
import torch

from moe_prompt.attention.activations import ACTIVATIONS, Activation, activation
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


def differences(act: Activation, z: torch.Tensor, h: float = 1e-3) -> torch.Tensor:
    """act'' from act' by differences of fourth order: errors of h^4 and of rounding / h."""
    slope = lambda point: act.derivative(point, act(point))  # noqa: E731
    return (8 * (slope(z + h) - slope(z - h)) - (slope(z + 2 * h) - slope(z - 2 * h))) / (12 * h)


def test_second_derivative_is_that_of_the_derivative(act):
    smooth = Z[Z.abs() > 2e-3]  # away from the kink of relu
    expected = differences(act, smooth)
    assert bool(expected.abs().max() > 0.05) == (act.name not in ("linear", "relu"))
    torch.testing.assert_close(act.second(smooth, act(smooth)), expected, rtol=1e-9, atol=3e-11)


def test_second_derivative_of_the_users_own_is_automatic():
    """From the derivative that it gave, whether or not that needs z or depends on it."""
    z = Z[:101]
    sine = Activation("sine", torch.sin, lambda point, _: torch.cos(point))
    torch.testing.assert_close(sine.second(z, sine(z)), -torch.sin(z), rtol=1e-12, atol=1e-14)
    own = Activation("own tanh", torch.tanh, lambda _, a: 1 - a * a)
    torch.testing.assert_close(own.second(z, own(z)), ACTIVATIONS["tanh"].second(z, own(z)), rtol=1e-12, atol=1e-14)
    line = Activation("line", lambda point: 3 * point, lambda point, _: torch.full_like(point, 3.0))
    assert not line.second(z, line(z)).any()
    shaped = torch.stack([z, 2 * z]).reshape(2, 1, -1)
    assert sine.second(shaped, sine(shaped)).shape == shaped.shape


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
