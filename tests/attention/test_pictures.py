"""Any picture to RGB, and patches to tokens against a loop over patches."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from moe_prompt.attention.pictures import PatchEmbedding, find_embedding, pixels, read_picture, shifted_boxes
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


def embedding(dim: int = 11, **parts) -> PatchEmbedding:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(dim, 3, 4, 4, generator=generator, dtype=torch.float64)
    return PatchEmbedding(weight, torch.randn(dim, generator=generator, dtype=torch.float64), **parts)


def test_tokens_are_patches_row_by_row():
    """Grid 2 x 3 of 4 x 4 patches, class token first, a position added to each."""
    class_token, positions = torch.randn(1, 1, 11).double(), torch.randn(1, 7, 11).double()
    embed = embedding(class_token=class_token, positions=None)
    picture = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    tokens = embed(picture)
    assert tokens.shape == (2, 7, 11)
    for b in range(2):
        torch.testing.assert_close(tokens[b, 0], class_token[0, 0])
        for row in range(2):
            for column in range(3):
                patch = picture[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                expected = torch.stack([(w * patch).sum() for w in embed.weight]) + embed.bias
                torch.testing.assert_close(tokens[b, 1 + 3 * row + column], expected)
    square = embedding(class_token=class_token, positions=torch.cat([positions[:, :5]], dim=1))
    plain = embedding(class_token=class_token)
    picture = picture[..., :8]
    torch.testing.assert_close(square(picture) - plain(picture), positions[:, :5].expand(2, -1, -1))


@pytest.mark.parametrize("stored", [9, 10], ids=["patches only", "with class token"])
def test_positions_follow_the_grid(stored):
    """A constant field of positions stays constant on a grid of another shape."""
    positions = torch.full((1, stored, 11), 2.0).double()
    class_token = torch.zeros(1, 1, 11).double()
    added = embedding(class_token=class_token, positions=positions)(torch.zeros(1, 3, 8, 20).double())
    added = added - embedding(class_token=class_token)(torch.zeros(1, 3, 8, 20).double())
    torch.testing.assert_close(added[:, 1:], torch.full((1, 10, 11), 2.0).double())
    assert added[0, 0].unique().item() == (2.0 if stored == 10 else 0.0)


def test_positions_of_a_square_are_resampled_on_an_oblong_of_as_many_patches():
    """2 x 2 positions that differ by row alone, on a grid of 1 x 4: no difference between columns is left."""
    positions = torch.tensor([0.0, 1.0, 1.0, 5.0, 5.0]).double()[None, :, None].expand(1, 5, 11)
    embed = embedding(class_token=torch.zeros(1, 1, 11).double(), positions=positions)
    added = embed(torch.zeros(1, 3, 4, 16).double()) - embedding()(torch.zeros(1, 3, 4, 16).double())[:, :1]
    torch.testing.assert_close(added[:, 1:], torch.full((1, 4, 11), 3.0).double())


def test_embedding_is_found_by_name():
    tensors = {"v.patch_embed.proj.weight": torch.ones(5, 3, 4, 4), "v.cls_token": torch.ones(1, 1, 5)}
    found = find_embedding(tensors)
    assert found.weight.shape == (5, 3, 4, 4) and found.positions is None and found.class_token.shape == (1, 1, 5)
    assert found.bias.tolist() == [0.0] * 5
    assert find_embedding({"blocks.0.attn.qkv.weight": torch.ones(3, 1)}) is None


@pytest.mark.parametrize("shape", [(5, 48), (5, 1, 4, 4)])
def test_unusable_embedding_is_named(shape):
    with pytest.raises(InputError, match=r"patch_embed.proj.weight in my file needs"):
        find_embedding({"patch_embed.proj.weight": torch.ones(shape)}, "my file")


def test_pixels_and_boxes():
    picture = Image.new("RGB", (20, 10), (255, 0, 0))
    picture.paste((0, 0, 255), (10, 0, 20, 10))
    whole = pixels(picture, (4, 6))
    assert whole.shape == (1, 3, 4, 6)
    assert whole[0, :, 0, 0].tolist() == [1, -1, -1] and whole[0, :, 0, -1].tolist() == [-1, -1, 1]
    half = pixels(picture, (4, 6), [(0.0, 0.0, 8.0, 10.0), (12.0, 0.0, 20.0, 10.0)])
    assert (half[0, 0] == 1).all() and (half[1, 0] == -1).all()
    for left, top, right, bottom in shifted_boxes(picture, 50, torch.Generator().manual_seed(0)):
        assert 0 <= left < right <= 20 and 0 <= top < bottom <= 10
        assert right - left == pytest.approx(17) and bottom - top == pytest.approx(8.5)
