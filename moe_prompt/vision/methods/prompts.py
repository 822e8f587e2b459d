r"""Prompt methods: which prompt expert of :mod:`moe_prompt.attention.prompts` each block of a ViT gets.

| method       | expert of a block                                      | gate    | learned, without head           |
|--------------|--------------------------------------------------------|---------|---------------------------------|
| `VPTShallow` | tokens carried from the input (arXiv 2203.12119)       | softmax | N_p d                           |
| `VPTDeep`    | `ConstantPrompt` (arXiv 2203.12119)                    | softmax | L N_p d                         |
| `VAPT`       | `AdaptivePrompt`, after D constant blocks (2501.18936) | softmax | D N_p d + (L - D) A + 2 r d     |
| `Prefix`     | `PrefixPrompt`, not normalised (arXiv 2101.00190)      | softmax | 2 L N_p d                       |
| `NoRGa`      | `PrefixPrompt` (arXiv 2405.14124)                      | NoRGa   | 2 L N_p d + 2 L                 |

A = N_p (H' W' + 1) + K^2 + 2 d with H' = H - K + 1: token-wise projector, kernel, layer norm of the released VAPT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, nn

from moe_prompt.attention.gates import NonlinearResidualGate
from moe_prompt.attention.prompts import AdaptivePrompt, ConstantPrompt, FeatureProjector, PrefixPrompt, PromptExpert
from moe_prompt.errors import require
from moe_prompt.vision.methods.base import DeepMethod, Method, check_positive, check_rate
from moe_prompt.vision.vit.config import ViTConfig
from moe_prompt.vision.vit.prompting import CarriedPrompts, DeepPrompts, DropoutPrompt, Prompting


def prompt_bound(config: ViTConfig) -> float:
    """Released VPT draws prompts from uniform(-v, v), v = sqrt(6 / (3 P^2 + d))."""
    return math.sqrt(6 / (3 * config.patch**2 + config.dim))


def constant(num_prompts: int, config: ViTConfig, dropout: float, generator: Generator | None) -> PromptExpert:
    """The prompts of VPT, with dropout."""
    expert = ConstantPrompt(num_prompts, config.dim, prompt_bound(config), generator)
    return DropoutPrompt(expert, dropout) if dropout else expert


@dataclass(frozen=True)
class VPTShallow(Method):
    """N_p learned tokens at the input, carried through every block."""

    name = "vpt-shallow"
    num_prompts: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive("the number of prompts", self.num_prompts)
        check_rate("prompt dropout", self.dropout)

    def prompting(self, config: ViTConfig, generator: Generator | None = None) -> Prompting | None:
        return CarriedPrompts(constant(self.num_prompts, config, self.dropout, generator), config.dim)


@dataclass(frozen=True)
class VPTDeep(DeepMethod):
    """N_p constant prompt experts in every block."""

    name = "vpt-deep"
    num_prompts: int = 10
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_positive("the number of prompts", self.num_prompts)
        check_rate("prompt dropout", self.dropout)

    def expert(self, block: int, config: ViTConfig, generator: Generator | None) -> PromptExpert | None:
        return constant(self.num_prompts, config, self.dropout, generator)


@dataclass(frozen=True)
class Prefix(Method):
    """Keys and values learned apart, in every block; they enter after the block's layer norm."""

    name = "prefix"
    num_prompts: int = 10

    def __post_init__(self) -> None:
        check_positive("the number of prompts", self.num_prompts)

    def prompting(self, config: ViTConfig, generator: Generator | None = None) -> Prompting | None:
        return DeepPrompts(self._experts(config, generator), normalise=False)

    def _experts(self, config: ViTConfig, generator: Generator | None) -> list[PrefixPrompt]:
        bound, sizes = prompt_bound(config), (self.num_prompts, config.dim)
        return [PrefixPrompt(*sizes, bound, generator=generator) for _ in range(config.depth)]


@dataclass(frozen=True)
class NoRGa(Prefix):
    """Prefixes whose scores pass through s + alpha tanh(tau s), alpha and tau learned in each block."""

    name = "norga"

    def prompting(self, config: ViTConfig, generator: Generator | None = None) -> Prompting | None:
        gates = [NonlinearResidualGate() for _ in range(config.depth)]
        return DeepPrompts(self._experts(config, generator), gates, normalise=False)


@dataclass(frozen=True)
class VAPT(DeepMethod):
    """Prompts that are functions of the block's patch tokens (arXiv 2501.18936).

    The defaults are the method as released; :meth:`paper` is the method as the paper writes it. Every difference and
    every ablation is a switch:

    `static_blocks` D: the first D blocks have VPT's constant prompts. `layer_norm`, `convolution`, `projector`: the
    three stages of an adaptive prompt besides the token-wise projector. `residual`, `scale`, `learned_scale`: the form
    z + scale W_2 act(W_1 z) of the feature projector. `shared_projector`: one for all blocks. `token_bias`,
    `channel_dropout`, `projector_dropout`, `static_dropout`: as named. `zero_init`: the token-wise projector starts
    at 0, with the residual every adaptive prompt is exactly 0 at first; without the residual relu would never leave it.
    """

    name = "vapt"
    num_prompts: int = 10
    kernel_size: int = 2
    rank: int = 8
    activation: str = "relu"
    static_blocks: int = 1
    layer_norm: bool = True
    convolution: bool = True
    projector: bool = True
    shared_projector: bool = True
    residual: bool = True
    scale: float = 1.0
    learned_scale: bool = False
    token_bias: bool = True
    zero_init: bool = True
    static_dropout: float = 0.1
    channel_dropout: float = 0.1
    projector_dropout: float = 0.1

    @classmethod
    def paper(cls, num_prompts: int = 10, kernel_size: int = 2, rank: int = 8) -> VAPT:
        """As written in arXiv 2501.18936, section 4: adaptive in every block, no residual, no bias, no dropout."""
        return cls(
            num_prompts,
            kernel_size,
            rank,
            static_blocks=0,
            residual=False,
            token_bias=False,
            zero_init=False,
            channel_dropout=0.0,
            projector_dropout=0.0,
        )

    def __post_init__(self) -> None:
        for kind in ("num_prompts", "kernel_size", "rank"):
            check_positive(kind.replace("_", " "), getattr(self, kind))
        require(self.static_blocks >= 0, f"static blocks are a number of blocks, 0 or more: got {self.static_blocks}.")
        require(math.isfinite(self.scale), f"the scale of the projector is a finite number: got {self.scale}.")
        for kind in ("static_dropout", "channel_dropout", "projector_dropout"):
            check_rate(kind.replace("_", " "), getattr(self, kind))

    def prompting(self, config: ViTConfig, generator: Generator | None = None) -> Prompting | None:
        shared = self._projector(config, generator) if self.shared_projector else None
        experts = [self._adaptive(config, shared, generator) for _ in range(self.static_blocks, config.depth)]
        static = [self.expert(block, config, generator) for block in range(min(self.static_blocks, config.depth))]
        return DeepPrompts([*static, *experts])

    def expert(self, block: int, config: ViTConfig, generator: Generator | None) -> PromptExpert | None:
        if block < self.static_blocks:
            return constant(self.num_prompts, config, self.static_dropout, generator)
        return self._adaptive(config, None, generator)  # a block on its own has a projector of its own

    def _adaptive(
        self, config: ViTConfig, shared: FeatureProjector | None, generator: Generator | None
    ) -> AdaptivePrompt:
        expert = AdaptivePrompt(
            self.num_prompts,
            config.grid,
            shared or self._projector(config, generator),
            self.kernel_size if self.convolution else 1,
            self.layer_norm,
            self.token_bias,
            self.channel_dropout,
            self.zero_init,
            generator,
        )
        if not self.convolution:
            nn.init.ones_(expert.kernel).requires_grad_(False)
        return expert

    def _projector(self, config: ViTConfig, generator: Generator | None) -> FeatureProjector:
        projector = FeatureProjector(
            config.dim,
            self.rank if self.projector else 1,
            self.activation,
            self.residual or not self.projector,
            self.scale,
            self.projector_dropout,
            generator,
        )
        if not self.projector:  # z + 0: what the other stages give is the prompt
            nn.init.zeros_(projector.w2)
            projector.requires_grad_(False)
        elif self.learned_scale:
            projector.scale = cast(float, nn.Parameter(torch.tensor(self.scale)))
        return projector
