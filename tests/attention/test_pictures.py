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
