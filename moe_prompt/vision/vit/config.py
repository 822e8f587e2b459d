"""The sizes of a vision transformer, given or read from the tensors of a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from moe_prompt.errors import require

_HEADS = {1280: 16}  # other widths have heads of 64 columns, but for MoCo v3's ViT-S, whose files are told apart


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT; the default is ViT-B/16 at 224 pixels.

    `image` is (height, width) in pixels, `pooling` "cls" or "avg" (patch tokens averaged, then `fc_norm`), and
    `position_class` says whether `pos_embed` has a row for the class token.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image: tuple[int, int] = (224, 224)
    mlp_dim: int = 3072
    class_token: bool = True
    registers: int = 0
    layer_scale: bool = False
    position_class: bool = True
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    pooling: str = "cls"

    def __post_init__(self) -> None:
        require(
            self.heads >= 1 and self.dim % self.heads == 0,
            f"the heads of a ViT must divide its width {self.dim}: got {self.heads}.",
        )
        require(
            all(side >= self.patch and side % self.patch == 0 for side in self.image),
            f"a ViT with patches of {self.patch} pixels needs pictures whose sides are multiples of it: got "
            f"{self.image[0]} x {self.image[1]}.",
        )
        require(self.pooling in ("cls", "avg"), f"pooling is 'cls' or 'avg': got {self.pooling!r}.")
        require(self.class_token or self.pooling == "avg", "pooling 'cls' needs a class token: use pooling 'avg'.")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in height and width."""
        return self.image[0] // self.patch, self.image[1] // self.patch

    @property
    def extra(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.class_token) + self.registers

    @property
    def positions(self) -> int:
        """Rows of the position embedding."""
        return math.prod(self.grid) + int(self.position_class and self.class_token)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        source: str,
        image: tuple[int, int] | None = None,
        heads: int | None = None,
        pooling: str = "cls",
    ) -> ViTConfig:
        """Sizes read off the shapes of tensors in timm's names; `image` None: the file's own square grid.

        Raises:
            InputError: naming `source`: a tensor is missing, or the tensors are not of a plain ViT.
        """
        needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
        for name in needed:
            require(name in tensors, f"{source} is not a plain ViT: it lacks {name}.")
        (dim, _, patch, _), rows = tensors[needed[0]].shape, tensors["pos_embed"].shape[1]
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        class_token, registers = "cls_token" in tensors, tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
        side = _side(rows, class_token, source)
        own = side * patch
        return cls(
            dim=dim,
            depth=depth,
            heads=heads or _HEADS.get(dim, max(1, dim // 64)),
            patch=patch,
            image=image or (own, own),
            mlp_dim=len(tensors[needed[3]]),
            class_token=class_token,
            registers=registers,
            layer_scale="blocks.0.ls1.gamma" in tensors,
            position_class=class_token and side**2 != rows,
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
            pooling=pooling if class_token else "avg",
        )


def _side(rows: int, class_token: bool, source: str) -> int:
    """The side of the square grid of positions."""
    side = math.isqrt(rows)
    require(
        side**2 == rows or (class_token and math.isqrt(rows - 1) ** 2 == rows - 1),
        f"pos_embed in {source} needs a square grid of positions, with or without a class token: got {rows} rows.",
    )
    return side


def _size(dim: int, depth: int, heads: int, patch: int) -> ViTConfig:
    return ViTConfig(dim=dim, depth=depth, heads=heads, patch=patch, mlp_dim=4 * dim)


VIT_SIZES: dict[str, ViTConfig] = {
    "vit-ti/16": _size(192, 12, 3, 16),
    "vit-s/16": _size(384, 12, 6, 16),
    "vit-s/14": _size(384, 12, 6, 14),
    "vit-b/16": _size(768, 12, 12, 16),
    "vit-b/14": _size(768, 12, 12, 14),
    "vit-l/16": _size(1024, 24, 16, 16),
    "vit-l/14": _size(1024, 24, 16, 14),
    "vit-h/14": _size(1280, 32, 16, 14),
}
"""The published sizes (arXiv 2010.11929), at 224 pixels."""
