"""Pictures to look at: read a picture file, and lay shifted boxes over it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Generator

from moe_prompt.attention.decoding import decode
from moe_prompt.errors import InputError

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


def shifted_boxes(picture: Image.Image, views: int, generator: Generator, share: float = 0.85) -> list[Box]:
    """Boxes of `share` of each side at random places: the same scene, looked at from a little beside."""
    corners = torch.rand(views, 2, generator=generator) * (1 - share)
    width, height = picture.size
    return [(x * width, y * height, (x + share) * width, (y + share) * height) for x, y in corners.tolist()]
