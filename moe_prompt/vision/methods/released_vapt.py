"""Prompts trained with the released VAPT code, put onto our backbone (arXiv 2501.18936).

| name in the released state dict                               | shape          | here                                |
|---------------------------------------------------------------|----------------|-------------------------------------|
| enc.transformer.prompt_embeddings                             | (D, N_p, d)    | constant prompts, first D blocks    |
| enc.transformer.deep_prompt_embeddings_mlp.block.{0,2}.weight | (r, d), (d, r) | W_1, W_2 of the feature projector   |
| enc.transformer.deep_prompt_norm.i.{weight,bias}              | (d,)           | layer norm of block D + i           |
| enc.transformer.deep_prompt_downsample.i.conv.kernel          | K * K numbers  | kernel of block D + i               |
| enc.transformer.deep_prompt_downsample.i.linear.{weight,bias} | (N_p, H' W')   | token-wise projector of block D + i |
| head.last_layer.{weight,bias}                                 | (C, d)         | the head                            |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from moe_prompt.attention.tensor_files import checked
from moe_prompt.errors import require
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.prompts import VAPT
from moe_prompt.vision.vit.transformer import VisionTransformer

_TRANSFORMER = "enc.transformer."
_BLOCK = re.compile(r"deep_prompt_(?:norm|downsample)\.(\d+)\.")


def released_vapt(tensors: Mapping[str, Tensor], source: str, backbone: VisionTransformer) -> Classifier:
    """The classifier of a released VAPT state dict; the sizes D, N_p, K, r are read off its tensors.

    Tensors of the frozen backbone in the same dict are ignored: `backbone` must be the one it was trained on, which
    the released files do not record.

    Raises:
        InputError: naming `source`: a tensor is missing, is not finite, or does not fit `backbone`.
    """
    static = checked(tensors, _TRANSFORMER + "prompt_embeddings", source)
    require(static.ndim == 3, f"prompt_embeddings in {source} needs shape (D, N_p, d): got {tuple(static.shape)}.")
    kernel = checked(tensors, _TRANSFORMER + "deep_prompt_downsample.0.conv.kernel", source)
    first = checked(tensors, _TRANSFORMER + "deep_prompt_embeddings_mlp.block.0.weight", source)
    head = checked(tensors, "head.last_layer.weight", source)
    adaptive = 1 + max(int(found[1]) for name in tensors if (found := _BLOCK.search(name)))
    depth = backbone.config.depth
    require(
        len(static) + adaptive == depth,
        f"{source} has {len(static)} constant and {adaptive} adaptive blocks: this backbone has {depth} blocks.",
    )
    method = VAPT(static.shape[1], math.isqrt(kernel.numel()), len(first), static_blocks=len(static))
    classifier = Classifier(backbone, method, len(head))
    classifier.put(dict(_renamed(tensors, source, len(static), adaptive)), source)
    return classifier


def _renamed(tensors: Mapping[str, Tensor], source: str, static: int, adaptive: int) -> list[tuple[str, Tensor]]:
    """Our names and shapes for the released tensors."""

    def get(name: str) -> Tensor:
        return checked(tensors, _TRANSFORMER + name, source)

    experts, shared = "prompting.experts.", "feature_projector"
    constant = get("prompt_embeddings")
    found = [(f"{experts}{block}.expert.p", constant[block]) for block in range(static)]
    found += [
        (f"{experts}{static}.{shared}.w{i + 1}", get(f"deep_prompt_embeddings_mlp.block.{2 * i}.weight"))
        for i in (0, 1)
    ]
    for i in range(adaptive):
        own, norm, down = f"{experts}{static + i}.", f"deep_prompt_norm.{i}.", f"deep_prompt_downsample.{i}."
        kernel = get(down + "conv.kernel")
        side = math.isqrt(kernel.numel())
        require(side**2 == kernel.numel(), f"{down}conv.kernel in {source} needs K * K numbers: got {kernel.numel()}.")
        found += [
            (own + "norm.weight", get(norm + "weight")),
            (own + "norm.bias", get(norm + "bias")),
            (own + "kernel", kernel.reshape(side, side)),
            (own + "alpha", get(down + "linear.weight")),
            (own + "bias", get(down + "linear.bias")),
        ]
    return [
        *found,
        *((f"head.{part}", checked(tensors, f"head.last_layer.{part}", source)) for part in ("weight", "bias")),
    ]
