import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from moe_prompt.errors import InputError
from moe_prompt.models.covariates import Covariates, EvenGrid, Gaussian, ImagePatches, Uniform


def pictures(count: int = 3, height: int = 7, width: int = 5, channels: int | None = 2) -> np.ndarray:
    shape = (count, height, width) if channels is None else (count, height, width, channels)
    return np.random.default_rng(0).integers(0, 2, shape)


EVERY = [
    Uniform(-1.0, 2.0, 3),
    Uniform(-1.0, 2.0, 7),
    Gaussian(2, 0.7),
    Gaussian(5, 0.7),
    ImagePatches.digits(),
    ImagePatches(pictures(), crop=4, patch=2),
]


def name(covariates: Covariates) -> str:
    return f"{type(covariates).__name__}-{covariates.dim}"


@pytest.mark.parametrize("covariates", EVERY, ids=name)
def test_samples_and_nodes_have_the_same_moments(covariates):
    """Means of x, x^2 and x_1 x_k of 40 000 draws, within 5.5 standard errors, plus 1% where nodes are quasi-random.

    False alarm: at most 3 * 32 comparisons a case, 4e-8 each two-sided, so below 4e-6 (by the normal limit).
    """
    x = covariates.sample(40_000, np.random.default_rng(1)).numpy()
    points, weights = (t.numpy() for t in covariates.nodes(4096))
    assert x.shape == (40_000, covariates.dim) and points.shape == (len(weights), covariates.dim)
    assert x.dtype == points.dtype == np.float64
    assert math.isclose(weights.sum(), 1, rel_tol=1e-12) and weights.min() >= 0
    slack = 0.01 if covariates.dim > 4 and not isinstance(covariates, ImagePatches) else 1e-9
    for moment in (lambda z: z, lambda z: z**2, lambda z: z[:, :1] * z):
        error = np.abs(moment(x).mean(0) - weights @ moment(points))
        assert (error <= 5.5 * moment(x).std(0) / math.sqrt(len(x)) + slack).all()


@pytest.mark.parametrize("covariates", [*EVERY, EvenGrid(0.0, 1.0)], ids=name)
def test_the_generator_decides_the_sample_and_nodes_are_fixed(covariates):
    first, again, other = (covariates.sample(11, np.random.default_rng(seed)) for seed in (2, 2, 3))
    assert first.equal(again)
    assert isinstance(covariates, EvenGrid) or not first.equal(other)
    assert covariates.nodes(64)[0].equal(covariates.nodes(64)[0])


def test_sobol_nodes_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    Gaussian(5).nodes(64)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("dim, size", [(1, 5), (2, 25), (3, 125), (4, 625)])
def test_gauss_rules_are_exact_to_degree_nine(dim, size):
    low, high, scale = -0.5, 2.0, 0.8
    uniform, gaussian = Uniform(low, high, dim).nodes(size), Gaussian(dim, scale).nodes(size)
    assert len(uniform[1]) == len(gaussian[1]) == size
    degrees = [9, 8, 4, 3][:dim]
    exact = math.prod((high ** (k + 1) - low ** (k + 1)) / ((k + 1) * (high - low)) for k in degrees)
    powers = torch.tensor(degrees)
    assert math.isclose(float(uniform[1] @ (uniform[0] ** powers).prod(1)), exact, rel_tol=1e-11)
    even = [8, 6, 4, 2][:dim]
    exact = math.prod(scale**k * math.prod(range(1, k, 2)) for k in even)
    assert math.isclose(float(gaussian[1] @ (gaussian[0] ** torch.tensor(even)).prod(1)), exact, rel_tol=1e-11)
    assert abs(float(gaussian[1] @ gaussian[0][:, 0] ** 9)) < 1e-9


def test_long_rules_stay_finite_and_sharp():
    """E exp(t X) of a box and of a normal, closed forms."""
    points, weights = Gaussian(1, 1.0).nodes(10**6)
    assert math.isclose(float(weights @ points[:, 0].exp()), math.exp(0.5), rel_tol=1e-12)
    points, weights = Uniform(-1.0, 1.0, 1).nodes(10**6)
    assert math.isclose(float(weights @ points[:, 0].exp()), math.sinh(1.0), rel_tol=1e-12)


def test_sobol_error_falls_faster_than_sampling():
    """E prod cos(x_k) on a cube of 7 dimensions: 4096 draws would have standard error 2e-3."""
    points, weights = Uniform(-1.0, 1.0, 7).nodes(4096)
    assert len(weights) == 4096
    assert abs(float(weights @ points.cos().prod(1)) - math.sin(1.0) ** 7) < 4e-4
    assert len(Uniform(-1.0, 1.0, 7).nodes(4097)[1]) == 8192


def test_even_grid():
    grid = EvenGrid(2.0, 5.0)
    assert grid.sample(4, np.random.default_rng(0)).tolist() == [[2.0], [3.0], [4.0], [5.0]]
    points, weights = grid.nodes(8)
    assert grid.dim == 1 and math.isclose(float(weights @ points[:, 0] ** 2), 13.0, rel_tol=1e-12)


@pytest.mark.parametrize("channels", [None, 2])
def test_image_nodes_list_every_crop_by_plain_loops(channels):
    images, crop, patch = pictures(channels=channels), 4, 2
    covariates = ImagePatches(images, crop, patch)
    four = images if channels else images[..., None]
    mean, spread = four.mean(), four.std()
    counted: Counter[tuple[float, ...]] = Counter()
    for image in four:
        for top in range(7 - crop + 1):
            for left in range(5 - crop + 1):
                row = []
                for i in range(0, crop, patch):
                    for j in range(0, crop, patch):
                        for y in range(patch):
                            for x in range(patch):
                                row += [round((p - mean) / spread, 9) for p in image[top + i + y, left + j + x]]
                counted[tuple(row)] += 1
    points, weights = covariates.nodes()
    got = {tuple(round(v, 9) for v in p): w for p, w in zip(points.tolist(), weights.tolist(), strict=True)}
    assert len(got) == len(points)
    assert got == pytest.approx({row: times / (3 * 4 * 2) for row, times in counted.items()})
    assert covariates.num_tokens == 4 and covariates.dim == 16 * (channels or 1)
    drawn = covariates.sample(200, np.random.default_rng(0)).tolist()
    assert {tuple(round(v, 9) for v in row) for row in drawn} <= set(got)


def test_equal_crops_are_one_node_with_their_weights_added():
    images = np.zeros((1, 1, 4))
    images[0, 0, 3] = 1
    points, weights = ImagePatches(images, crop=1, patch=1).nodes()
    assert sorted(zip(weights.tolist(), points[:, 0].tolist(), strict=True)) == [
        (0.25, pytest.approx(math.sqrt(3))),
        (0.75, pytest.approx(-1 / math.sqrt(3))),
    ]


def test_digits_are_normalised():
    digits = ImagePatches.digits()
    assert digits.images.shape == (1797, 8, 8) and (digits.dim, digits.num_tokens) == (16, 4)
    whole = ImagePatches.digits(crop=8, patch=8).nodes()[0]
    assert abs(float(whole.mean())) < 1e-12 and math.isclose(float(whole.var(correction=0)), 1, rel_tol=1e-12)


def test_a_folder_of_pictures(tmp_path):
    rng = np.random.default_rng(4)
    (tmp_path / "deeper").mkdir()
    first, second = (rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(2))
    Image.fromarray(second).save(tmp_path / "deeper" / "b.png")
    Image.fromarray(first).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    grey, color = (ImagePatches.folder(tmp_path, crop=2, patch=1, size=6, color=c) for c in (False, True))
    assert grey.images.shape == (2, 6, 6) and np.array_equal(color.images, np.stack([first, second]))
    assert color.dim == 12


def test_unusable_pictures_are_said(tmp_path):
    with pytest.raises(InputError, match="is none"):
        ImagePatches.folder(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="no picture in"):
        ImagePatches.folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        ImagePatches.folder(tmp_path)
    with pytest.raises(InputError, match="multiple of the patch"):
        ImagePatches(pictures(), crop=5, patch=2)
    with pytest.raises(InputError, match="fit in the 7 x 5 pictures"):
        ImagePatches(pictures(), crop=6, patch=2)
    with pytest.raises(InputError, match="more than one value"):
        ImagePatches(np.ones((2, 4, 4)))
    with pytest.raises(InputError, match="shape"):
        ImagePatches(np.ones((4, 4)))


def test_too_many_crops_are_refused_before_they_are_listed():
    images = np.zeros((1, 2000, 2000), dtype=np.uint8)
    images[0, 0, 0] = 1
    with pytest.raises(InputError, match="exact nodes list every crop"):
        ImagePatches(images).nodes()


def test_descriptions_are_json_and_tell_distributions_apart():
    kinds = [*EVERY, EvenGrid(), Gaussian(2, 0.8), Uniform(-1.0, 2.5, 3), ImagePatches(1 - pictures(), crop=4)]
    texts = [json.dumps(covariates.describe(), sort_keys=True) for covariates in kinds]
    assert len(set(texts)) == len(texts)
    as_float = ImagePatches(pictures().astype(float), crop=4, patch=2)
    assert as_float.describe() == EVERY[-1].describe()


def test_impossible_distributions_are_said():
    with pytest.raises(InputError, match="low < high"):
        Uniform(1.0, 1.0)
    with pytest.raises(InputError, match="low < high"):
        EvenGrid(1.0, -math.inf)
    with pytest.raises(InputError, match="scale above 0"):
        Gaussian(2, 0.0)
    with pytest.raises(InputError, match="at least one dimension"):
        Gaussian(0)
