r"""timm's names, and the checkpoints whose authors kept them: MAE, MoCo v3 and the official DINOv2.

| file                           | what is around timm's names                                                     |
|--------------------------------|---------------------------------------------------------------------------------|
| timm                           | nothing; `ls1`, `ls2`, `reg_token`, `fc_norm` in newer models                   |
| MAE (arXiv 2111.06377)         | under 'model'; `decoder_*` and `mask_token` where the whole model was saved     |
| MoCo v3 (arXiv 2104.02057)     | under 'state_dict'; `module.`, or `module.base_encoder.` beside a momentum encoder |
| DINOv2 (arXiv 2304.07193)      | `mask_token`, `register_tokens`; blocks.chunk.i where blocks were wrapped in chunks |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.vision.checkpoints.formats.base import Encoder, Format, StoredTensors, by_prefix, parts_of

MOCO_SMALL, MOCO_SMALL_HEADS = 384, 12  # MoCo v3's ViT-S has heads of 32 columns
_NONE = torch.zeros(0)
_CHUNKED = re.compile(r"blocks\.\d+\.(\d+)\.")


@final
class TimmNames(Format):
    """``patch_embed.proj.weight``, ``blocks.0.attn.qkv.weight``, ... under any prefix."""

    landmark = "patch_embed.proj.weight"

    def encoder(self, stored: StoredTensors) -> Encoder:
        prefix = self.prefix(stored)
        inside, outside = by_prefix(stored.tensors, prefix)
        parts = parts_of(_renamed(inside, stored.source), outside, stored.source)
        norm_eps = 1e-6 if stored.norm_eps is None else stored.norm_eps
        notes = (*stored.notes, *parts.notes)
        kind = _kind(stored, prefix, inside)
        narrow = kind.startswith("MoCo v3") and parts.plain.get("cls_token", _NONE).shape[-1] == MOCO_SMALL
        heads = stored.heads or (MOCO_SMALL_HEADS if narrow else None)
        return Encoder(kind, parts.plain, parts.unexpected, notes, norm_eps, heads)


def _renamed(inside: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """DINOv2's names for registers and chunked blocks as timm has them."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in inside.items():
        own = _CHUNKED.sub(r"blocks.\1.", name) if _CHUNKED.match(name) else name
        own = "reg_token" if own == "register_tokens" else own
        require(own not in renamed, f"{source} holds {own} twice, in two chunks of blocks: give a whole checkpoint.")
        renamed[own] = tensor
    return renamed


def _kind(stored: StoredTensors, prefix: str, inside: Mapping[str, Tensor]) -> str:
    if prefix.endswith("base_encoder."):
        return "MoCo v3, pre-training"
    if prefix == "module." and stored.wrapper == "state_dict":
        return "MoCo v3, linear"
    if "decoder_embed.weight" in inside or (stored.wrapper == "model" and "head.weight" not in inside):
        return "MAE"
    return "DINOv2" if "mask_token" in inside else "timm"
