r"""A pre-norm transformer block whose attention takes prompt experts (arXiv 2010.11929, 2501.18936).

X' = X + ls1 * Attention(LN1 X, LN1 P(X)),     X_next = X' + ls2 * MLP(LN2 X')
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moe_prompt.attention.gates import SoftmaxGate
from moe_prompt.attention.prompts import PromptTokens
from moe_prompt.vision.vit.config import ViTConfig
from moe_prompt.vision.vit.prompting import BlockPrompts, PictureTokens, mixed, once

SOFTMAX = SoftmaxGate()


class PackedLinear(nn.Linear):
    """W_Q, W_K, W_V stacked as (3 d, d), of which any range of rows can be applied alone."""

    def part(self, tokens: PictureTokens, start: int, stop: int) -> PictureTokens:
        """Rows start to stop of the map."""
        bias = None if self.bias is None else self.bias[start:stop]
        return functional.linear(tokens, self.weight[start:stop], bias)

    def matrix(self) -> Float[Tensor, "_ dim"]:
        """The map as one matrix."""
        return self.weight


class Attention(nn.Module):
    """Multi-head attention over tokens and prompts; prompts have no row of their own."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.qkv = PackedLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: PictureTokens, prompts: BlockPrompts | None = None) -> PictureTokens:
        """Attention of normalised tokens (batch, rows, d)."""
        queries, keys, values = self.qkv(tokens).chunk(3, dim=-1)
        gate = None
        if prompts is not None:
            prompt_keys, prompt_values = self._prompt_experts(*prompts.tokens)
            keys, values, gate = _beside(keys, prompt_keys), _beside(values, prompt_values), prompts.gate
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (queries, keys, values))
        if gate is None:
            heads = functional.scaled_dot_product_attention(q, k, v)
        else:
            heads = mixed(gate, q, k, v, keys.shape[1] - tokens.shape[1])
        return self.proj(heads.transpose(1, 2).flatten(2))

    def first_row(self, tokens: PictureTokens, prompts: BlockPrompts | None = None) -> Float[Tensor, "batch 1 dim"]:
        r"""The first row alone, without computing the key or the value of any token.

        Keys and values are affine in the tokens, so the maps of head h can be taken out of the sums over tokens:

            s_hj = (W_K,h q_h)^T x_j + q_h^T b_K,h,     h_1 = W_V,h^T (sum_j gate_hj x_j) + (sum_j gate_hj) b_V,h
        """
        heads, rows = self.heads, tokens.shape[1]
        seen_keys, seen_values = tokens, tokens
        if prompts is not None:
            key, value = prompts.tokens
            seen_keys = _beside(tokens, key)
            seen_values = seen_keys if value is key else _beside(tokens, value)
        _, key_map, value_map = self.qkv.matrix().unflatten(0, (3, heads, -1))
        query = (
            self.qkv.part(tokens[:, :1], 0, self.dim).unflatten(-1, (heads, -1)).squeeze(1) / key_map.shape[1] ** 0.5
        )
        scores = torch.einsum("bhk,hkd->bhd", query, key_map) @ seen_keys.mT
        key_bias, value_bias = self._biases()
        scores = (scores + (query * key_bias).sum(-1, keepdim=True)).unsqueeze(-2)
        gate = SOFTMAX if prompts is None or prompts.gate is None else prompts.gate
        gates = gate(scores[..., :rows], scores[..., rows:]).squeeze(-2)
        averages = gates.to(seen_values.dtype) @ seen_values
        row = torch.einsum("bhd,hkd->bhk", averages, value_map) + gates.sum(-1, keepdim=True) * value_bias
        return self.proj(row.flatten(1))[:, None]

    def _biases(self) -> Float[Tensor, "2 heads width"]:
        """b_K and b_V of every head."""
        if self.qkv.bias is None:
            return self.proj.weight.new_zeros(2, self.heads, self.dim // self.heads)
        return self.qkv.bias.unflatten(0, (3, self.heads, -1))[1:]

    def _prompt_experts(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """W_K^T key_j + b_K and W_V^T value_j + b_V, once where the prompts are the same for every picture."""
        if key is value:
            both = self.qkv.part(key, self.dim, 3 * self.dim)
            return both[..., : self.dim], both[..., self.dim :]
        return self.qkv.part(key, self.dim, 2 * self.dim), self.qkv.part(value, 2 * self.dim, 3 * self.dim)


def _beside(tokens: Tensor, prompts: Tensor) -> Tensor:
    """Tokens, then prompts, which may be one copy for all pictures."""
    return torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], dim=1)


class Mlp(nn.Module):
    """W_2 gelu(W_1 x + b_1) + b_2."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, tokens: PictureTokens) -> PictureTokens:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """gamma * x, gamma (d,) learned (arXiv 2103.17239)."""

    def __init__(self, dim: int, start: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, tokens: PictureTokens) -> PictureTokens:
        return tokens * self.gamma


class TransformerBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=config.norm_eps) for _ in range(2))
        self.attn, self.mlp = Attention(dim, config.heads, config.qkv_bias), Mlp(dim, config.mlp_dim)
        self.ls1, self.ls2 = (LayerScale(dim) if config.layer_scale else nn.Identity() for _ in range(2))

    def forward(
        self, tokens: PictureTokens, prompts: BlockPrompts | None = None, first_row: bool = False
    ) -> PictureTokens:
        """The block's tokens, or the first of them alone."""
        if prompts is not None:
            prompts = self.enter(prompts)
        kept, normed = tokens[:, :1] if first_row else tokens, self.norm1(tokens)
        alone = first_row and (prompts is None or prompts.gate is None or prompts.gate.rowwise)
        attended = self.attn.first_row(normed, prompts) if alone else self.attn(normed, prompts)
        kept = kept + self.ls1(attended[:, :1] if first_row else attended)
        return kept + self.ls2(self.mlp(self.norm2(kept)))

    def enter(self, prompts: BlockPrompts) -> BlockPrompts:
        """Prompts as the attention sees them: one copy where they are constant, normalised as tokens are."""
        key, value = prompts.tokens
        change = self.norm1 if prompts.normalise else nn.Identity()
        entered = change(once(key))
        return prompts._replace(tokens=PromptTokens(entered, entered if value is key else change(once(value))))
