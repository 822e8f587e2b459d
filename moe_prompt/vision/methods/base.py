"""A way to tune a frozen vision transformer: which prompts enter it, and which of its own parameters learn."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Generator

from moe_prompt.attention.prompts import PromptExpert
from moe_prompt.errors import require
from moe_prompt.vision.vit.config import ViTConfig
from moe_prompt.vision.vit.prompting import DeepPrompts, Prompting
from moe_prompt.vision.vit.transformer import VisionTransformer


class Method(ABC):
    """Options of a way to tune, as a frozen dataclass with two hooks. The head is always learned, by any method."""

    name: ClassVar[str]
    """The name on the command line and in tables."""
    optimizer: ClassVar[str] = "sgd"
    """The default optimizer: AdamW for full fine-tuning, SGD for all others, as in arXiv 2203.12119."""
    copies: ClassVar[str] = "nothing"
    """What `adapt` changes and is therefore copied first: "nothing", "modules" (weights stay shared) or "weights"."""

    def prompting(self, config: ViTConfig, generator: Generator | None = None) -> Prompting | None:
        """The prompts that enter a ViT of these sizes, or none."""
        return None

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        """Change a frozen backbone in place: make parameters learnable, or insert modules."""
        return None

    def borrow(self, backbone: VisionTransformer) -> VisionTransformer:
        """The backbone, frozen; what this method changes of it is a copy, so that other methods can share the rest."""
        shared = {} if self.copies == "weights" else {id(p): p for p in backbone.parameters()}
        own = backbone if self.copies == "nothing" else copy.deepcopy(backbone, shared)
        return own.requires_grad_(False)

    def to_dict(self) -> dict[str, Any]:
        """Name and options as plain data."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


class DeepMethod(Method):
    """A prompt expert in every block."""

    @abstractmethod
    def expert(self, block: int, config: ViTConfig, generator: Generator | None) -> PromptExpert | None:
        """The prompt expert of a block, or none."""

    def prompting(self, config: ViTConfig, generator: Generator | None = None) -> Prompting | None:
        return DeepPrompts([self.expert(block, config, generator) for block in range(config.depth)])


@dataclass(frozen=True)
class DeepExperts(DeepMethod):
    """A prompt expert of the user's own in every block: `make(config)` builds one.

    >>> from moe_prompt.attention.prompts import ConstantPrompt
    >>> method = DeepExperts(lambda config: ConstantPrompt(5, config.dim))
    >>> sorted(method.prompting(ViTConfig(depth=2)).experts)
    ['0', '1']
    """

    name = "experts"
    make: Callable[[ViTConfig], PromptExpert]

    def expert(self, block: int, config: ViTConfig, generator: Generator | None) -> PromptExpert | None:
        return self.make(config)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "make": f"{self.make.__module__}.{self.make.__qualname__}"}


def check_rate(kind: str, rate: float | int) -> None:
    """A dropout rate is a number in [0, 1)."""
    require(0 <= rate < 1, f"{kind} is a rate in [0, 1): got {rate}.")


def check_positive(kind: str, number: int) -> None:
    """Counts and widths are at least 1."""
    require(number >= 1, f"{kind} needs to be at least 1: got {number}.")
