"""Starts: their law, their independence of what they must not know, one generator per replicate."""

import math

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.estimation.starts import Initializer, NearTruth, Random
from tests.builders.small_study import models, study

TRUTH = study.truths["vapt"].theta


def generators(count: int, seed: int = 0):
    return [np.random.default_rng((seed, k)) for k in range(count)]


@pytest.mark.parametrize("starts", [Random(count=3), NearTruth(count=3)])
def test_one_generator_per_replicate(starts):
    drawn = starts.starts(models["vapt"], TRUTH, generators(7))
    assert drawn.shape == (7, 3, 5) and drawn.dtype == torch.float64
    assert len(torch.unique(drawn[..., 0])) == 21
    for k in (0, 6):
        assert torch.equal(starts.starts(models["vapt"], TRUTH, generators(7)[k : k + 1])[0], drawn[k])


def test_fewer_random_starts_are_the_first_of_more():
    few, many = (Random(count=k).draw(models["vapt"], None, np.random.default_rng(1)) for k in (3, 11))
    assert torch.equal(few, many[:3])


def test_random_is_normal_and_blind():
    """20000 numbers: mean and mean square within 4 standard errors, 6e-5 each, and no trace of the truth."""
    rng = lambda: np.random.default_rng(2)  # noqa: E731
    drawn = Random(count=4000, scale=1.7).draw(models["vapt"], None, rng())
    assert torch.equal(drawn, Random(count=4000, scale=1.7).draw(models["vapt"], 100 + TRUTH, rng()))
    assert abs(float(drawn.mean())) < 4 * 1.7 / math.sqrt(20000)
    assert float(drawn.square().mean()) == pytest.approx(1.7**2, rel=4 * math.sqrt(2 / 20000))


def test_near_truth_is_uniform_on_a_sphere_that_does_not_shrink():
    """Mean direction of 4000: each coordinate has sd 1 / sqrt(5 * 4000); 4.5 of them in any of five, 4e-5."""
    drawn = NearTruth(radius=0.7, count=4000).draw(models["vapt"], TRUTH, np.random.default_rng(3)) - TRUTH
    assert torch.allclose(drawn.norm(dim=1), torch.tensor(0.7, dtype=torch.float64), rtol=1e-12)
    assert float(drawn.mean(0).abs().max()) < 4.5 * 0.7 / math.sqrt(5 * 4000)
    assert torch.allclose(drawn.square().mean(0), torch.tensor(0.49 / 5, dtype=torch.float64), rtol=0.1)


def test_near_truth_needs_a_truth():
    with pytest.raises(InputError, match="use Random"):
        NearTruth().starts(models["vapt"], None, generators(2))


def test_abstract():
    with pytest.raises(TypeError, match="draw"):
        Initializer()
