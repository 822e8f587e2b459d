r"""A pre-norm transformer block whose attention takes prompt experts (arXiv 2010.11929, 2501.18936).

X' = X + ls1 * Attention(LN1 X, LN1 P(X)),     X_next = X' + ls2 * MLP(LN2 X')
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moe_prompt.prompts import PromptTokens
from moe_prompt.vision.prompting import BlockPrompts, mixed, once
from moe_prompt.vision.vit_config import ViTConfig

Tokens = Float[Tensor, "_ _ _"]


class PackedLinear(nn.Linear):
    """W_Q, W_K, W_V stacked as (3 d, d), of which any range of rows can be applied alone."""

    def part(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Rows start to stop of the map."""
        bias = None if self.bias is None else self.bias[start:stop]
        return functional.linear(tokens, self.weight[start:stop], bias)


class Attention(nn.Module):
    """Multi-head attention over tokens and prompts; prompts have no row of their own."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.qkv = PackedLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        tokens: Tokens,
        prompts: BlockPrompts | None = None,
        rows: slice | None = None,
    ) -> Tokens:
        """Attention of normalised tokens; `rows`: the queries to compute, all by default."""
        queries, keys, values = self._project(tokens, rows)
        gate = None
        if prompts is not None:
            prompt_keys, prompt_values = self._prompt_experts(prompts.tokens)
            keys = torch.cat([keys, prompt_keys.expand(len(tokens), -1, -1)], dim=1)
            values = torch.cat([values, prompt_values.expand(len(tokens), -1, -1)], dim=1)
            gate = prompts.gate
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (queries, keys, values))
        if gate is None:
            heads = functional.scaled_dot_product_attention(q, k, v)
        else:
            heads = mixed(gate, q, k, v, keys.shape[1] - tokens.shape[1])
        return self.proj(heads.transpose(1, 2).flatten(2))

    def _project(self, tokens: Tokens, rows: slice | None) -> tuple[Tensor, Tensor, Tensor]:
        if rows is None:
            queries, keys, values = self.qkv(tokens).chunk(3, dim=-1)
            return queries, keys, values
        keys, values = self.qkv.part(tokens, self.dim, 3 * self.dim).chunk(2, dim=-1)
        return self.qkv.part(tokens[:, rows], 0, self.dim), keys, values

    def _prompt_experts(self, prompts: PromptTokens) -> tuple[Tensor, Tensor]:
        """W_K^T key_j + b_K and W_V^T value_j + b_V, once where the prompts are the same for every picture."""
        key, value = prompts
        if key is value:
            both = self.qkv.part(key, self.dim, 3 * self.dim)
            return both[..., : self.dim], both[..., self.dim :]
        return self.qkv.part(key, self.dim, 2 * self.dim), self.qkv.part(value, 2 * self.dim, 3 * self.dim)


class Mlp(nn.Module):
    """W_2 gelu(W_1 x + b_1) + b_2."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, tokens: Tokens) -> Tokens:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """gamma * x, gamma (d,) learned (arXiv 2103.17239)."""

    def __init__(self, dim: int, start: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=config.norm_eps) for _ in range(2))
        self.attn, self.mlp = Attention(dim, config.heads, config.qkv_bias), Mlp(dim, config.mlp_dim)
        self.ls1, self.ls2 = (LayerScale(dim) if config.layer_scale else nn.Identity() for _ in range(2))

    def forward(
        self,
        tokens: Tokens,
        prompts: BlockPrompts | None = None,
        rows: slice | None = None,
    ) -> Tokens:
        """The block's tokens, or only `rows` of them."""
        if prompts is not None:
            prompts = prompts._replace(tokens=self._enter(*prompts.tokens, prompts.normalise))
        kept = tokens if rows is None else tokens[:, rows]
        kept = kept + self.ls1(self.attn(self.norm1(tokens), prompts, rows))
        return kept + self.ls2(self.mlp(self.norm2(kept)))

    def _enter(self, key: Tensor, value: Tensor, normalise: bool) -> PromptTokens:
        """Prompts as the attention sees them: one copy where they are constant, normalised as tokens are."""
        change = self.norm1 if normalise else nn.Identity()
        entered = change(once(key))
        return PromptTokens(entered, entered if value is key else change(once(value)))
