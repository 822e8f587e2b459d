"""From the bytes of a picture file to an RGB picture; what cannot be one by definition is refused in a sentence.

A set of pictures is as good as its decoding, so it is fixed here:

| the file holds                     | it becomes                                                               |
|------------------------------------|--------------------------------------------------------------------------|
| RGB, grey, black and white         | RGB as it is                                                             |
| a palette                          | the palette's colours, exactly                                           |
| 16-bit grey                        | v / 257, rounded: PNG defines 65,535 as white                            |
| CMYK                               | R = (255 - C)(255 - K) / 255, the convention without a colour profile    |
| transparency                       | laid over white                                                          |
| a turn noted in EXIF               | turned upright                                                           |
| several frames                     | the first                                                                |
| 32-bit integers, floats, CIE Lab   | refused: which number is white is not in the file, and to stretch every  |
|                                    | picture by its own extremes would make equal numbers unequal colours     |
| fewer bytes than it should         | refused, also where Pillow could be told to fill the rest with grey      |

All of these but the first line are noted beside the picture, and `classify verify` counts the notes. Where one picture
is only looked at, integers and floats may be stretched instead of refused.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from moe_prompt.errors import InputError, require

CMYK = "CMYK, made RGB without a colour profile"
PALETTE = "drawn with a palette"
SIXTEEN_BITS = "16-bit grey, divided by 257"
STRETCHED = "numbers without a white, stretched"
TRANSPARENT = "partly transparent, laid over white"
TURNED = "turned upright as their EXIF says, which released pipelines do not do"
FRAMES = "of several frames, of which the first is used"

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CONVERTED = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}


class PictureError(InputError):
    """A picture that cannot be used.

    A DataLoader raises the error of a worker again with the worker's traceback before the sentence: the sentence alone
    is kept, so that the user reads the same whether workers decode or not.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.rpartition("PictureError: ")[2].rstrip())


class Decoded(NamedTuple):
    """An RGB picture and what its file was: format and mode in Pillow's words, and what had to be done to it."""

    picture: Image.Image
    format: str | None
    mode: str
    notes: tuple[str, ...] = ()


def decode(data: bytes, name: str, stretched: bool = False) -> Decoded:
    """The picture in these bytes as RGB; `stretched` maps numbers without a white to the range from 0 to 255.

    Raises:
        PictureError: naming the picture: truncated, no picture, a kind of numbers that has no white, or so large that
            it may be an attack.
    """
    try:
        with Image.open(BytesIO(data)) as opened:
            wide = opened.mode in ("I", "F") and not (opened.mode == "I" and opened.format == "PNG")
            if not (stretched and wide):
                _refuse(opened.mode, opened.format, name)
            opened.load()
            whole = data.rfind(_ENDS.get(opened.format or "", b"")) >= 0
            require(whole, "image file is truncated")
            return _stretched(opened) if wide else _decoded(opened)
    except PictureError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "it is no picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise PictureError(
            f"{name} cannot be read as a picture ({reason}): bring a whole one, such as PNG or JPEG."
        ) from error


def _refuse(mode: str, form: str | None, name: str) -> None:
    known = mode in _CONVERTED or mode.startswith("I;16") or (mode == "I" and form == "PNG")
    if not known:
        raise PictureError(
            f"{name} holds numbers of mode {mode}, of which the file does not say which is white: "
            "save it with 8 bits a channel, or as 16-bit grey."
        )


def _decoded(opened: Image.Image) -> Decoded:
    notes = [FRAMES] if getattr(opened, "is_animated", False) else []
    picture: Image.Image = opened
    if picture.mode.startswith("I"):
        notes.append(SIXTEEN_BITS)
        wide = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif picture.mode in ("CMYK", "P", "PA"):
        notes.append(CMYK if picture.mode == "CMYK" else PALETTE)
    if picture.has_transparency_data:
        picture, through = _over_white(picture)
        notes += [TRANSPARENT] * through
    method = _UPRIGHT.get(_orientation(opened))
    if method is not None:
        notes.append(TURNED)
        picture = picture.transpose(method)
    return Decoded(picture.convert("RGB"), opened.format, opened.mode, tuple(notes))


def _stretched(opened: Image.Image) -> Decoded:
    """Numbers from 0 to 1 (floats) or 65,535 (integers), or from the least to the largest where they go beyond."""
    grey = np.asarray(opened, dtype=np.float64)
    require(bool(np.isfinite(grey).all()), "its numbers are not finite")
    low, high = min(grey.min(), 0.0), max(grey.max(), 1.0 if opened.mode == "F" else 65535.0)
    picture = Image.fromarray(np.rint(255 * (grey - low) / (high - low)).astype(np.uint8))
    return Decoded(picture.convert("RGB"), opened.format, opened.mode, (STRETCHED,))


def _over_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """The picture laid over white, and whether any white shows through."""
    picture = picture.convert("RGBA")
    through = bool((np.asarray(picture)[..., 3] < 255).any())
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture), through


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation; upright where the EXIF is broken, as the pixels may well be whole."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1
