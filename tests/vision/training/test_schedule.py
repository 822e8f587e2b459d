"""The schedule against the released one written out, and the epoch that it wastes."""

import math

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.training.recipe import WarmupCosine


def released(t: int, warmup: int, length: int) -> float:
    """Linear from 0, then half a period of the cosine."""
    if t < warmup:
        return t / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (t - warmup) / (length - warmup))


@pytest.mark.parametrize(("length", "warmup"), [(100, 10), (7, 3), (5, 0), (2, 1)])
def test_from_zero_is_the_released_schedule(length, warmup):
    ours = WarmupCosine(length, warmup, from_zero=True)
    assert [ours.factor(t) for t in range(length)] == pytest.approx(
        [released(t, warmup, length) for t in range(length)]
    )


@pytest.mark.parametrize(("length", "warmup"), [(100, 10), (7, 3), (5, 0), (3, 3)])
def test_no_epoch_is_wasted(length, warmup):
    """Rises to the peak where the released one has it, then falls, and is never 0."""
    rates = [WarmupCosine(length, warmup).factor(t) for t in range(length)]
    assert min(rates) > 0
    assert rates[:warmup] == pytest.approx([(t + 1) / (warmup + 1) for t in range(warmup)])
    assert rates[warmup:] == pytest.approx([released(t, warmup, length) for t in range(warmup, length)])


def test_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(InputError, match="warm-up"):
        WarmupCosine(3, 4)
