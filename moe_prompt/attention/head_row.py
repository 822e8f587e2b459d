r"""Row i of an attention head without biases, written as a mixture of experts in x = vec(X) (arXiv 2410.02200).

Here x has the N tokens one after the other, e_i is the i-th unit vector of R^N, (x) the Kronecker product, and
M = W_Q W_K^T / sqrt(d_k):

| expert                        | score                   | where                 | value               |
|-------------------------------|-------------------------|-----------------------|---------------------|
| pre-trained, token j          | x_i^T M x_j = x^T A_j x | A_j = e_i e_j^T (x) M | W_V^T x_j = eta_j x |
| prompt with key k and value v | x_i^T M k = x^T B k     | B = e_i (x) M         | C v, C = W_V^T      |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moe_prompt.errors import require

_LARGEST = 10**8  # all A_j together have at most this many numbers, 0.8 GB in float64


@dataclass(frozen=True)
class RowMixture:
    """Scores and values of one row's experts as functions of x = vec(X), (inputs,) with inputs = N dim.

    | expert                        | score                             | value         |
    |-------------------------------|-----------------------------------|---------------|
    | pre-trained expert j          | x^T quadratic[j] x + constant[j]  | values[j] x   |
    | prompt with key k and value v | x^T key_map k                     | value_map v   |
    """

    quadratic: Float[Tensor, "pretrained inputs inputs"]
    constant: Float[Tensor, " pretrained"]
    values: Float[Tensor, "pretrained value_dim inputs"]
    key_map: Float[Tensor, "inputs dim"]
    value_map: Float[Tensor, "value_dim dim"]


def row_mixture(
    w_q: Float[Tensor, "dim key_dim"],
    w_k: Float[Tensor, "dim key_dim"],
    w_v: Float[Tensor, "dim value_dim"],
    row: int,
    num_tokens: int,
) -> RowMixture:
    """The matrices A_j, eta_j, B and C of row `row`, and constants a_j = 0.

    The dense matrices A_j have N^3 dim^2 numbers together, so this form is meant for few, small tokens.

    Raises:
        InputError: a row that does not exist, or more than 10^8 numbers in all A_j.
    """
    dim, key_dim = w_q.shape
    require(0 <= row < num_tokens, f"a row of {num_tokens} tokens is one of 0..{num_tokens - 1}: got {row}.")
    require(
        num_tokens**3 * dim**2 <= _LARGEST,
        f"a row as a regression model holds N^3 dim^2 numbers, at most {_LARGEST:.0e}: got N = {num_tokens} tokens of "
        f"dim {dim}; use fewer or smaller tokens.",
    )
    unit = torch.eye(num_tokens, dtype=w_q.dtype, device=w_q.device)
    m = w_q @ w_k.mT / math.sqrt(key_dim)
    return RowMixture(
        quadratic=torch.einsum("i,jk,ab->jiakb", unit[row], unit, m).flatten(3).flatten(1, 2),
        constant=w_q.new_zeros(num_tokens),
        values=torch.einsum("jk,bv->jvkb", unit, w_v).flatten(2),
        key_map=torch.einsum("i,ab->iab", unit[row], m).flatten(0, 1),
        value_map=w_v.mT,
    )
