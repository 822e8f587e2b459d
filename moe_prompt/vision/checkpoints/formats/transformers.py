r"""ViT, ViT-MAE and DINOv2 under the names of transformers, versions 4 and 5, with or without the model's prefix.

| timm                 | version 4                                   | version 5                      |
|----------------------|---------------------------------------------|--------------------------------|
| blocks.i             | encoder.layer.i                             | layers.i, or as before         |
| attn.qkv             | attention.attention.{query, key, value}     | attention.{q, k, v}_proj       |
| attn.proj            | attention.output.dense                      | attention.o_proj               |
| norm1, norm2         | layernorm_before, layernorm_after, or as timm |                              |
| mlp.fc1, mlp.fc2     | intermediate.dense, output.dense            | mlp.fc1, mlp.fc2               |
| ls1.gamma            | layer_scale1.lambda1                        |                                |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.vision.checkpoints.formats.base import Encoder, Format, Parts, StoredTensors, by_prefix, parts_of

_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.(.+)")
_IN_BLOCK = (
    (r"attention\.(?:attention\.)?(?:query|q_proj)\.", "attn.query."),
    (r"attention\.(?:attention\.)?(?:key|k_proj)\.", "attn.key."),
    (r"attention\.(?:attention\.)?(?:value|v_proj)\.", "attn.value."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"(?:layernorm_before|norm1)\.", "norm1."),
    (r"(?:layernorm_after|norm2)\.", "norm2."),
    (r"(?:intermediate\.dense|mlp\.fc1)\.", "mlp.fc1."),
    (r"(?:output\.dense|mlp\.fc2)\.", "mlp.fc2."),
    (r"layer_scale([12])\.lambda1$", r"ls\1.gamma"),
)
_QUERY = re.compile(r"blocks\.\d+\.attn\.query\.(weight|bias)")


@final
class TransformersNames(Format):
    """``embeddings.patch_embeddings.projection.weight``, ``encoder.layer.0...`` under ``vit.``, ``dinov2.`` or none."""

    landmark = "embeddings.patch_embeddings.projection.weight"

    def encoder(self, stored: StoredTensors) -> Encoder:
        inside, outside = by_prefix(stored.tensors, self.prefix(stored))
        renamed = _packed({_timm_name(name): inside[name] for name in inside}, stored.source)
        parts = parts_of(renamed, outside, stored.source)
        heads, norm_eps, note = _settings(stored, parts)
        kind = "DINOv2" if "blocks.0.ls1.gamma" in parts.plain else "ViT"
        notes = (*stored.notes, *parts.notes, *note)
        return Encoder(f"{kind} of transformers", parts.plain, parts.unexpected, notes, norm_eps, heads)


def _timm_name(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _TOP.get(name, name)
    for pattern, own in _IN_BLOCK:
        if re.match(pattern, block[2]):
            return f"blocks.{block[1]}." + re.sub(f"^{pattern}", own, block[2])
    return f"blocks.{block[1]}.{block[2]}"


def _packed(renamed: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Query, key and value stacked as timm's qkv (3 d, d)."""
    packed = {name: tensor for name, tensor in renamed.items() if not re.search(r"attn\.(query|key|value)\.", name)}
    for name in filter(_QUERY.fullmatch, renamed):
        three = [name.replace("query", part) for part in ("query", "key", "value")]
        lacking = [part for part in three if part not in renamed]
        require(not lacking, f"{source} lacks {', '.join(lacking)}, which {name} needs beside it.")
        shapes = {tuple(renamed[part].shape) for part in three}
        require(len(shapes) == 1, f"{', '.join(three)} in {source} need one shape: got {shapes}.")
        packed[name.replace("query", "qkv")] = torch.cat([renamed[part] for part in three])
    return packed


def _settings(stored: StoredTensors, parts: Parts) -> tuple[int | None, float, tuple[str, ...]]:
    """Heads and the layer norms' epsilon: the file's own, else those of config.json, else the library's default."""
    config = _config_of_these(stored, parts)
    activation = config.get("hidden_act", "gelu")
    require(
        activation == "gelu",
        f"{stored.source} was trained with the activation {activation!r} (config.json), and here every MLP has gelu: "
        "give the checkpoint of a ViT with gelu.",
    )
    heads = stored.heads or config.get("num_attention_heads")
    if stored.norm_eps is not None:
        return heads, stored.norm_eps, ()
    if "layer_norm_eps" in config:
        return heads, float(config["layer_norm_eps"]), ()
    norm_eps = 1e-6 if "blocks.0.ls1.gamma" in parts.plain else 1e-12
    return heads, norm_eps, (f"no config.json beside it: layer norms with transformers' default epsilon {norm_eps:g}",)


def _config_of_these(stored: StoredTensors, parts: Parts) -> Mapping[str, Any]:
    """The config.json that was found, if it is that of a model of this width."""
    dim = parts.plain["patch_embed.proj.weight"].shape[0]
    return stored.config if stored.config.get("hidden_size") == dim else {}
