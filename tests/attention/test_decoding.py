"""Every kind of picture to RGB by values written out here; cut files are refused at every length."""

import pickle
import re
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from torch._utils import ExceptionWrapper

from moe_prompt.attention import decoding
from moe_prompt.attention.decoding import PictureError, decode
from moe_prompt.attention.pictures import read_picture
from tests.builders.planted_tasks import pixels, save

HEIGHT, WIDTH = 5, 7


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def values(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, "it").picture)


def png_by_hand(rows: list[bytes], width: int, depth: int, colour: int, palette: bytes = b"") -> bytes:
    """A PNG written from the format's definition, by no library that reads it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    middle = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_rgb_and_grey_are_kept():
    colour = pixels(0, HEIGHT, WIDTH)
    assert (values(encoded(Image.fromarray(colour))) == colour).all()
    assert (values(encoded(Image.fromarray(colour[..., 0]))) == colour[..., :1]).all()
    bits = colour[..., 0] > 127
    assert (values(encoded(Image.fromarray(bits))) == 255 * bits[..., None]).all()
    assert decode(encoded(Image.fromarray(colour)), "it").notes == ()


def test_sixteen_bit_grey_is_divided_by_257():
    exact = [0, 128, 129, 257, 4096, 32767, 65534, 65535]
    data = png_by_hand([struct.pack(">8H", *exact)], 8, 16, 0)
    assert values(data)[0, :, 0].tolist() == [0, 0, 1, 1, 16, 127, 255, 255]
    assert decode(data, "it").notes == (decoding.SIXTEEN_BITS,)
    wide = (257 * pixels(1, HEIGHT, WIDTH)[..., 0].astype(np.uint16)).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        assert (values(encoded(Image.fromarray(wide), form))[..., 0] == wide // 257).all()


def test_palette_is_looked_up():
    palette = bytes([10, 20, 30, 200, 100, 0, 1, 2, 3])
    data = png_by_hand([bytes([2, 0, 1]), bytes([1, 1, 0])], 3, 8, 3, palette)
    colours = np.frombuffer(palette, np.uint8).reshape(3, 3)
    assert (values(data) == colours[[[2, 0, 1], [1, 1, 0]]]).all()
    assert decode(data, "it").notes == (decoding.PALETTE,)


def test_cmyk_by_its_formula():
    inks = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    data = encoded(Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()), "TIFF")
    wide = inks.astype(int)
    expected = (255 - wide[..., :3]) * (255 - wide[..., 3:]) / 255
    assert np.abs(values(data) - expected).max() <= 1
    assert decode(data, "it").notes == (decoding.CMYK,)
    red = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(values(red).astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_laid_over_white(mode):
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (200, 200, 200, 255))
    picture.putpixel((2, 3), (0, 0, 0, 0))
    options = {}
    if mode == "P":
        picture = Image.new("P", (WIDTH, HEIGHT), 1)
        picture.putpalette([0, 0, 0, 200, 200, 200])
        picture.putpixel((2, 3), 0)
        options["transparency"] = 0
    decoded = decode(encoded(picture if mode == "P" else picture.convert(mode), **options), "it")
    assert decoding.TRANSPARENT in decoded.notes
    assert decoded.picture.getpixel((2, 3)) == (255, 255, 255) and decoded.picture.getpixel((3, 2)) == (200, 200, 200)
    opaque = decode(encoded(Image.new("RGBA", (WIDTH, HEIGHT), (1, 2, 3, 255))), "it")
    assert opaque.notes == () and opaque.picture.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(orientation):
    """Against Pillow's own reading of the tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(pixels(3, HEIGHT, WIDTH))
    data = encoded(picture, exif=exif)
    with Image.open(BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert (values(data) == expected).all()
    assert decode(data, "it").notes == (() if orientation == 1 else (decoding.TURNED,))


def test_broken_exif_does_not_hide_the_picture():
    picture = Image.fromarray(pixels(3, HEIGHT, WIDTH))
    assert (values(encoded(picture, exif=b"Exif\0\0no such thing")) == np.asarray(picture)).all()


def test_first_of_several_frames():
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    decoded = decode(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), "it")
    assert decoding.FRAMES in decoded.notes and decoded.picture.getpixel((0, 0)) == (255, 0, 0)


def test_agrees_with_the_reader_of_single_pictures(tmp_path):
    """Where both read a picture they see the same."""
    wide = (65535 * np.linspace(0, 1, 35)).reshape(HEIGHT, WIDTH).astype(np.uint16)
    for number, picture in enumerate([Image.fromarray(pixels(4)), Image.fromarray(wide)]):
        path = save(tmp_path / f"{number}.png", picture)
        assert (np.asarray(read_picture(path)) == values(path.read_bytes())).all()


@pytest.mark.parametrize("numbers", [np.float32, np.int32])
def test_numbers_without_a_white_are_refused(numbers):
    data = encoded(Image.fromarray(np.arange(35).reshape(HEIGHT, WIDTH).astype(numbers)), "TIFF")
    with pytest.raises(PictureError, match=r"^photo\.tiff holds numbers of mode [FI]"):
        decode(data, "photo.tiff")


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})]
)
def test_truncated_pictures_are_refused_at_every_length(form, options, monkeypatch):
    data = encoded(Image.fromarray(pixels(5, 19, 23)), form, **options)
    assert values(data).shape == (19, 23, 3)
    ends = {"PNG": 8}.get(form, 1)  # without the four bytes of the last check sum a PNG is whole
    for length in range(0, len(data) - ends + 1, 1 if len(data) < 900 else 7):
        with pytest.raises(PictureError, match=r"^photo cannot be read as a picture"):
            decode(data[:length], "photo")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    if form != "WEBP":
        with pytest.raises(PictureError, match="truncated"):
            decode(data[: 2 * len(data) // 3], "photo")


def test_an_error_of_a_worker_is_the_sentence_alone():
    """As a DataLoader carries an error over from a worker: wrapped, with its traceback in front."""
    try:
        decode(b"", "absent.png")
    except PictureError:
        carried = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0")))
    assert "Traceback" in carried.exc_msg
    with pytest.raises(PictureError) as caught:
        carried.reraise()
    assert re.fullmatch(r"absent\.png cannot be read as a picture \(.*\): bring a whole one, .*", str(caught.value))
