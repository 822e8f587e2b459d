r"""Ways to tune a ViT without prompts.

| method            | learns besides the head                                                             |
|-------------------|-------------------------------------------------------------------------------------|
| `Linear`          | nothing                                                                             |
| `Full`            | everything                                                                          |
| `PartialK`        | the last k blocks and the final norm                                                |
| `Bias`            | every bias (arXiv 2106.10199)                                                       |
| `LayerNormTuning` | every layer norm (arXiv 2312.11420)                                                 |
| `Adapter`         | y + W_up gelu(W_down y) after each MLP y, W_up = 0 at the start (arXiv 1902.00751)  |
| `LoRA`            | W + (alpha / r) B A on the chosen of W_Q, W_K, W_V, B = 0 at the start (2106.09685) |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from moe_prompt.errors import require
from moe_prompt.vision.methods.base import Method, check_positive
from moe_prompt.vision.vit.blocks import Mlp, PackedLinear, PictureTokens, TransformerBlock
from moe_prompt.vision.vit.transformer import VisionTransformer

_MAPS = {"q": 0, "k": 1, "v": 2}


@dataclass(frozen=True)
class Linear(Method):
    """A linear probe: nothing but the head learns."""

    name = "linear"


@dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning."""

    name, copies, optimizer = "full", "weights", "adamw"

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        backbone.requires_grad_(True)


@dataclass(frozen=True)
class PartialK(Method):
    """The last k blocks and the final norm."""

    name, copies = "partial", "weights"
    k: int = 1

    def __post_init__(self) -> None:
        check_positive("the number of blocks to tune", self.k)

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        depth = len(backbone.blocks)
        require(self.k <= depth, f"partial tuning of {self.k} blocks needs as many: this ViT has {depth}.")
        for part in (*list(backbone.blocks)[-self.k :], backbone.norm, backbone.fc_norm):
            part.requires_grad_(True)


@dataclass(frozen=True)
class Bias(Method):
    """Every bias of the backbone."""

    name, copies = "bias", "weights"

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))


@dataclass(frozen=True)
class LayerNormTuning(Method):
    """Scale and shift of every layer norm."""

    name, copies = "layernorm", "weights"

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        for module in backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


class AdaptedMlp(nn.Module):
    """A frozen MLP and, in series, y + W_up gelu(W_down y + b) + c."""

    def __init__(self, mlp: Mlp, hidden: int, generator: Generator | None) -> None:
        super().__init__()
        dim = mlp.fc2.out_features
        self.mlp, self.down, self.up = mlp, nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.kaiming_normal_(self.down.weight, generator=generator)
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, tokens: PictureTokens) -> PictureTokens:
        inner = self.mlp(tokens)
        return inner + self.up(functional.gelu(self.down(inner)))


@dataclass(frozen=True)
class Adapter(Method):
    """A bottleneck after every MLP; W_down starts at random, as nothing would ever learn with both at zero."""

    name, copies = "adapter", "modules"
    hidden: int = 64

    def __post_init__(self) -> None:
        check_positive("the width of the adapter", self.hidden)

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        for block in cast("list[TransformerBlock]", list(backbone.blocks)):
            block.mlp = cast(Mlp, AdaptedMlp(block.mlp, self.hidden, generator))


class LowRankPacked(PackedLinear):
    """A frozen packed map plus (alpha / r) B_m A_m for each chosen m of W_Q, W_K, W_V; A (m, r, d), B (m, d, r)."""

    def __init__(self, base: PackedLinear, maps: str, rank: int, alpha: float, generator: Generator | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.maps, self.scale, dim = [_MAPS[name] for name in maps], alpha / rank, base.in_features
        start = torch.empty(len(maps), rank, dim)
        self.a = nn.Parameter(nn.init.normal_(start, std=dim**-0.5, generator=generator))
        self.b = nn.Parameter(torch.zeros(len(maps), dim, rank))

    def forward(self, tokens: PictureTokens) -> PictureTokens:
        return self.part(tokens, 0, self.out_features)

    def part(self, tokens: PictureTokens, start: int, stop: int) -> PictureTokens:
        update = functional.linear(tokens, self.a.flatten(0, 1)) @ self._up()[start:stop].mT
        return super().part(tokens, start, stop) + self.scale * update

    def matrix(self) -> Float[Tensor, "_ dim"]:
        return self.weight + self.scale * self._up() @ self.a.flatten(0, 1)

    def _up(self) -> Tensor:
        """All B_m in the rows of their maps: (3 d, m r)."""
        blocks = self.b.new_zeros(3, self.b.shape[1], *self.b.shape[::2])
        for i, row in enumerate(self.maps):
            blocks[row, :, i] = self.b[i]
        return blocks.flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank updates of the attention's maps, "qv" by default."""

    name, copies = "lora", "modules"
    rank: int = 8
    alpha: float = 8.0
    maps: str = "qv"

    def __post_init__(self) -> None:
        check_positive("the rank of LoRA", self.rank)
        require(math.isfinite(self.alpha), f"the alpha of LoRA is a finite number: got {self.alpha}.")
        require(
            bool(self.maps) and set(self.maps) <= set(_MAPS) and len(set(self.maps)) == len(self.maps),
            f"LoRA takes maps of 'q', 'k' and 'v', each once, as in 'qv': got {self.maps!r}.",
        )

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        for block in cast("list[TransformerBlock]", list(backbone.blocks)):
            block.attn.qkv = LowRankPacked(block.attn.qkv, self.maps, self.rank, self.alpha, generator)
