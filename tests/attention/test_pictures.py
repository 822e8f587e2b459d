"""Any picture to RGB, and boxes in it."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from moe_prompt.attention.pictures import read_picture, shifted_boxes
from moe_prompt.errors import InputError

WIDTH, HEIGHT = 7, 5


def save(tmp_path, picture: Image.Image, name: str = "picture.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def ramp() -> np.ndarray:
    return np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)


def test_sixteen_bits_keep_their_scale(tmp_path):
    path = save(tmp_path, Image.fromarray((65535 * ramp()).astype(np.uint16)))
    read = np.asarray(read_picture(path))
    assert read.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(read - 255 * ramp()[..., None]).max() <= 1


def test_floating_point_keeps_its_scale(tmp_path):
    read = np.asarray(read_picture(save(tmp_path, Image.fromarray(ramp().astype(np.float32)), "picture.tiff")))
    assert np.abs(read - 255 * ramp()[..., None]).max() <= 1


def test_grey_and_one_bit(tmp_path):
    grey = (255 * ramp()).astype(np.uint8)
    assert (np.asarray(read_picture(save(tmp_path, Image.fromarray(grey)))) == grey[..., None]).all()
    bits = Image.fromarray(grey > 127)
    assert (np.asarray(read_picture(save(tmp_path, bits))) == 255 * (grey > 127)[..., None]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_becomes_white(tmp_path, mode):
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (200, 200, 200, 255))
    picture.putpixel((2, 3), (0, 0, 0, 0))
    options = {}
    if mode == "P":
        picture = Image.new("P", (WIDTH, HEIGHT), 1)
        picture.putpalette([0, 0, 0, 200, 200, 200])
        picture.putpixel((2, 3), 0)
        options["transparency"] = 0
    read = read_picture(save(tmp_path, picture if mode == "P" else picture.convert(mode), **options))
    assert read.mode == "RGB"
    assert read.getpixel((2, 3)) == (255, 255, 255) and read.getpixel((3, 2)) == (200, 200, 200)


def test_cmyk(tmp_path):
    path = save(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "picture.jpg", quality=100)
    red, green, blue = read_picture(path).getpixel((8, 8))
    assert red > 245 and green < 10 and blue < 10


def test_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_picture(save(tmp_path, Image.new("RGB", (WIDTH, HEIGHT)), exif=exif)).size == (HEIGHT, WIDTH)


def truncated() -> bytes:
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()[:3000]


@pytest.mark.parametrize(
    ("content", "says"),
    [(truncated(), "cannot be read"), (b"text", "cannot be read"), (b"", "cannot be read"), (None, "does not exist")],
)
def test_unreadable_pictures_are_named(tmp_path, content, says):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path)) + f" {says}"):
        read_picture(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_picture(tmp_path)


def test_huge_picture_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path, Image.new("RGB", (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="cannot be read"):
        read_picture(path)


def test_shifted_boxes_lie_in_the_picture():
    picture = Image.new("RGB", (20, 10), (255, 0, 0))
    for left, top, right, bottom in shifted_boxes(picture, 50, torch.Generator().manual_seed(0)):
        assert 0 <= left < right <= 20 and 0 <= top < bottom <= 10
        assert right - left == pytest.approx(17) and bottom - top == pytest.approx(8.5)
