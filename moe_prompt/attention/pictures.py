"""Pictures to look at: read a picture file, and lay shifted boxes over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Generator

from moe_prompt.errors import InputError, require

Box = tuple[float, float, float, float]


def read_picture(path: str | Path) -> Image.Image:
    """Any picture that Pillow reads, upright, as RGB; what is transparent becomes white.

    Raises:
        InputError: naming the file: missing, truncated, not a picture, or so large that it may be an attack.
    """
    try:
        with Image.open(path) as picture:
            return _rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give the path of a picture.") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} cannot be read as a picture ({error}): give a whole one, such as PNG or JPEG."
        ) from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greyscale with 16 bits or more, or floating point: Pillow's own conversion would clip it at 255."""
    grey = np.asarray(picture, dtype=np.float64)
    require(bool(np.isfinite(grey).all()), "its numbers are not finite")
    full_scale = 65535.0 if picture.mode.startswith("I") else 1.0
    low, high = min(grey.min(), 0.0), max(grey.max(), full_scale)
    return Image.fromarray(np.rint(255 * (grey - low) / (high - low)).astype(np.uint8))


def shifted_boxes(picture: Image.Image, views: int, generator: Generator, share: float = 0.85) -> list[Box]:
    """Boxes of `share` of each side at random places: the same scene, looked at from a little beside."""
    corners = torch.rand(views, 2, generator=generator) * (1 - share)
    width, height = picture.size
    return [(x * width, y * height, (x + share) * width, (y + share) * height) for x, y in corners.tolist()]
