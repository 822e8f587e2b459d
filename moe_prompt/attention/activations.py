"""Activation functions, each with its first two derivatives and the symmetries that the theory asks for.

A hidden unit ``w2 * act(w1 . x)`` can be rewritten with other weights and stay the same function in three cases:

| ``act`` is             | rewriting that leaves the function unchanged                |
|------------------------|-------------------------------------------------------------|
| odd                    | change the sign of ``w1`` and of ``w2``                     |
| positively homogeneous | multiply ``w1`` by any c > 0 and ``w2`` by 1/c              |
| linear                 | mix the hidden units by any invertible matrix, and undo it  |

These three flags decide which prompt experts can be told apart (`measures.symmetries`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_prompt.errors import choose


@dataclass(frozen=True)
class Activation:
    """A scalar function ``act(z)``, applied to every element of a tensor, and its derivatives.

    ``derivative`` and ``second_derivative`` are called with ``z`` and ``a = act(z)``, both of one shape, and return a
    tensor of that shape. Most derivatives are cheap once ``a`` is known.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    second_derivative: Callable[[Tensor, Tensor], Tensor] | None = None  # None: autograd differentiates `derivative`
    odd: bool = False
    even: bool = False
    homogeneous: bool = False
    linear: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)

    def second(self, z: Tensor, a: Tensor) -> Tensor:
        """Second derivative act''(z) from z and a = act(z), elementwise."""
        if self.second_derivative is not None:
            return self.second_derivative(z, a)
        return torch.func.grad(lambda point: self.derivative(point, self.function(point)).sum())(z)


def _gelu_derivative(z: Tensor, _: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * density


def _gelu_second(z: Tensor, _: Tensor) -> Tensor:
    return (2 - z * z) * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _zero(z: Tensor, _: Tensor) -> Tensor:
    return torch.zeros_like(z)


_ALL = (
    Activation("linear", lambda z: z, lambda z, _: torch.ones_like(z), _zero, odd=True, homogeneous=True, linear=True),
    Activation("tanh", torch.tanh, lambda _, a: 1 - a * a, lambda _, a: -2 * a * (1 - a * a), odd=True),
    Activation("sigmoid", torch.sigmoid, lambda _, a: a * (1 - a), lambda _, a: a * (1 - a) * (1 - 2 * a)),
    Activation("gelu", lambda z: z * torch.special.ndtr(z), _gelu_derivative, _gelu_second),
    Activation("relu", torch.relu, lambda z, _: (z > 0).to(z), _zero, homogeneous=True),
    Activation("square", lambda z: z * z, lambda z, _: 2 * z, lambda z, _: torch.full_like(z, 2.0), even=True),
)
ACTIVATIONS: dict[str, Activation] = {activation.name: activation for activation in _ALL}


def activation(name: str | Activation) -> Activation:
    """The activation of this name; an :class:`Activation` is returned as it is.

    Raises:
        InputError: an unknown name; the message lists the known ones.

    >>> activation("tanh").odd
    True
    """
    return name if isinstance(name, Activation) else choose("activation", name, ACTIVATIONS)
