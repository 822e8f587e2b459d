r"""The attention weights of one ViT block, found in a file by the names of its tensors.

The first column has the names of this package, the other two what the names in a file may end with:

| here                     | timm                       | separate maps (transformers, ...)                       |
|--------------------------|----------------------------|---------------------------------------------------------|
| W_Q, W_K, W_V            | attn.qkv.weight (3 d, d)   | query / key / value or q_proj / k_proj / v_proj .weight |
| W_O                      | attn.proj.weight           | proj / out_proj / o_proj / output.dense .weight         |

Any prefix may stand before these names, and biases may be missing. Files store a map as (out, in). This package
applies it as x @ w, so every map is transposed to (in, out) when it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from moe_prompt.attention.tensor_files import bias_of, checked, ends_with
from moe_prompt.errors import InputError, require

_PACKED = ("qkv.weight", "in_proj_weight")
_SEPARATE = {"query.weight": ("key.weight", "value.weight"), "q_proj.weight": ("k_proj.weight", "v_proj.weight")}
_OUTPUT = ("proj.weight", "out_proj.weight", "o_proj.weight", "output.dense.weight")


@dataclass(frozen=True)
class AttentionWeights:
    """The four maps of an attention layer and their biases, the columns of its h heads side by side.

    Shapes: `w_q`, `w_k` (dim, h d_k); `w_v` (dim, h d_v); `w_o` (h d_v, dim); one bias per column of each.
    Raises InputError when the shapes do not fit together.
    """

    w_q: Float[Tensor, "_ _"]
    w_k: Float[Tensor, "_ _"]
    w_v: Float[Tensor, "_ _"]
    w_o: Float[Tensor, "_ _"]
    b_q: Float[Tensor, " _"]
    b_k: Float[Tensor, " _"]
    b_v: Float[Tensor, " _"]
    b_o: Float[Tensor, " _"]

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        fits = self.w_q.shape == self.w_k.shape and len(self.w_q) == len(self.w_v) and len(self.w_o) == shapes["w_v"][1]
        fits = fits and all(shapes[f"b_{name}"] == shapes[f"w_{name}"][1:] for name in "qkvo")
        require(
            fits,
            "attention needs w_q, w_k (dim, h d_k), w_v (dim, h d_v), w_o (h d_v, dim) and one bias per column: got "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            + ".",
        )

    @classmethod
    def random(cls, dim: int, generator: Generator | None = None, dtype: torch.dtype | None = None) -> AttentionWeights:
        """Four (dim, dim) maps with independent N(0, 1 / dim) entries, and biases of zero."""
        weights = [torch.randn(dim, dim, generator=generator, dtype=dtype) / math.sqrt(dim) for _ in range(4)]
        return cls(*weights, *(torch.zeros(dim, dtype=dtype) for _ in range(4)))


def find_block(tensors: Mapping[str, Tensor], block: int = 0, source: str = "the tensors") -> AttentionWeights:
    """The maps of the `block`-th attention block, numbered from 0 in the natural order of the names.

    Raises:
        InputError: there is no such block, a tensor is missing or holds numbers that are not finite, or shapes do not
            fit. The message begins with `source` or names it.
    """
    stems = {name: stem for name in tensors for stem in (*_PACKED, *_SEPARATE) if ends_with(name, stem)}
    require(
        bool(stems),
        f"{source} holds no attention block: it needs attn.qkv.weight, or query/key/value or q_proj/k_proj/v_proj "
        f"weights, and got {', '.join(list(tensors)[:3]) or 'no tensor at all'}.",
    )
    require(
        0 <= block < len(stems),
        f"{source} holds {len(stems)} attention block(s), numbered from 0: got block {block}; choose one of them.",
    )
    name = sorted(stems, key=_natural)[block]
    return _attention(tensors, name.removesuffix(stems[name]), stems[name], source)


def _attention(tensors: Mapping[str, Tensor], prefix: str, stem: str, source: str) -> AttentionWeights:
    """W_Q, W_K, W_V and W_O of the block whose names begin with `prefix`, transposed to (in, out)."""
    weights, biases = (_packed_maps if stem in _PACKED else _separate_maps)(tensors, prefix, stem, source)
    output = _nearest(tensors, prefix, _OUTPUT)
    if output is None:
        raise InputError(f"{source} lacks the output map of {prefix}{stem}: add it under the name attn.proj.weight.")
    weights.append(checked(tensors, output, source))
    biases.append(bias_of(tensors, output, source))
    require(
        all(w.ndim == 2 for w in weights),
        f"every map of {prefix}{stem} in {source} needs two axes (out, in): got {[w.ndim for w in weights]} axes.",
    )
    try:
        return AttentionWeights(*(weight.mT for weight in weights), *biases)
    except InputError as error:
        raise InputError(f"{source}, {prefix}{stem}: {error}") from error


def _packed_maps(
    tensors: Mapping[str, Tensor], prefix: str, stem: str, source: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The three maps and biases that a file stores as one tensor (3 d, d)."""
    packed = checked(tensors, prefix + stem, source)
    require(
        packed.ndim == 2 and len(packed) % 3 == 0,
        f"{prefix}{stem} in {source} needs shape (3 d, d): got {tuple(packed.shape)}.",
    )
    return list(packed.chunk(3)), list(bias_of(tensors, prefix + stem, source).chunk(3))


def _separate_maps(
    tensors: Mapping[str, Tensor], prefix: str, stem: str, source: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The three maps and biases that a file stores one by one."""
    names = [prefix + part for part in (stem, *_SEPARATE[stem])]
    return [checked(tensors, name, source) for name in names], [bias_of(tensors, name, source) for name in names]


def _nearest(tensors: Mapping[str, Tensor], prefix: str, names: tuple[str, ...]) -> str | None:
    """The first of `names` that exists under `prefix`, else under its parent, else under its grandparent."""
    scopes = [prefix]
    for _ in range(2):
        scopes.append(re.sub(r"[^.]*\.$", "", scopes[-1]))
    return next((scope + name for scope in scopes for name in names if scope + name in tensors), None)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that reads digits as numbers: block 2 stands before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
