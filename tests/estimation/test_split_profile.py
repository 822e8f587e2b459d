"""Profiles over the size of a split, against an unstructured minimiser with a penalty and the law of their rise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from moe_prompt.errors import InputError
from moe_prompt.estimation.split_profile import split_profile
from moe_prompt.models.sampling import Dataset
from moe_prompt.studies.named.over_specified_settings import truth
from moe_prompt.theory.families import FAMILIES as TABLE
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import sigma_2

NOISE, N = 0.02, 1009


def profile(family: str, n: int, sizes, seed: int = 0, **options):
    population = truth(TABLE[family], 1, NOISE)
    sample = population.sample(n, [np.random.default_rng((n, seed))])
    nodes = population.covariates.nodes(512)
    return (
        population,
        sample,
        split_profile(LocalGeometry(population.model, population.theta, nodes), sample, sizes, NOISE, **options),
    )


def size_of(model, theta: torch.Tensor) -> float:
    """The size of a split of two atoms about their barycentre, by its definition."""
    measure = model.measure(theta)
    weights = measure.log_weights.exp()
    atoms = torch.cat([block.flatten(1) for block in measure.atoms.values()], 1)
    centre = (weights[:, None] * atoms).sum(0) / weights.sum()
    return float((weights * (atoms - centre).square().sum(1)).sum() / weights.sum()) ** 0.5


def test_measures_are_split_by_what_they_say_and_halves_keep_a_quarter():
    _, sample, found = profile("VPT, B injective", N, (0.4, 0.05, 0.15))
    assert found.t.tolist() == pytest.approx([0.05, 0.15, 0.4])
    for t, theta in zip(found.t.tolist(), found.theta, strict=True):
        assert size_of(found.model, theta) == pytest.approx(t, rel=1e-9)
        shares = found.model.measure(theta).log_weights.softmax(0)
        assert float(shares.min()) >= 0.25 - 1e-9
    squares = [float((found.model.mean(th, sample.x[0]) - sample.y[0]).square().sum()) / 2 for th in found.theta]
    rises = np.diff(squares) / NOISE**2
    assert np.diff(found.rise.numpy()) == pytest.approx(rises, abs=1e-6)
    assert float(found.rise.min()) >= 0


def test_the_rise_is_that_of_a_penalised_minimiser():
    """SciPy's least squares over all parameters, t and shares by a stiff penalty, from 4 starts near the truth."""
    population, sample, found = profile("VPT, B injective", 211, (0.1, 0.25))
    model, x, y = found.model, sample.x[0], sample.y[0]
    rng, ends = np.random.default_rng(1), []
    for t in (0.1, 0.25):

        def residual(v, t=t):
            theta = torch.from_numpy(v)
            share = float(model.measure(theta).log_weights.softmax(0).min())
            held = [1e4 * (size_of(model, theta) - t), 1e3 * max(0.0, 0.25 - share)]
            return np.append((model.mean(theta, x) - y).numpy().ravel() / NOISE, held)

        values = []
        for _ in range(4):
            a = rng.standard_normal(3)
            a *= t / np.linalg.norm(a)
            b, p = population.theta[0] - np.log(2), population.theta[1:].numpy()
            values.append(least_squares(residual, np.concatenate([[b, b], p + a, p - a]), x_scale="jac").cost)
        ends.append(min(values))
    assert float(found.rise[1] - found.rise[0]) == pytest.approx(ends[1] - ends[0], abs=0.02)


@pytest.mark.parametrize("n", [2003, 50_021])
def test_an_identifiable_family_rises_as_predicted(n):
    """At 0.3, where the noise's own part, a few s^2 and its product with the rise, is at most 4 sqrt(2 rise) + 10."""
    population, _, found = profile("VPT, B injective", n, (0.1, 0.2, 0.3), starts=2)
    mass = float(population.theta[0].exp())
    index = sigma_2(LocalGeometry(population.model, population.theta, population.covariates.nodes(512)), 0).sigma_2
    told = n * (index * mass * found.t.numpy() ** 2) ** 2 / (2 * NOISE**2)
    assert np.all(np.abs(found.rise.numpy() - told) < 4 * np.sqrt(2 * told) + 10 + 0.12 * told)
    assert told[-1] > 60


@pytest.mark.parametrize("family", ["prefix, non-shared", "linear gate + linear expert"])
def test_a_family_that_is_not_identifiable_does_not_rise(family):
    """Half a chi-square of at most 7 degrees of freedom is below 13 with probability 1 - 5e-4."""
    *_, found = profile(family, 5003, (0.1, 0.4, 1.0), starts=2)
    assert float(found.rise.max()) < 13 and float(found.rise[-1] - found.rise[1]) < 2


def test_what_is_not_asked_for_is_refused():
    population, sample, _ = profile("VPT, B injective", 211, (0.1,))
    nodes = population.covariates.nodes(64)
    ask = lambda data, sizes, noise: split_profile(  # noqa: E731
        LocalGeometry(population.model, population.theta, nodes), data, sizes, noise
    )
    twice = Dataset(sample.x.expand(2, -1, -1), sample.y.expand(2, -1, -1))
    for data, sizes, noise, words in (
        (twice, (0.1,), NOISE, "one sample"),
        (sample, (), NOISE, "sizes t > 0"),
        (sample, (0.0, 0.1), NOISE, "sizes t > 0"),
        (sample, (0.1,), 0.0, "units of the noise"),
        (replace(sample, weights=torch.ones(211).double()), (0.1,), NOISE, "without weights"),
    ):
        with pytest.raises(InputError, match=words):
            ask(data, sizes, noise)
