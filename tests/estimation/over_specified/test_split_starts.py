"""Starts by splitting: the law's quartic by brute force, and the minimum that many starts find."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.over_specified.split_starts import SplitLeastSquares, fewer_atoms, split_starts
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.theory.quartic_forms import nearest_square

DIM, NOISE, N = 3, 0.02, 701
NEWTON = NewtonLeastSquares(first=LeastSquares(box=3.0), keep=1)


def population():
    rng = np.random.default_rng(0)
    frozen = FrozenExperts.random(2, DIM, 2, rng)
    maps = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (2, DIM)))
    model = RegressionModel(frozen, ConstantPrompt(2, DIM), *maps)
    theta = torch.from_numpy(rng.uniform(-2, 2, model.num_parameters))
    theta[model.slices["b"]] /= 3
    return Population(model, theta, Uniform(-math.sqrt(3), math.sqrt(3), DIM), NOISE)


TRUTH = population()
MODEL = TRUTH.model.with_atoms(3)


def sample(replicates):
    return TRUTH.sample(N, [np.random.default_rng((5, k)) for k in range(replicates)])


def brute_force(data, replicates):
    """The least objective of polishes from 40 random splits of the truth's two atoms, by hand."""
    rng = np.random.default_rng(1)
    b, atoms = TRUTH.theta[:2], TRUTH.theta[2:].reshape(2, DIM)
    starts = []
    for k in range(40):
        j, share, away = k % 2, (0.5, 0.2, 0.8)[k % 3], 0.2 * torch.from_numpy(rng.standard_normal(DIM))
        parts = [atoms[j] + away * (1 - share), atoms[j] - away * share, atoms[1 - j]]
        weights = [b[j] + math.log(share), b[j] + math.log(1 - share), b[1 - j]]
        starts.append(torch.cat([torch.stack(weights), *parts]))
    every = torch.stack(starts)
    found = NEWTON.polish(Problem.of(MODEL, data, len(every)), every.repeat(replicates, 1), 1e-6, 300)
    return found.objective.unflatten(0, (replicates, -1)).amin(1)


def test_splits_that_do_not_show_stay_in_the_box_and_near():
    """Along the antisymmetric part of two linear units a split may be of any length, and the expansion sets none."""
    rng, box = np.random.default_rng(3), 3.0
    more = replace(MODEL, expert=FlatAdaptivePrompt(3, DIM, 2, "linear"))
    theta = torch.from_numpy(rng.uniform(-2, 2, more.with_atoms(2).num_parameters))
    theta[:2] /= 3
    truth = replace(TRUTH, model=more.with_atoms(2), theta=theta)
    data = truth.sample(N, [np.random.default_rng((6, k)) for k in range(4)])
    base = NEWTON.fit(truth.model, data, theta.expand(4, 1, -1))
    ends = [split_starts(truth.model, more, base.theta, data, N, 24, side) for side in (math.inf, box)]
    assert float(ends[0].abs().max()) > 2 * box and float(ends[1].abs().max()) <= box
    at_start = Problem.of(more, data, 4).objective(ends[1].flatten(0, 1), torch.arange(16)).unflatten(0, (4, 4))
    assert bool((at_start <= 2 * base.objective[:, None]).all())


def test_the_best_split_is_found_from_three_random_starts():
    """Forty starts near the truth end nowhere lower; three random starts alone do worse in some sample."""
    data, starts = sample(12), Random(3).starts(MODEL, None, [np.random.default_rng((2, k)) for k in range(12)])
    best = brute_force(data, 12)
    found, random = SplitLeastSquares(NEWTON).fit(MODEL, data, starts), NEWTON.fit(MODEL, data, starts)
    assert bool(found.converged.all())
    assert bool(((found.objective - best) / NOISE**2 < 0.01).all())
    assert bool(((random.objective - best) / NOISE**2 > 0.1).any())


def test_starts_are_nearly_minima():
    """They lie below the smaller fit by most of what their polish gains, and keep total masses."""
    data = sample(5)
    smaller = TRUTH.model
    base = NEWTON.fit(smaller, data, TRUTH.theta.expand(5, 1, -1))
    starts = split_starts(smaller, MODEL, base.theta, data, rows=N, quartic_starts=24)
    assert starts.shape == (5, 4, MODEL.num_parameters)
    problem = Problem.of(MODEL, data, 4)
    at_start = problem.objective(starts.flatten(0, 1), torch.arange(20)).unflatten(0, (5, 4))
    polished = NEWTON.polish(problem, starts.flatten(0, 1), 1e-6, 300).objective.unflatten(0, (5, 4))
    gained = (base.objective[:, None] - at_start) / (base.objective[:, None] - polished).clamp(min=1e-9)
    assert float(gained.amax(1).min()) > 0.5
    masses = starts[..., MODEL.slices["b"]].exp().sum(-1)
    near = base.theta[:, smaller.slices["b"]].exp().sum(-1)
    torch.testing.assert_close(masses, near[:, None].expand(5, 4), rtol=0.05, atol=0)


def test_one_atom_less_is_the_last_one():
    theta = torch.arange(float(MODEL.num_parameters), dtype=torch.float64)
    b, atoms = theta[:3], theta[3:].reshape(3, DIM)
    assert torch.equal(fewer_atoms(MODEL, TRUTH.model, theta), torch.cat([b[:2], atoms[:2].flatten()]))


@pytest.mark.parametrize("seed", range(3))
def test_nearest_square_against_a_fine_grid(seed):
    rng = np.random.default_rng(seed)
    form = torch.from_numpy(rng.standard_normal((2, 2, 5)))
    form, target = form + form.transpose(0, 1), torch.from_numpy(3 * rng.standard_normal(5))
    a = nearest_square(form, target, 20, torch.Generator().manual_seed(0))
    grid = torch.cartesian_prod(*(torch.linspace(-4, 4, 401, dtype=torch.float64),) * 2)
    values = (target - torch.einsum("nk,nl,klm->nm", grid, grid, form)).square().sum(1)
    found = (target - torch.einsum("k,l,klm->m", a, a, form)).square().sum()
    assert float(found) <= float(values.min()) + 1e-9


def test_splits_that_do_not_show_leave_the_random_starts():
    """A relu unit that bends nowhere on the data has no second derivative there: starts are finite, fits not worse."""
    model = RegressionModel(
        TRUTH.model.frozen, FlatAdaptivePrompt(1, DIM, 1, "relu"), TRUTH.model.key_map, TRUTH.model.value_map
    )
    theta = torch.tensor([0.1, 0.7, -0.4, 0.5, 0.3, -0.2, 0.6], dtype=torch.float64)
    data = Population(model, theta, Uniform(0.5, 1.5, DIM), NOISE).sample(211, [np.random.default_rng(3)])
    more = model.with_atoms(2)
    starts = split_starts(model, more, theta[None], data, rows=101, quartic_starts=8)
    assert bool(starts.isfinite().all()) and starts.shape == (1, 2, more.num_parameters)
