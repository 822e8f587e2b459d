"""What a checkpoint stores and what is kept of it: the tensors of a plain ViT under timm's names.

A naming family is a subclass of :class:`Format`: the name of the patch embedding's kernel tells it apart and gives the
prefix under which the encoder lies. Heads, decoders, projectors and second encoders are dropped, and said to be.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from moe_prompt.errors import require

_PLAIN = re.compile(
    r"cls_token|pos_embed|reg_token|patch_embed\.proj\.(weight|bias)|(fc_)?norm\.(weight|bias)"
    r"|blocks\.\d+\.((norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|ls[12]\.gamma)"
)
_FOREIGN = re.compile(
    r"(blocks|layers|encoder|stages|downsample|conv_root|block\d|patch_embed|norm_pre|dist_token|rope|rel_pos)"
    r"[\w./]*|[\w./]*(relative_position_bias_table|logit_scale|distillation_token)"
)
_GATED = re.compile(r"[\w./]*mlp\.(w12|w3|w_in|weights_in|fc1_g|fc1_x)\.[\w.]*")
_DROPPED = {  # read in this order
    "second encoder": r"(.*[./])?(momentum_encoder|teacher|student)[./].*",
    "decoder": r"(.*[./])?(decoder\w*)([./].*)?",
    "projection head": r"(.*[./])?(predictor|projector|projection_head|dino_head|ibot_head|dino_loss|ibot\w*)[./].*",
    "mask token": r"(.*[./])?mask_token",
    "pooler": r"(.*[./])?pooler[./].*",
    "pre-logits layer": r"(.*[./])?pre_logits[./].*",
    "classification head": r"(.*[./])?(head|heads|head_dist|classifier|fc|\w+_classifier)[./].*",
}


@dataclass(frozen=True)
class StoredTensors:
    """Named tensors as a file stores them.

    `container` is the kind of file, `wrapper` the key of a torch file they lie under, `config` the settings that a
    transformers folder keeps beside them; `heads` and `norm_eps` are given where the file itself tells them.
    """

    tensors: Mapping[str, Tensor]
    source: str
    container: str
    wrapper: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    heads: int | None = None
    norm_eps: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """A plain ViT's tensors under timm's names, and what was not kept of the file."""

    format: str
    tensors: Mapping[str, Tensor]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]
    norm_eps: float
    heads: int | None = None


class Format(ABC):
    """A family of names."""

    landmark: ClassVar[str]
    """The name of the patch embedding's kernel, before which stands the encoder's prefix."""

    def recognises(self, stored: StoredTensors) -> bool:
        """Whether the file holds an encoder in these names."""
        return bool(self._prefixes(stored))

    @abstractmethod
    def encoder(self, stored: StoredTensors) -> Encoder:
        """The encoder under timm's names.

        Raises:
            InputError: naming the file: not a plain ViT, or more than one.
        """

    def prefix(self, stored: StoredTensors) -> str:
        """What stands before the encoder's names; a momentum encoder is never the one meant."""
        prefixes = [prefix for prefix in self._prefixes(stored) if not re.search("momentum|decoder", prefix)]
        require(
            len(prefixes) == 1,
            f"{stored.source} holds {len(prefixes)} encoders ({', '.join(map(repr, prefixes))}): save the one you mean "
            "to a file of its own.",
        )
        return prefixes[0]

    def _prefixes(self, stored: StoredTensors) -> list[str]:
        return [
            name.removesuffix(self.landmark)
            for name in stored.tensors
            if name == self.landmark or name.endswith((f".{self.landmark}", f"/{self.landmark}"))
        ]


@dataclass(frozen=True)
class Parts:
    """Tensors of a plain ViT, and the names of all others of the file."""

    plain: Mapping[str, Tensor]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]


def parts_of(renamed: Mapping[str, Tensor], outside: Iterable[str], source: str) -> Parts:
    """Divide names within the encoder (`renamed`, as timm would call them) and outside it into kept and not kept.

    Raises:
        InputError: naming `source`: tensors that a plain ViT has no place for but that change what it computes.
    """
    plain = {name: tensor for name, tensor in renamed.items() if _PLAIN.fullmatch(name)}
    within = [name for name in renamed if name not in plain]
    kinds = {name: _dropped_as(name) for name in [*within, *outside]}
    gated = [name for name in within if _GATED.fullmatch(name)]
    require(
        not gated,
        f"{source} has gated (SwiGLU) MLPs ({_some(gated)}), and here every MLP is fc2(gelu(fc1(x))): give the "
        "checkpoint of a ViT without them, such as DINOv2 small, base or large.",
    )
    foreign = [name for name in within if kinds[name] is None and _FOREIGN.fullmatch(name)]
    require(
        not foreign,
        f"{source} is not a plain ViT, which has no place for {_some(foreign)}: give the checkpoint of a plain one.",
    )
    return Parts(plain, tuple(name for name, kind in kinds.items() if kind is None), _dropped_notes(kinds))


def by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors whose names begin with `prefix`, without it, and the names of the others."""
    inside = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    return inside, [name for name in tensors if not name.startswith(prefix)]


def _dropped_as(name: str) -> str | None:
    return next((kind for kind, pattern in _DROPPED.items() if re.fullmatch(pattern, name)), None)


def _dropped_notes(kinds: Mapping[str, str | None]) -> tuple[str, ...]:
    counts = Counter(kind for kind in kinds.values() if kind is not None)
    said = ", ".join(f"{kind} ({count} tensor{'s' * (count > 1)})" for kind, count in counts.items())
    return (f"dropped: {said}",) if said else ()


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
