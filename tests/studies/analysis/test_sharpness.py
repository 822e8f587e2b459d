"""Predicted standard errors of slopes against the bootstrap's and against slopes of samples drawn again and again."""

import math

import numpy as np
import pytest

from moe_prompt.studies.analysis.rate_fit import fit_rate
from moe_prompt.studies.analysis.sharpness import scatter, slope_stderr

SIZES = (101, 211, 499, 1009, 2003)


def sample(seed, replicates, spread):
    """2 n^-0.5 times lognormal scatter, of another spread at every size."""
    rng = np.random.default_rng(seed)
    return {n: 2 * n**-0.5 * np.exp(s * rng.standard_normal(replicates)) for n, s in zip(SIZES, spread, strict=True)}


def test_formula_against_a_plain_loop():
    spread = {101: 0.3, 211: 0.7, 499: 0.2, 1009: 1.1, 2003: 0.5}
    logs = [math.log(n) for n in SIZES]
    mean = sum(logs) / 5
    total = sum((x - mean) ** 2 for x in logs)
    variance = sum(((x - mean) / total) ** 2 * spread[n] ** 2 / 13 for x, n in zip(logs, SIZES, strict=True))
    assert slope_stderr(SIZES, spread, 13) == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_sizes_without_a_spread_take_the_others():
    assert slope_stderr(SIZES, {101: 1.0, 211: 7.0}, 3) == pytest.approx(
        slope_stderr(SIZES, {101: 1.0, 211: 7.0} | dict.fromkeys(SIZES[2:], 5.0), 3), rel=1e-12
    )


@pytest.mark.parametrize("statistic, off", [("mean", 0.1), ("median", 0.35)])
def test_prediction_is_the_bootstrap_standard_error(statistic, off):
    """500 replicates: the formula's scatter errs by 3 % (mean); the bootstrap of a median by 10 to 20 %."""
    errors = sample(0, 500, (0.3, 0.3, 0.5, 0.4, 0.2))
    predicted = slope_stderr(SIZES, scatter(errors, statistic), 500)
    assert predicted == pytest.approx(fit_rate(errors, (101, 2003), statistic).stderr, rel=off)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_prediction_is_how_much_slopes_vary(statistic):
    """600 studies of 41 replicates: their slopes' standard deviation has a relative standard error of 3 %.

    The truth is known to the formula by another sample of 20,000; off by 12 % is four of these standard errors, by
    chance once in 1e4.
    """
    spread = (0.3, 0.3, 0.5, 0.4, 0.2)
    slopes = [fit_rate(sample(seed, 41, spread), (101, 2003), statistic, resamples=2).slope for seed in range(600)]
    predicted = slope_stderr(SIZES, scatter(sample(10**6, 20_000, spread), statistic), 41)
    assert predicted == pytest.approx(np.std(slopes, ddof=1), rel=0.12)


def test_scatter_is_of_what_varies():
    found = scatter({7: np.array([2.0, 2.0, 2.0]), 11: np.array([1.0]), 13: np.array([0.0, 0.0])}, "mean")
    assert found == {7: 0.0}
    assert scatter({7: np.array([2.0, 2.0, 2.0]), 11: np.array([0.0, 1.0])}, "median") == {7: 0.0}
