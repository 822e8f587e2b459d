"""Fits that end at a kink: the hull of gradients, and what a fit of relu units there is worth."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified import newton, trust_region
from moe_prompt.estimation.over_specified.kinks import Kink, least_combination
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.over_specified.trust_region import TrustRegion
from moe_prompt.models.atoms import AtomLayout
from moe_prompt.studies import loading as studies

TOLERANCE, N, REPLICATES = 0.02, 1000, 24
CREASE, SHIFT = 3.0, 1.0


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
    for k in (k for k, message in enumerate(fit.message) if message == "converged at a kink"):
        found = Kink(state, k).offset
        assert found == pytest.approx(float(fit.offset[k])) and found <= TOLERANCE < float(state.offset[k])


class Creased(Problem):
    """1/2 |A theta - y|^2 + CREASE |u' theta| + SHIFT for a batch of A, y and u, as the trust region asks for it."""

    model, observations = None, 9

    def __init__(self, count: int, size: int) -> None:
        rng = np.random.default_rng(0)
        a, y, u = (rng.standard_normal(shape) for shape in ((count, 9, size), (count, 9), (count, size)))
        self.__dict__.update(a=torch.from_numpy(a), targets=torch.from_numpy(y), u=torch.from_numpy(u))

    def gram(self, theta: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        residual = (self.a[index] @ theta[..., None])[..., 0] - self.targets[index]
        along = (self.u[index] * theta).sum(1, keepdim=True)
        both = torch.cat([self.a[index], residual[..., None]], 2)
        out, crease = both.mT @ both, CREASE * along.sign() * self.u[index]
        out[:, :-1, -1] += crease
        out[:, -1, :-1] += crease
        out[:, -1, -1] += 2 * (CREASE * along.abs()[:, 0] + SHIFT)
        return out

    def objective(self, theta: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return self.gram(theta, index)[:, -1, -1] / 2

    def square_norm(self) -> torch.Tensor:
        return self.targets.square().sum(1)

    def best(self, k: int) -> float:
        """By SciPy's SLSQP, with a variable of its own for |u' theta|."""
        a, y, u = (array[k].numpy() for array in (self.a, self.targets, self.u))
        sides = [{"type": "ineq", "fun": lambda v, side=side: v[-1] + side * u @ v[:-1]} for side in (1, -1)]
        cost = lambda v: 0.5 * np.sum((a @ v[:-1] - y) ** 2) + CREASE * v[-1]  # noqa: E731
        return minimize(cost, np.zeros(len(u) + 1), constraints=sides, tol=1e-14, options={"maxiter": 1000}).fun


def test_fits_leave_kinks_that_are_no_minima(monkeypatch):
    """Planted creases: from their valleys to the minimum of a convex function, which SciPy finds too."""
    count, size, tolerance = 200, 5, 1e-3
    none = torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64)
    straight = AtomLayout(SimpleNamespace(num_parameters=size), torch.arange(0), *none)
    monkeypatch.setattr(AtomLayout, "of", lambda model: straight)
    monkeypatch.setattr(
        trust_region, "second_order", lambda problem, theta, k: torch.zeros(len(k), size, size).double()
    )
    problem, estimator = Creased(count, size), NewtonLeastSquares(newton.LeastSquares(box=100.0))
    starts = torch.from_numpy(np.random.default_rng(1).standard_normal((count, size)))
    fits = {}
    for left in (True, False):
        if not left:
            monkeypatch.setattr(newton, "leave_kinks", lambda state: False)
        fits[left] = estimator.polish(problem, starts, tolerance, 200)
    best = torch.tensor([problem.best(k) for k in range(count)]) + SHIFT
    above = [
        (fits[left].objective - best) * (problem.observations - size) / (2 * size * best) for left in (True, False)
    ]
    assert bool(fits[True].converged.all()) and "converged at a kink" in fits[True].message
    assert float(above[0].max()) < tolerance**2
    assert int((above[1] > tolerance**2).sum()) > count / 10 and not bool(fits[False].converged.all())


def test_smooth_experts_have_no_kinks():
    _, problem, fit = fitted("over-specified", "VAPT, tanh, L = 1", 1e-6)
    state = TrustRegion(problem, fit.theta, 3.0, TOLERANCE)
    state.judge()
    assert {Kink(state, k).offset for k in range(REPLICATES)} == {float("inf")}
    assert "converged at a kink" not in fit.message


def test_a_fit_with_nothing_free_is_at_no_kink(relu):
    _, problem, fit = relu
    state = TrustRegion(problem, fit.theta, 3.0, TOLERANCE)
    state.free = lambda: torch.zeros_like(state.theta, dtype=torch.bool)
    assert Kink(state, 0).offset == float("inf")
