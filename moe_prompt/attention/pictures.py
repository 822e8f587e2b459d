r"""Pictures to tokens: read a picture file, lay a grid of patches over it, embed the patches.

X = [class; W patch_1 + b; ...; W patch_HW + b] + position        (arXiv 2010.11929)

"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn

from moe_prompt.attention.decoding import decode
from moe_prompt.attention.tensor_files import bias_of, checked, ends_with
from moe_prompt.errors import InputError, require

_PATCHES = ("patch_embed.proj.weight", "patch_embeddings.projection.weight", "conv_proj.weight")
_POSITIONS = ("pos_embed", "position_embeddings", "pos_embedding")
_CLASS = ("cls_token", "class_token")
Box = tuple[float, float, float, float]


def read_picture(path: str | Path) -> Image.Image:
    """Any picture that Pillow reads, upright, as RGB; what is transparent becomes white.

    Raises:
        InputError: naming the file: missing, truncated, not a picture, or so large that it may be an attack.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give the path of a picture.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture ({error}): give a file such as PNG or JPEG.") from error
    return decode(data, str(path), stretched=True).picture


def pixels(
    picture: Image.Image, size: tuple[int, int], boxes: Sequence[Box] = ()
) -> Float[Tensor, "views 3 height width"]:
    """The picture, or each of its boxes (left, top, right, bottom), resized to (height, width), values in [-1, 1]."""
    height, width = size
    views = [picture.resize((width, height), Image.Resampling.BICUBIC, box) for box in boxes or [(0, 0, *picture.size)]]
    stacked = torch.from_numpy(np.stack([np.asarray(view, dtype=np.float32) for view in views]))
    return stacked.movedim(-1, 1) / 127.5 - 1


def shifted_boxes(picture: Image.Image, views: int, generator: Generator, share: float = 0.85) -> list[Box]:
    """Boxes of `share` of each side at random places: the same scene, looked at from a little beside."""
    corners = torch.rand(views, 2, generator=generator) * (1 - share)
    width, height = picture.size
    return [(x * width, y * height, (x + share) * width, (y + share) * height) for x, y in corners.tolist()]


@dataclass(frozen=True)
class PatchEmbedding:
    """Pictures to tokens: [class; W patch_1 + b; ...; W patch_HW + b] + position."""

    weight: Float[Tensor, "dim channels patch patch"]
    bias: Float[Tensor, " dim"]
    class_token: Float[Tensor, "1 1 dim"] | None = None
    positions: Float[Tensor, "1 positions dim"] | None = None

    @classmethod
    def random(
        cls, dim: int, patch: int = 16, generator: Generator | None = None, dtype: torch.dtype | None = None
    ) -> PatchEmbedding:
        """A random projection of patches that keeps their mean square, no class token, no positions."""
        weight = torch.randn(dim, 3, patch, patch, generator=generator, dtype=dtype) / math.sqrt(3 * patch**2)
        return cls(weight, torch.zeros(dim, dtype=dtype))

    def __call__(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        patches = nn.functional.conv2d(pixels.to(self.weight), self.weight, self.bias, stride=self.weight.shape[-2:])
        tokens = patches.flatten(2).mT
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens if self.positions is None else tokens + self._positions(patches.shape[-2:], tokens.shape[1])

    def _positions(self, grid: Sequence[int], tokens: int) -> Tensor:
        """Positions for this grid: those stored, else their square resampled."""
        assert self.positions is not None
        stored, special = self.positions.shape[1], tokens - math.prod(grid)
        side = math.isqrt(stored)
        if stored == tokens and (grid[0] == grid[1] or side**2 + special != stored):
            return self.positions
        first, square = self.positions.split([stored - side**2, side**2], dim=1)
        square = square.mT.unflatten(-1, (side, side))
        resampled = nn.functional.interpolate(square, tuple(grid), mode="bicubic", antialias=True)
        first = nn.functional.pad(first, (0, 0, 0, special - first.shape[1]))
        return torch.cat([first, resampled.flatten(2).mT], dim=1)


def find_embedding(tensors: Mapping[str, Tensor], source: str = "the tensors") -> PatchEmbedding | None:
    """The patch embedding with class token and positions where the tensors hold one, else None."""
    patches, positions, class_token = (
        next((name for name in tensors for end in ends if ends_with(name, end)), None)
        for ends in (_PATCHES, _POSITIONS, _CLASS)
    )
    if patches is None:
        return None
    weight = checked(tensors, patches, source)
    require(
        weight.ndim == 4 and weight.shape[1] == 3,
        f"{patches} in {source} needs shape (dim, 3, P, P): got {tuple(weight.shape)}.",
    )
    return PatchEmbedding(
        weight,
        bias_of(tensors, patches, source),
        checked(tensors, class_token, source) if class_token else None,
        checked(tensors, positions, source) if positions else None,
    )
