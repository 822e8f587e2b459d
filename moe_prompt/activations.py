"""Activation functions with what the theory needs to know of each: its derivative and its symmetries.

A hidden unit ``w2 * act(w1 . x)`` can be rewritten without changing the function when ``act`` is odd (flip both
signs), positively homogeneous (scale one weight by c > 0, the other by 1/c) or linear (any invertible mixing of the
units). These three flags decide which prompt experts can be told apart: see :mod:`moe_prompt.symmetries`.
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
    """A scalar function applied elementwise, ``act(z)``, and its derivative as a function of ``(z, act(z))``."""

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    odd: bool = False
    homogeneous: bool = False
    linear: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)


def _gelu_derivative(z: Tensor, _: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * density


_ALL = (
    Activation("linear", lambda z: z, lambda z, _: torch.ones_like(z), odd=True, homogeneous=True, linear=True),
    Activation("tanh", torch.tanh, lambda _, a: 1 - a * a, odd=True),
    Activation("sigmoid", torch.sigmoid, lambda _, a: a * (1 - a)),
    Activation("gelu", lambda z: z * torch.special.ndtr(z), _gelu_derivative),
    Activation("relu", torch.relu, lambda z, _: (z > 0).to(z), homogeneous=True),
    Activation("square", lambda z: z * z, lambda z, _: 2 * z),
)
ACTIVATIONS: dict[str, Activation] = {activation.name: activation for activation in _ALL}


def activation(name: str | Activation) -> Activation:
    """Look an activation up by name; an :class:`Activation` passes through.

    >>> activation("tanh").odd
    True
    """
    return name if isinstance(name, Activation) else choose("activation", name, ACTIVATIONS)
