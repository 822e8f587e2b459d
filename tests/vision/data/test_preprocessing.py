"""The papers' two preprocessings against Pillow and a plain loop; draws as functions of coordinates; bytes kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from moe_prompt.errors import InputError
from moe_prompt.vision.data.preprocessing import FGVC, NORMALISATIONS, VTAB, Draw, Preprocessing, draw_for, normalise
from tests.builders.planted_tasks import pixels

HEIGHT, WIDTH = 37, 53


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(pixels(seed, height, width))


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The four nearest pixels of every centre, one output pixel at a time."""
    old_height, old_width = image.shape[:2]
    out = np.empty((height, width, 3))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * old_height / height - 0.5, 0), old_height - 1)
            x = min(max((j + 0.5) * old_width / width - 0.5, 0), old_width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, old_height - 1), min(left + 1, old_width - 1)
            v, u = y - top, x - left
            upper = (1 - u) * image[top, left] + u * image[top, right]
            lower = (1 - u) * image[bottom, left] + u * image[bottom, right]
            out[i, j] = (1 - v) * upper + v * lower
    return out


def test_the_two_of_the_papers():
    assert VTAB() == Preprocessing((224, 224))
    assert FGVC() == Preprocessing((224, 224), 256, "random", True)
    assert FGVC(98).shorter == 112 and FGVC(448).shorter == 512
    assert VTAB((14, 28)).size == (14, 28)
    assert not VTAB().random and FGVC().random


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(61, 59), (37, 53)], ids=["grows", "stays"])
def test_vtab_is_a_bilinear_resize(size, antialias):
    image = pixels(1, HEIGHT, WIDTH)
    found = VTAB(size, antialias=antialias).resized(Image.fromarray(image))
    assert found.shape == (3, *size) and found.dtype == torch.uint8
    assert np.abs(found.movedim(0, -1).numpy() - bilinear(image.astype(float), *size)).max() <= 1


def test_shrinking_with_and_without_antialias():
    """A comb of single white columns: averaged to grey, or hit and missed."""
    comb = np.zeros((40, 40, 3), np.uint8)
    comb[:, ::4] = 255
    plain = VTAB(10, antialias=False).resized(Image.fromarray(comb))
    assert np.abs(plain.movedim(0, -1).numpy() - bilinear(comb.astype(float), 10, 10)).max() <= 1
    assert plain.max() == 0
    averaged = VTAB(10).resized(Image.fromarray(comb)).float()
    assert abs(averaged.mean().item() - comb.mean()) < 4


def test_fgvc_keeps_the_shape_and_tests_see_the_centre():
    fgvc = FGVC(28)  # shorter side 32
    resized = fgvc.resized(picture(2))
    assert resized.shape == (3, 32, 32 * WIDTH // HEIGHT)
    expected = picture(2).resize((45, 32), Image.Resampling.BILINEAR).crop((8, 2, 36, 30))
    assert (fgvc.cropped(resized, None).movedim(0, -1).numpy() == np.asarray(expected)).all()
    assert fgvc.resized(picture(2, WIDTH, HEIGHT)).shape == (3, 45, 32)


def test_crops_and_flips_are_those_drawn():
    fgvc = Preprocessing((5, 7), shorter=11, crop="random", flip=True)
    resized = torch.arange(3 * 11 * 13, dtype=torch.uint8).reshape(3, 11, 13)
    assert torch.equal(fgvc.cropped(resized, Draw(0.0, 0.0, False)), resized[:, :5, :7])
    assert torch.equal(fgvc.cropped(resized, Draw(0.999, 0.999, False)), resized[:, 6:, 6:])
    assert torch.equal(fgvc.cropped(resized, Draw(0.5, 0.3, True)), resized[:, 3:8, 2:9].flip(-1))
    unflipped = replace(fgvc, flip=False)
    assert torch.equal(unflipped.cropped(resized, Draw(0.5, 0.3, True)), resized[:, 3:8, 2:9])
    centre = replace(fgvc, crop="centre", flip=False)
    assert torch.equal(centre.cropped(resized, Draw(0.0, 0.0, False)), resized[:, 3:8, 3:10])


def test_draws_are_uniform_functions_of_their_coordinates():
    assert draw_for(3, 5, 7) == draw_for(3, 5, 7)
    assert len({draw_for(*at) for at in [(3, 5, 7), (5, 3, 7), (3, 7, 5), (4, 5, 7), (3, 6, 7), (3, 5, 8)]}) == 6
    drawn = [draw_for(0, epoch, index) for epoch in range(20) for index in range(50)]
    for part in ([d.top for d in drawn], [d.left for d in drawn], [float(d.flip) for d in drawn]):
        assert abs(np.mean(part) - 0.5) < 5 * 0.5 / np.sqrt(1000)  # false alarm below 1e-6
    assert {int(13 * d.left) for d in drawn} == set(range(13))


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalise_by_hand_and_never_in_place(name):
    """Fault of released pipelines: pictures normalised in place drift from epoch to epoch."""
    images = torch.from_numpy(pixels(4, 5, 7)).movedim(-1, 0)[None].repeat(2, 1, 1, 1).contiguous()
    before = images.clone()
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in NORMALISATIONS[name])
    first, second = normalise(images, name), normalise(images, name)
    torch.testing.assert_close(first, (before / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    assert torch.equal(first, second) and torch.equal(images, before)
    assert normalise(images, name, torch.bfloat16).dtype == torch.bfloat16
    exact = normalise(images, name, torch.float64)
    assert exact.dtype == torch.float64 and (exact.float() - first).abs().max() < 1e-5


def test_numbers_are_not_normalised_twice():
    with pytest.raises(InputError, match=r"once: got torch\.float32"):
        getattr(normalise, "__wrapped__", normalise)(torch.zeros(1, 3, 2, 2), "half")  # past the check of shapes


def test_known_statistics():
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    for name in ("half", "none"):
        assert normalise(white, name).unique().tolist() == [1.0]
    assert normalise(white, "imagenet")[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)


def test_plain_data_and_back():
    for one in (VTAB(98), FGVC(112, "half"), Preprocessing((5, 7), 9, "centre", antialias=False)):
        assert Preprocessing.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": (0, 5)}, "at least one pixel"),
        ({"size": (5, 5), "crop": "middle"}, "unknown crop"),
        ({"size": (5, 5), "normalisation": "imagnet"}, "did you mean 'imagenet'"),
        ({"size": (5, 5), "crop": "random"}, "both `shorter` and `crop`"),
        ({"size": (5, 5), "shorter": 7}, "both `shorter` and `crop`"),
        ({"size": (5, 9), "shorter": 7, "crop": "random"}, "does not fit"),
        ({"size": (5, 5), "sise": 3}, "unknown field"),
        ({"flip": True}, "needs a size"),
    ],
)
def test_impossible_preprocessings_are_told(wrong, says):
    with pytest.raises(InputError, match=says):
        Preprocessing.from_dict(wrong)
