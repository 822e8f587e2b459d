"""The peer: a ViT that carries its prompts as tokens, written plainly from the papers' formulas.

Every block takes [class; prompts; patches], computes queries, keys, values and the MLP for all of them, and the next
block throws the prompts' outputs away and puts its own in (arXiv 2203.12119; VAPT's as released, 2501.18936). Weights
are taken from a :class:`~moe_prompt.vision.methods.classifier.Classifier`; no code of its forward pass is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_prompt.attention.prompts import AdaptivePrompt, ConstantPrompt
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.vit.prompting import DropoutPrompt


class ConstantTokens(nn.Module):
    """VPT: the same tokens for every picture, then dropout."""

    def __init__(self, prompts: nn.Parameter, rate: float) -> None:
        super().__init__()
        self.prompts, self.dropout = prompts, nn.Dropout(rate)

    def forward(self, patches: Tensor) -> Tensor:
        return self.dropout(self.prompts.expand(len(patches), -1, -1))


class AdaptiveTokens(nn.Module):
    """VAPT as released, stage by stage: norm, convolution, channel dropout, Linear over places, projector."""

    def __init__(self, expert: AdaptivePrompt) -> None:
        super().__init__()
        self.grid, self.norm, self.kernel = expert.grid, expert.norm, expert.kernel
        self.alpha, self.bias, self.dropout = expert.alpha, expert.bias, nn.Dropout2d(expert.channel_dropout.p)
        self.projector = expert.feature_projector

    def forward(self, patches: Tensor) -> Tensor:
        channels = patches.shape[-1]
        field = self.norm(patches).transpose(1, 2).reshape(len(patches), channels, *self.grid)
        field = functional.conv2d(field, self.kernel.expand(channels, 1, -1, -1), groups=channels)
        averaged = functional.linear(self.dropout(field).flatten(2), self.alpha, self.bias).transpose(1, 2)
        hidden = torch.relu(functional.linear(averaged, self.projector.w1))
        update = functional.linear(self.projector.dropout(hidden), self.projector.w2)
        return averaged + self.projector.scale * update


class PromptsAsTokens(nn.Module):
    """The logits of `classifier`, prompts carried as tokens."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.vit, self.head = classifier.backbone, classifier.head
        assert classifier.prompting is not None
        self.tokens = nn.ModuleList(_tokens(expert) for expert in classifier.prompting.experts.values())

    def forward(self, images: Tensor) -> Tensor:
        x = self.vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1) + self.vit.pos_embed
        patches = x[:, 1:]
        for block, tokens in zip(self.vit.blocks, self.tokens, strict=True):
            prompts = tokens(patches)
            x = torch.cat([x[:, :1], prompts, patches], dim=1)
            x = x + self._attention(block.attn, block.norm1(x))
            x = x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))
            patches = x[:, 1 + prompts.shape[1] :]
        return self.head(self.vit.norm(x)[:, 0])

    def _attention(self, attention: nn.Module, x: Tensor) -> Tensor:
        batch, rows, width = x.shape
        qkv = functional.linear(x, attention.qkv.weight, attention.qkv.bias)
        q, k, v = qkv.reshape(batch, rows, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return attention.proj(mixed.transpose(1, 2).reshape(batch, rows, width))


def _tokens(expert: nn.Module) -> nn.Module:
    rate = 0.0
    if isinstance(expert, DropoutPrompt):
        rate, expert = expert.dropout.p, expert.expert
    if isinstance(expert, ConstantPrompt):
        return ConstantTokens(expert.p, rate)
    assert isinstance(expert, AdaptivePrompt)
    return AdaptiveTokens(expert)
