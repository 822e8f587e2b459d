r"""Attention heads written out as mixtures of experts (arXiv 2501.18936, section 3).

Row i of a head's output is one mixture of experts. The index j runs over N pre-trained experts, one per input token,
and then over N_p prompt experts:

    h_i(X) = sum_j gate_ij(X) f_j(X)

| on paper          | in code                   | pre-trained expert j                  | prompt expert j'     |
|-------------------|---------------------------|---------------------------------------|----------------------|
| f_j(X)            | `HeadOutput.experts`      | W_V^T x_j + b_V                       | W_V^T value_j' + b_V |
| s_ij(X) sqrt(d_k) | `AttentionHeadMoE.scores` | (W_Q^T x_i + b_Q)^T (W_K^T x_j + b_K) | the same with key_j' |
| gate_ij(X)        | `HeadOutput.gates`        | Gate(s_i)_j                           | Gate(s_i)_(N + j')   |

A head with N queries is N mixtures: they share their experts and differ in their gates. A layer joins the outputs of
its heads by W_O. The code writes every term out so that it can be inspected; fused attention gives the same numbers
faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from moe_prompt.attention.attention_weights import AttentionWeights
from moe_prompt.attention.gates import Gate, SoftmaxGate
from moe_prompt.attention.head_row import RowMixture, row_mixture
from moe_prompt.attention.prompts import PromptExpert, PromptTokens
from moe_prompt.errors import require

EVERY_TOKEN = slice(None)  # prompt experts see all tokens


class HeadScores(NamedTuple):
    """Scores s_ij of the pre-trained experts and of the prompt experts, before the gate."""

    pretrained: Float[Tensor, "*batch queries pretrained"]
    prompts: Float[Tensor, "*batch queries prompts"]


@dataclass(frozen=True)
class HeadOutput:
    """The output of a head and its parts: output[i] = sum_j gates[i, j] experts[j].

    Pre-trained experts come first, then prompts.
    """

    output: Float[Tensor, "*batch tokens value_dim"]
    gates: Float[Tensor, "*batch tokens experts"]
    experts: Float[Tensor, "*batch experts value_dim"]


@dataclass(frozen=True)
class LayerOutput:
    """The output of a layer and its parts: output = concat_h(gates[h] @ experts[h]) W_O + b_O."""

    output: Float[Tensor, "*batch tokens dim"]
    gates: Float[Tensor, "*batch heads tokens experts"]
    experts: Float[Tensor, "*batch heads experts value_dim"]


class AttentionHeadMoE(nn.Module):
    r"""One attention head: h_i(X) = sum_j gate_ij f_j, on tokens (*batch, N, dim).

    Args:
        w_q, w_k: (dim, d_k); `w_v`: (dim, d_v). A map acts as x @ w. Maps are frozen (buffers): the head learns the
            prompt and the gate only.
        prompt: the prompt experts, evaluated on tokens[..., prompt_tokens, :]. None gives the pre-trained head.
        gate: the rule that turns scores into weights. None gives :class:`SoftmaxGate`.
        b_q, b_k, b_v: biases (d_k,), (d_k,), (d_v,). None gives zeros. With biases the experts are affine.
        prompt_tokens: the tokens that the prompt expert sees; slice(1, None) hides a class token from it.

    Raises:
        InputError: shapes or dtypes do not fit together.

    References: arXiv 2405.14124, section 3; arXiv 2501.18936, section 3.

    >>> head = AttentionHeadMoE(torch.eye(3), torch.eye(3), torch.eye(3))
    >>> mixture = head(torch.randn(7, 3))
    >>> torch.equal(mixture.output, mixture.gates @ mixture.experts)
    True
    """

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    b_q: Tensor
    b_k: Tensor
    b_v: Tensor

    def __init__(
        self,
        w_q: Float[Tensor, "_ _"],
        w_k: Float[Tensor, "_ _"],
        w_v: Float[Tensor, "_ _"],
        prompt: PromptExpert | None = None,
        gate: Gate | None = None,
        b_q: Float[Tensor, " _"] | None = None,
        b_k: Float[Tensor, " _"] | None = None,
        b_v: Float[Tensor, " _"] | None = None,
        prompt_tokens: slice = EVERY_TOKEN,
    ) -> None:
        super().__init__()
        require(
            w_q.shape == w_k.shape and len(w_q) == len(w_v),
            "a head needs w_q and w_k of one shape (dim, d_k) and w_v (dim, d_v): "
            f"got {tuple(w_q.shape)}, {tuple(w_k.shape)} and {tuple(w_v.shape)}.",
        )
        for name, weight, bias in (("q", w_q, b_q), ("k", w_k, b_k), ("v", w_v, b_v)):
            self._register(name, weight, weight.new_zeros(weight.shape[1]) if bias is None else bias)
        self.prompt, self.gate, self.prompt_tokens = prompt, gate or SoftmaxGate(), prompt_tokens

    def _register(self, name: str, weight: Tensor, bias: Tensor) -> None:
        require(
            bias.shape == weight.shape[1:],
            f"b_{name} needs the {weight.shape[1]} columns of w_{name}: got shape {tuple(bias.shape)}.",
        )
        self.register_buffer(f"w_{name}", weight)
        self.register_buffer(f"b_{name}", bias)

    def forward(self, tokens: Float[Tensor, "*batch tokens dim"]) -> HeadOutput:
        """The mixture of every row, its gates and its experts."""
        return self.mix(tokens, self.prompts(tokens))

    def scores(self, tokens: Float[Tensor, "*batch tokens dim"]) -> HeadScores:
        """Scores s_ij of all experts, before the gate."""
        return self._scores(tokens, self.prompts(tokens))

    def prompts(self, tokens: Float[Tensor, "*batch tokens dim"]) -> PromptTokens:
        """Keys and values of the prompts, each (*batch, N_p, dim); N_p = 0 for a head without prompt experts."""
        dim = len(self.w_q)
        require(
            tokens.shape[-1] == dim and tokens.dtype == self.w_q.dtype,
            f"this head needs tokens of dim {dim} in {self.w_q.dtype}: got dim {tokens.shape[-1]} in {tokens.dtype}.",
        )
        if self.prompt is None:
            return PromptTokens.both(tokens[..., :0, :])
        prompts = self.prompt(tokens[..., self.prompt_tokens, :])
        require(
            all(part.shape[-1] == dim and part.dtype == tokens.dtype for part in prompts),
            f"this head needs prompt keys and values of dim {dim} in {tokens.dtype}: {type(self.prompt).__name__} gave "
            f"dims {prompts.key.shape[-1]} and {prompts.value.shape[-1]} in {prompts.value.dtype}.",
        )
        return prompts

    def mix(self, tokens: Float[Tensor, "*batch tokens dim"], prompts: PromptTokens) -> HeadOutput:
        """The mixture of every row, from prompts that are already computed."""
        experts = torch.cat([tokens, prompts.value], dim=-2) @ self.w_v + self.b_v
        gates = self.gate(*self._scores(tokens, prompts))
        return HeadOutput(gates @ experts, gates, experts)

    def _scores(self, tokens: Tensor, prompts: PromptTokens) -> HeadScores:
        queries = (tokens @ self.w_q + self.b_q) / math.sqrt(self.w_q.shape[1])
        keys = torch.cat([tokens, prompts.key], dim=-2) @ self.w_k + self.b_k
        scores = queries @ keys.mT
        pretrained = tokens.shape[-2]
        return HeadScores(scores[..., :pretrained], scores[..., pretrained:])

    def row_mixture(self, row: int, num_tokens: int) -> RowMixture:
        """Row `row` as a mixture of experts in x = vec(X) (`attention.head_row`).

        Raises:
            InputError: a row that does not exist, too many tokens, or biases: this form has no linear terms.
        """
        require(
            not any(bias.any() for bias in (self.b_q, self.b_k, self.b_v)),
            "a row has quadratic scores in x only without biases: build the head without b_q, b_k and b_v.",
        )
        return row_mixture(self.w_q, self.w_k, self.w_v, row, num_tokens)


class MultiHeadAttentionMoE(nn.Module):
    r"""An attention layer: h heads that share one prompt expert and one gate, joined as concat_h(h_i) W_O + b_O.

    Args:
        weights: W_Q, W_K, W_V of all heads side by side, W_O, and their biases.
        heads: the number of heads h; it must divide the number of columns.
        prompt, gate, prompt_tokens: as in :class:`AttentionHeadMoE`. Prompts are evaluated once for all heads.

    Raises:
        InputError: `heads` does not divide the number of columns.

    >>> layer = MultiHeadAttentionMoE.random(dim=12, heads=3)
    >>> layer(torch.randn(2, 5, 12)).gates.shape
    torch.Size([2, 3, 5, 5])
    """

    w_o: Tensor
    b_o: Tensor

    def __init__(
        self,
        weights: AttentionWeights,
        heads: int,
        prompt: PromptExpert | None = None,
        gate: Gate | None = None,
        prompt_tokens: slice = EVERY_TOKEN,
    ) -> None:
        super().__init__()
        columns = weights.w_q.shape[1], weights.w_v.shape[1]
        require(
            heads >= 1 and all(width % heads == 0 for width in columns),
            f"the number of heads must divide the width of the block, {columns[0]}: got {heads} heads.",
        )
        w = weights
        parts = [part.chunk(heads, dim=-1) for part in (w.w_q, w.w_k, w.w_v, w.b_q, w.b_k, w.b_v)]
        self.heads = nn.ModuleList(
            AttentionHeadMoE(q, k, v, prompt, gate, b_q, b_k, b_v, prompt_tokens)
            for q, k, v, b_q, b_k, b_v in zip(*parts, strict=True)
        )
        self.register_buffer("w_o", weights.w_o)
        self.register_buffer("b_o", weights.b_o)

    @classmethod
    def random(
        cls,
        dim: int,
        heads: int,
        prompt: PromptExpert | None = None,
        gate: Gate | None = None,
        prompt_tokens: slice = EVERY_TOKEN,
        generator: Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> MultiHeadAttentionMoE:
        """A layer with independent N(0, 1 / dim) weights: tokens of unit variance then have scores of unit variance."""
        return cls(AttentionWeights.random(dim, generator, dtype), heads, prompt, gate, prompt_tokens)

    def forward(self, tokens: Float[Tensor, "*batch tokens dim"]) -> LayerOutput:
        """The mixtures of every head, and their composition."""
        return self.mix(tokens, cast(AttentionHeadMoE, self.heads[0]).prompts(tokens))

    def mix(self, tokens: Float[Tensor, "*batch tokens dim"], prompts: PromptTokens) -> LayerOutput:
        """The mixtures of every head for prompts already at hand."""
        mixtures = [cast(AttentionHeadMoE, head).mix(tokens, prompts) for head in self.heads]
        return LayerOutput(
            output=torch.cat([mixture.output for mixture in mixtures], dim=-1) @ self.w_o + self.b_o,
            gates=torch.stack([mixture.gates for mixture in mixtures], dim=-3),
            experts=torch.stack([mixture.experts for mixture in mixtures], dim=-3),
        )
