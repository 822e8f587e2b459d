"""Fits that end at a kink: the hull of gradients, and what a fit of relu units there is worth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from moe_prompt import kinks, newton, studies
from moe_prompt.kinks import kink_offsets, least_combination
from moe_prompt.newton import NewtonLeastSquares
from moe_prompt.normal_equations import Problem
from moe_prompt.trust_region import TrustRegion

TOLERANCE, N, REPLICATES = 0.02, 1000, 24


def fitted(name: str, family: str, tolerance: float):
    """Over-specified fits of one truth, from a few of the study's starts."""
    study = studies.load(name)
    population = study.truths[family]
    model = population.model.with_atoms(population.model.num_atoms + 1)
    rngs = [[np.random.default_rng((stream, k)) for k in range(REPLICATES)] for stream in range(2)]
    data = population.sample(N, rngs[0])
    starts = replace(study.starts, count=8).starts(model, None, rngs[1])
    estimator = NewtonLeastSquares(newton.LeastSquares(box=3.0), tolerance=tolerance)
    return population, Problem.of(model, data, 1), estimator.fit(model, data, starts)


@pytest.fixture(scope="module")
def relu():
    return fitted("over-specified-relu", "VAPT, relu, L = 1", TOLERANCE)


def test_shortest_vector_of_a_hull():
    """A segment, a square about zero, one off it, and random points against SciPy's SLSQP."""
    assert np.allclose(least_combination(np.array([[1.0, 2.0], [1.0, -1.0]])), [1, 0])
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert np.allclose(least_combination(square), 0, atol=1e-6)
    assert np.allclose(least_combination(square + np.array([3.0, 4.0])), [2, 3], atol=1e-5)
    rng = np.random.default_rng(0)
    for size in (1e-6, 1.0, 1e6):
        rows = size * (rng.standard_normal((6, 4)) + 1)
        sum_to_one = {"type": "eq", "fun": lambda a: a.sum() - 1}
        best = minimize(
            lambda a, rows=rows / size: (a @ rows) @ (a @ rows),
            np.full(6, 1 / 6),
            bounds=[(0, 1)] * 6,
            constraints=[sum_to_one],
            tol=1e-14,
        )
        assert np.allclose(least_combination(rows) / size, best.x @ rows / size, atol=1e-4)


def test_fits_of_relu_units_end_at_kinks_and_nothing_near_is_lower(relu):
    population, problem, fit = relu
    at_kink = [k for k, message in enumerate(fit.message) if message == "converged at a kink"]
    assert len(at_kink) >= 2 and bool(fit.converged[at_kink].all())
    assert bool((fit.offset[at_kink] <= TOLERANCE).all())
    most = fit.theta.shape[1] * TOLERANCE**2  # twice the gain of a quadratic that far from its minimum
    for k in at_kink:
        assert gain_without_derivatives(population, problem, fit, k) < most
    theta = fit.theta * 1.001  # the search does find descent where there is some
    moved = replace(fit, theta=theta, objective=problem.objective(theta, torch.arange(len(theta))))
    assert gain_without_derivatives(population, problem, moved, at_kink[0]) > most


def gain_without_derivatives(population, problem, fit, k: int) -> float:
    """What SciPy's Nelder-Mead finds from a simplex of a tenth of a standard error, in s^2."""
    index, p = torch.tensor([k]), fit.theta.shape[1]
    scale = population.noise * problem.gram(fit.theta[[k]], index)[0].diagonal()[:p].clamp(min=1e-12).rsqrt()

    def objective(step: np.ndarray) -> float:
        return float(problem.objective((fit.theta[[k]] + scale * torch.from_numpy(step)).clamp(-3, 3), index))

    simplex = np.vstack([np.zeros(p), 0.1 * np.eye(p)])
    options = {"initial_simplex": simplex, "maxfev": 3000, "adaptive": True, "xatol": 1e-9, "fatol": 1e-12}
    found = minimize(objective, np.zeros(p), method="Nelder-Mead", options=options)
    return (float(fit.objective[k]) - found.fun) / population.noise**2


def test_the_gradient_is_not_small_there(relu):
    """Without the hull those fits would not have converged: on their own side they are far from a minimum."""
    _, problem, fit = relu
    state = TrustRegion(problem, fit.theta, 3.0, TOLERANCE)
    state.judge()
    at_kink = torch.tensor([message == "converged at a kink" for message in fit.message])
    ends = (state.offset > TOLERANCE) | state.saddle
    assert bool(ends[at_kink].all())
    found = kink_offsets(state, at_kink.nonzero()[:, 0])
    assert torch.allclose(found, fit.offset[at_kink]) and bool((found < 0.9 * state.offset[at_kink]).any())


def test_smooth_experts_have_no_kinks():
    _, problem, fit = fitted("over-specified", "VAPT, tanh, L = 1", 1e-6)
    state = TrustRegion(problem, fit.theta, 3.0, TOLERANCE)
    state.judge()
    assert bool(kink_offsets(state, torch.arange(REPLICATES)).isinf().all())
    assert "converged at a kink" not in fit.message


def test_a_fit_with_nothing_free_is_at_no_kink():
    _, problem, fit = fitted("over-specified-relu", "VAPT, relu, L = 1", TOLERANCE)
    state = TrustRegion(problem, fit.theta, 3.0, TOLERANCE)
    state.free = lambda: torch.zeros_like(state.theta, dtype=torch.bool)
    assert bool(kinks.kink_offsets(state, torch.tensor([0])).isinf().all())
