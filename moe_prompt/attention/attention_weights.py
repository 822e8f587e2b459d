"""The maps of an attention layer: W_Q, W_K, W_V and W_O with their biases. They act as x @ w."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from moe_prompt.errors import require


@dataclass(frozen=True)
class AttentionWeights:
    """The four maps of an attention layer and their biases, the columns of its h heads side by side.

    Shapes: `w_q`, `w_k` (dim, h d_k); `w_v` (dim, h d_v); `w_o` (h d_v, dim); one bias per column of each.
    Raises InputError when the shapes do not fit together.
    """

    w_q: Float[Tensor, "_ _"]
    w_k: Float[Tensor, "_ _"]
    w_v: Float[Tensor, "_ _"]
    w_o: Float[Tensor, "_ _"]
    b_q: Float[Tensor, " _"]
    b_k: Float[Tensor, " _"]
    b_v: Float[Tensor, " _"]
    b_o: Float[Tensor, " _"]

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        fits = self.w_q.shape == self.w_k.shape and len(self.w_q) == len(self.w_v) and len(self.w_o) == shapes["w_v"][1]
        fits = fits and all(shapes[f"b_{name}"] == shapes[f"w_{name}"][1:] for name in "qkvo")
        require(
            fits,
            "attention needs w_q, w_k (dim, h d_k), w_v (dim, h d_v), w_o (h d_v, dim) and one bias per column: got "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            + ".",
        )

    @classmethod
    def random(cls, dim: int, generator: Generator | None = None, dtype: torch.dtype | None = None) -> AttentionWeights:
        """Four (dim, dim) maps with independent N(0, 1 / dim) entries, and biases of zero."""
        weights = [torch.randn(dim, dim, generator=generator, dtype=dtype) / math.sqrt(dim) for _ in range(4)]
        return cls(*weights, *(torch.zeros(dim, dtype=dtype) for _ in range(4)))
