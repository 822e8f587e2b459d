r"""Google's ViT checkpoints in JAX (arXiv 2010.11929), an npz of arrays with heads on an axis of their own.

| timm                     | Google, below `Transformer/encoderblock_i/` | from shape    | to shape     |
|--------------------------|---------------------------------------------|---------------|--------------|
| attn.qkv.weight          | MultiHeadDotProductAttention_1/{query, ...} | (d, h, dh)    | (3 h dh, d)  |
| attn.proj.weight         | MultiHeadDotProductAttention_1/out          | (h, dh, d)    | (d, h dh)    |
| mlp.fc1, mlp.fc2         | MlpBlock_3/Dense_{0, 1}                     | (in, out)     | (out, in)    |
| norm1, norm2             | LayerNorm_0, LayerNorm_2                    | scale, bias   | weight, bias |
| patch_embed.proj.weight  | embedding (at the top)                      | (P, P, 3, d)  | (d, 3, P, P) |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.vision.checkpoints.formats.base import Encoder, Format, StoredTensors, by_prefix, parts_of

_TOP = {
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_BLOCK_0 = "Transformer/encoderblock_0/"
_ATTENTION = "MultiHeadDotProductAttention_1"
_IN_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_2/scale": "norm2.weight",
    "LayerNorm_2/bias": "norm2.bias",
    f"{_ATTENTION}/out/bias": "attn.proj.bias",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}
_KERNELS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    f"{_ATTENTION}/out/kernel": ("attn.proj.weight", lambda kernel: kernel.flatten(0, 1).mT),
    "MlpBlock_3/Dense_0/kernel": ("mlp.fc1.weight", lambda kernel: kernel.mT),
    "MlpBlock_3/Dense_1/kernel": ("mlp.fc2.weight", lambda kernel: kernel.mT),
}
_QUERY = {f"{_ATTENTION}/query/kernel": "attn.qkv.weight", f"{_ATTENTION}/query/bias": "attn.qkv.bias"}
_AXES = {
    "embedding/kernel": 4,
    **{f"{_ATTENTION}/{part}/kernel": 3 for part in ("query", "key", "value", "out")},
    **{f"{_ATTENTION}/{part}/bias": 2 for part in ("query", "key", "value")},
    "MlpBlock_3/Dense_0/kernel": 2,
    "MlpBlock_3/Dense_1/kernel": 2,
}


@final
class GoogleNames(Format):
    """``embedding/kernel``, ``Transformer/encoderblock_0/...``; the number of heads is an axis of the kernels."""

    landmark = "embedding/kernel"

    def encoder(self, stored: StoredTensors) -> Encoder:
        inside, outside = by_prefix(stored.tensors, self.prefix(stored))
        queries = [tensor for name, tensor in inside.items() if name.endswith("/query/kernel")]
        require(
            bool(queries),
            f"{stored.source} is not one of Google's plain ViTs: it lacks {_BLOCK_0}{_ATTENTION}/query/kernel.",
        )
        _check_axes(inside, stored.source)
        parts = parts_of(_renamed(inside, stored.source), outside, stored.source)
        norm_eps = 1e-6 if stored.norm_eps is None else stored.norm_eps
        notes = (*stored.notes, *parts.notes)
        return Encoder("Google ViT", parts.plain, parts.unexpected, notes, norm_eps, queries[0].shape[1])


def _check_axes(inside: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in inside.items():
        block = _BLOCK.fullmatch(name)
        axes = _AXES.get(block[2] if block else name, tensor.ndim)
        require(tensor.ndim == axes, f"{name} in {source} needs {axes} axes: got {tuple(tensor.shape)}.")


def _renamed(inside: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in inside.items():
        block = _BLOCK.fullmatch(name)
        if name == GoogleNames.landmark:
            renamed["patch_embed.proj.weight"] = tensor.permute(3, 2, 0, 1)
        elif block is None:
            renamed[_TOP.get(name, name)] = tensor
        elif block[2] in _QUERY:
            renamed[f"blocks.{block[1]}.{_QUERY[block[2]]}"] = _packed(inside, name, source)
        elif block[2] in _KERNELS:
            own, change = _KERNELS[block[2]]
            renamed[f"blocks.{block[1]}.{own}"] = change(tensor)
        elif not re.search("/(key|value)/", name):
            renamed[f"blocks.{block[1]}.{_IN_BLOCK.get(block[2], block[2])}"] = tensor
    return renamed


def _packed(inside: Mapping[str, Tensor], query: str, source: str) -> Tensor:
    """Query, key and value kernels (d, h, dh) as (3 h dh, d), or their biases (h, dh) as (3 h dh,)."""
    three = [query.replace("/query/", f"/{part}/") for part in ("query", "key", "value")]
    lacking = [name for name in three if name not in inside]
    require(not lacking, f"{source} lacks {', '.join(lacking)}, which {query} needs beside it.")
    shapes = {tuple(inside[name].shape) for name in three}
    require(len(shapes) == 1, f"{', '.join(three)} in {source} need one shape: got {shapes}.")
    if query.endswith("bias"):
        return torch.cat([inside[name].flatten() for name in three])
    return torch.cat([inside[name].flatten(1).mT for name in three])
