"""Slopes of planted exponents and their standard errors; what a study's rows depend on; what a study refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import NearTruth, Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.studies.analysis.rate_fit import fit_rate
from tests.builders.small_study import models, study

SIZES = (50, 130, 410, 1100, 3700)


def planted(exponent: float, replicates: int, rng: np.random.Generator, sigma: float = 0.5) -> dict[int, np.ndarray]:
    """3 n^exponent times lognormal noise: mean and median both have the exponent."""
    return {n: 3 * n**exponent * np.exp(sigma * rng.standard_normal(replicates)) for n in SIZES}


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("exponent", [-0.5, -1.0, 0.25])
def test_planted_exponent_is_found(exponent, statistic):
    """Within 4.5 standard errors: 7e-6 for a false alarm were it normal, 1e-4 with an error estimated from 101."""
    fit = fit_rate(planted(exponent, 101, np.random.default_rng(1)), (50, 3700), statistic)
    assert abs(fit.slope - exponent) < 4.5 * fit.stderr
    assert fit.stderr < 0.03  # about 0.5 / sqrt(101) / sqrt(sum of squared centred log n)


def test_standard_error_is_that_of_the_delta_method():
    """Var slope = sum_n c_n^2 Var(mean_n) / mean_n^2; 1000 resamples leave 2.2 % of scatter, so 10 % is 4.5 of them."""
    errors = planted(-0.5, 499, np.random.default_rng(2), sigma=0.3)
    log_n = [math.log(n) for n in SIZES]
    middle = sum(log_n) / len(log_n)
    spread = sum((x - middle) ** 2 for x in log_n)
    variance = 0.0
    for x, e in zip(log_n, errors.values(), strict=True):
        variance += ((x - middle) / spread) ** 2 * np.var(e, ddof=1) / len(e) / np.mean(e) ** 2
    assert fit_rate(errors, (50, 3700)).stderr == pytest.approx(math.sqrt(variance), rel=0.10)


def test_intervals_cover():
    """95 % intervals of 400 studies of 40 replicates: the count has sd 4.4 at 0.95; 0.91 and 0.985 are 3.2 sd and more
    away, false alarm 1e-3."""
    rng, hits = np.random.default_rng(3), 0
    for k in range(400):
        fit = fit_rate(planted(-0.5, 40, rng, sigma=0.3), (50, 3700), resamples=200, seed=k)
        hits += abs(fit.slope + 0.5) < 1.96 * fit.stderr
    assert 0.91 * 400 <= hits <= 0.985 * 400


def test_few_replicates_are_not_taken_for_precise_ones():
    """A resample of two values has half their variance: the mean squared error of 400 slopes is that of the errors
    told, within 25 % (their ratio scatters by about 6 %)."""
    rng = np.random.default_rng(4)
    fits = [fit_rate(planted(-0.5, 2, rng, sigma=0.1), (50, 3700), resamples=200, seed=k) for k in range(400)]
    told, true = (math.fsum(x) / 400 for x in ([f.stderr**2 for f in fits], [(f.slope + 0.5) ** 2 for f in fits]))
    assert told / true == pytest.approx(1, abs=0.25)


def test_only_the_window_counts():
    errors = {n: np.full(3, 2 * n**-0.5 if 100 <= n <= 1000 else 1e6) for n in (10, 99, 100, 300, 1000, 1001)}
    fit = fit_rate(errors, (100, 1000))
    assert fit.slope == pytest.approx(-0.5, abs=1e-12) and fit.stderr == pytest.approx(0, abs=1e-12)
    assert fit.line(np.array([7.0, 49.0])) == pytest.approx([2 / math.sqrt(7), 2 / 7], rel=1e-12)


def test_median_is_not_moved_by_an_outlier_and_the_mean_is():
    errors = {n: np.array([1.0, 1.0, 1.0, 1.0, 1.0]) * n**-0.5 for n in SIZES}
    errors[3700][2] = 1e3
    assert fit_rate(errors, (50, 3700), "median").slope == pytest.approx(-0.5, abs=1e-12)
    assert fit_rate(errors, (50, 3700)).slope > 0


def test_failed_fits_are_left_out_and_too_few_sizes_give_none():
    errors = {n: np.array([np.nan, 1.0, np.inf, 1.0]) * n**-0.5 for n in SIZES}
    assert fit_rate(errors, (50, 3700)).slope == pytest.approx(-0.5, abs=1e-12)
    for bad in ([], [np.nan, np.nan], [0.0, 0.0]):
        assert fit_rate({50: np.ones(3), 130: np.array(bad)}, (50, 3700)) is None
    assert fit_rate({50: np.ones(3), 130: np.ones(3)}, (100, 3700)) is None


def test_one_replicate_has_a_slope_and_no_error():
    fit = fit_rate({50: np.array([2.0]), 130: np.array([1.0])}, (50, 130))
    assert fit.slope < 0 and math.isnan(fit.stderr)


# ----------------------------------------------------------------------------------------------- the key


def with_truth(**changes):
    """The study with its VPT truth changed."""
    return replace(study, truths=study.truths | {"vpt": replace(study.truths["vpt"], **changes)})


CHANGES = {
    "seed": lambda: replace(study, seed=1),
    "noise": lambda: with_truth(noise=0.050000001),
    "theta": lambda: with_truth(theta=study.truths["vpt"].theta + torch.tensor([0.0, 1e-9, 0.0]).double()),
    "covariates": lambda: with_truth(covariates=Uniform(-2.0, 2.0000001, 2)),
    "estimator": lambda: replace(study, estimator=LeastSquares(box=4.0, tolerance=1e-7)),
    "starts": lambda: replace(study, starts=Random(count=6)),
    "kind of starts": lambda: replace(study, starts=NearTruth()),
    "nodes": lambda: replace(study, nodes=22**2),
    "another estimator": lambda: replace(study, contenders=study.contenders | {"two": models["vpt"].with_atoms(2)}),
    "frozen": lambda: replace(study, contenders={"other": replace(models["vpt"], key_map=2 * models["vpt"].key_map)}),
    "bias": lambda: replace(study, contenders={"other": replace(models["vpt"], gating_bias=False)}),
}
SAME = {
    "sizes": lambda: replace(study, sizes=(23, 61, 157, 1009)),
    "replicates": lambda: replace(study, replicates=7),
    "window": lambda: replace(study, window=(61, 157)),
    "words": lambda: replace(study, name="other", claim="another"),
    "projection's search": lambda: replace(study, projection_starts=1),
    "quick": study.quick,
    "the same again": lambda: with_truth(theta=study.truths["vpt"].theta.clone()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_key_changes_with_what_rows_depend_on(change):
    assert CHANGES[change]().key != study.key


def test_changed_keys_are_all_different():
    assert len({make().key for make in CHANGES.values()}) == len(CHANGES)


@pytest.mark.parametrize("same", SAME)
def test_key_stays_with_what_only_selects_rows(same):
    assert SAME[same]().key == study.key


def test_quick_is_part_of_the_whole():
    quick = study.quick()
    assert set(quick.sizes) < set(study.sizes) and quick.replicates < study.replicates
    assert replace(study, replicates=2).quick().replicates == 2


def test_generators_differ_by_every_coordinate_and_repeat():
    places = [(t, n, r, s) for t in ("vpt", "vapt") for n in (23, 61) for r in (0, 1) for s in (0, 1)]
    first = {place: study.rng(*place).integers(2**62) for place in places}
    assert len(set(first.values())) == len(places)
    assert all(study.rng(*place).integers(2**62) == value for place, value in first.items())
    assert all(replace(study, seed=1).rng(*place).integers(2**62) != value for place, value in first.items())


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "change, words",
    [
        ({"window": (61, 100)}, "window"),
        ({"window": (157, 23)}, "window"),
        ({"sizes": (1, 61, 157)}, "estimator vpt has 3 parameters and needs n >= 3; got n = 1"),
        ({"seed": -1}, "seed"),
        ({"replicates": 0}, "replicate"),
        ({"contenders": {"vpt": models["vapt"]}}, "those named vpt differ"),
        ({"contenders": {"vpt": models["vpt"].with_atoms(2)}}, "those named vpt differ"),
    ],
)
def test_studies_that_cannot_be(change, words):
    with pytest.raises(InputError, match=words):
        replace(study, **change)


def test_matched_by_model():
    """Whatever truth and contender are called."""
    assert study.matched("vpt", "vpt") and not study.matched("vpt", "vapt")
    renamed = replace(study, contenders={"ours": models["vpt"], "wider": models["vpt"].with_atoms(2)})
    assert renamed.matched("vpt", "ours") and not renamed.matched("vpt", "wider")
    assert renamed.quantities("vpt", "ours") == study.quantities("vpt", "vpt")


def test_quick_without_sizes_of_its_own_still_has_a_slope():
    """Every second size but the last, unless fewer than two of them are in the window."""
    three = replace(study, quick_sizes=(), sizes=(23, 61, 157), window=(61, 157))
    assert three.quick().sizes == (23, 61, 157)
    assert replace(three, sizes=(23, 61, 89, 157)).quick().sizes == (23, 61, 89)
    assert replace(three, sizes=(23, 61, 89, 157, 301), window=(23, 157)).quick().sizes == (23, 89)
