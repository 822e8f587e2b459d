r"""Preprocessing: how a picture becomes (3, H, W) bytes, and how bytes become the input of a backbone.

The two of the papers (arXiv 1910.04867 and 2203.12119):

    VTAB   bilinear resize to size x size, nothing else
    FGVC   shorter side to 256 (at 224), then a random crop of 224 and a random flip; tests: the centre crop, no flip

Pictures stay bytes until they are in a batch, and are then normalised: x -> (x / 255 - mean) / std.
A random crop depends on (seed, epoch, index) alone, not on workers, resuming or other pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from moe_prompt.errors import choose, require

NORMALISATIONS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of each channel. VPT and VAPT use `imagenet`; the IN-21k weights' own is `half`."""
CROPS = ("none", "random", "centre")


class Draw(NamedTuple):
    """Where a random crop lies, as shares in [0, 1) of the room it has, and whether it is flipped."""

    top: float
    left: float
    flip: bool


def draw_for(seed: int, epoch: int, index: int) -> Draw:
    """The crop and flip of picture `index` in this epoch."""
    top, left, side = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, index))).random(3)
    return Draw(float(top), float(left), bool(side < 0.5))


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to (3, height, width) bytes.

    With `shorter`, the shorter side is resized to that many pixels and the shape is kept; without it the picture is
    resized to `size`, whatever its shape. `crop` then cuts out `size`: ``random`` cuts at random in training and from
    the centre in tests, ``centre`` always from the centre. `flip` mirrors half of the training pictures.

    Resizing is bilinear. When a picture shrinks, `antialias` averages over all pixels that fall on the new one, as
    Pillow and torchvision do. Without it only the four nearest pixels count, as in the TensorFlow pipeline of the
    released VTAB runs. For pictures that grow (CIFAR, SVHN, dSprites, ... at 224) there is no difference.
    """

    size: tuple[int, int]
    shorter: int | None = None
    crop: str = "none"
    flip: bool = False
    normalisation: str = "imagenet"
    antialias: bool = True

    def __post_init__(self) -> None:
        require(min(self.size) >= 1, f"preprocessing needs a size of at least one pixel: got {self.size}.")
        choose("crop", self.crop, dict.fromkeys(CROPS))
        choose("normalisation", self.normalisation, NORMALISATIONS)
        require(
            (self.crop == "none") == (self.shorter is None),
            f"a crop is cut out of a picture resized by its shorter side: give both `shorter` and `crop`, or neither; "
            f"got shorter {self.shorter} and crop {self.crop!r}.",
        )
        require(
            self.shorter is None or self.shorter >= max(self.size),
            f"a crop of {self.size} does not fit into a shorter side of {self.shorter}: raise `shorter`.",
        )

    @property
    def random(self) -> bool:
        """Whether training sees another crop or flip in every epoch."""
        return self.crop == "random" or self.flip

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON keeps it."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`; InputError for a name that is none of the fields."""
        for name in plain:
            choose("field of the preprocessing", name, {field.name: field for field in fields(cls)})
        require("size" in plain, "a preprocessing needs a size, (height, width).")
        height, width = plain["size"]
        return cls(**{**plain, "size": (int(height), int(width))})

    def resized(self, picture: Image.Image) -> UInt8[Tensor, "3 resized_height resized_width"]:
        """The picture after the resize, before any crop."""
        height, width = self.size
        if self.shorter is not None:
            least = min(picture.size)
            width, height = (self.shorter * side // least for side in picture.size)
        return _resize(picture, height, width, self.antialias)

    def cropped(
        self, pixels: UInt8[Tensor, "3 resized_height resized_width"], drawn: Draw | None
    ) -> UInt8[Tensor, "3 height width"]:
        """The crop and flip that were drawn; without a draw the centre, not flipped."""
        height, width = self.size
        rooms = pixels.shape[1] - height, pixels.shape[2] - width
        if drawn is not None and self.crop == "random":
            top, left = int(drawn.top * (rooms[0] + 1)), int(drawn.left * (rooms[1] + 1))
        else:
            top, left = (round(room / 2) for room in rooms)
        crop = pixels[:, top : top + height, left : left + width]
        return crop.flip(-1) if drawn is not None and self.flip and drawn.flip else crop.contiguous()


def _resize(picture: Image.Image, height: int, width: int, antialias: bool) -> Tensor:
    if antialias and picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0).contiguous()
    if antialias or pixels.shape[1:] == (height, width):
        return pixels
    resized = torch.nn.functional.interpolate(pixels[None].float(), (height, width), mode="bilinear")
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def VTAB(size: int | tuple[int, int] = 224, normalisation: str = "imagenet", antialias: bool = True) -> Preprocessing:
    """Resize to `size`, nothing else (arXiv 1910.04867). ``antialias=False`` resizes as the released pipelines do."""
    return Preprocessing(_pair(size), normalisation=normalisation, antialias=antialias)


def FGVC(size: int | tuple[int, int] = 224, normalisation: str = "imagenet") -> Preprocessing:
    """Shorter side to 256 where `size` is 224 and in proportion elsewhere; random crop and flip (arXiv 2203.12119)."""
    pair = _pair(size)
    return Preprocessing(pair, round(max(pair) * 256 / 224), "random", True, normalisation)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def normalise(
    images: UInt8[Tensor, "batch 3 height width"], normalisation: str, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch 3 height width"]:
    """(x / 255 - mean) / std in a new tensor. Only bytes are accepted, so that nothing is normalised twice."""
    require(
        images.dtype == torch.uint8,
        f"normalise takes pictures as bytes (uint8), once: got {images.dtype}; normalise the bytes instead.",
    )
    mean, std = choose("normalisation", normalisation, NORMALISATIONS)
    exact = torch.promote_types(dtype, torch.float32)
    shift, scale = (torch.tensor(row, dtype=exact, device=images.device).view(3, 1, 1) for row in (mean, std))
    return torch.addcdiv(-shift / scale, images.to(exact), 255 * scale).to(dtype)
