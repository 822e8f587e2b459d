"""Least squares under a gate that chooses: against loops over observations, SciPy's quadratic programs, and grids."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from moe_prompt.attention.gates import SoftmaxGate, TopKGate
from moe_prompt.attention.prompts import FlatAdaptivePrompt
from moe_prompt.errors import InputError
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.estimation.top_one.least_squares import TopOneLeastSquares
from moe_prompt.estimation.top_one.local_quadratic import _least_distance, _ray
from moe_prompt.models.sampling import Dataset
from moe_prompt.studies.loading import load

TRUTH = load("gates-top-k").truths["top-1"]
REPLICATES, N = 11, 503


def rngs(stream: int) -> list[np.random.Generator]:
    return [np.random.default_rng((stream, k)) for k in range(REPLICATES)]


@pytest.fixture(scope="module")
def data():
    return TRUTH.sample(N, rngs(0))


@pytest.fixture(scope="module")
def starts():
    return Random(16).starts(TRUTH.model, None, rngs(1))


@pytest.fixture(scope="module")
def fit(data, starts):
    return TopOneLeastSquares().fit(TRUTH.model, data, starts)


def objective(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """1/2 sum |y - f|^2, observation by observation: two frozen experts and the one prompt with the larger score."""
    frozen, model, total = TRUTH.model.frozen, TRUTH.model, 0.0
    a, constant, eta = (part.numpy() for part in (frozen.quadratic, frozen.constant, frozen.values))
    key, value = model.key_map.numpy(), model.value_map.numpy()
    prompts = [(theta[j], theta[2 + 3 * j : 5 + 3 * j]) for j in range(2)]
    for xi, yi in zip(x, y, strict=True):
        scores = [(key @ p) @ xi + b for b, p in prompts]
        chosen = 0 if scores[0] > scores[1] else 1
        weights = [math.exp(xi @ a[i] @ xi + constant[i]) for i in range(2)] + [math.exp(scores[chosen])]
        values = [eta[0] @ xi, eta[1] @ xi, value @ prompts[chosen][1]]
        f = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        total += 0.5 * float(((yi - f) ** 2).sum())
    return total


def test_the_objective_is_that_of_the_gates_own_choice(data, fit):
    for k in (0, 7):
        theta, x, y = fit.theta[k].numpy(), data.x[k].numpy(), data.y[k].numpy()
        assert float(fit.objective[k]) == pytest.approx(objective(theta, x, y), rel=1e-12)


def test_no_observation_is_chosen_by_rounding(data, fit):
    b, blocks = TRUTH.model.unflatten(fit.theta)
    keys = blocks["p"] @ TRUTH.model.key_map.mT
    scores = (data.x @ keys.mT) + b[:, None]
    assert float((scores[..., 0] - scores[..., 1]).abs().min()) > 1e-11


def test_fits_converge_below_the_truth(data, fit):
    """Standard normal starts; what does not know of the jumps stays at one (0 to 5 % converged)."""
    at_truth = 0.5 * (data.y - TRUTH.predict(data.x)).square().sum((1, 2))
    assert bool(fit.converged.all()) and set(fit.message) == {"converged"} and float(fit.offset.max()) <= 1e-4
    assert bool((fit.objective < at_truth).all()) and not bool(fit.at_boundary.any())


def test_what_follows_derivatives_alone_does_not_arrive(data, starts, fit):
    plain = LeastSquares(box=3.0).fit(TRUTH.model, data, starts)
    assert int(plain.converged.sum()) <= REPLICATES // 2
    assert bool((fit.objective <= plain.objective * (1 + 1e-6)).all())


def test_nothing_near_is_lower(data, fit):
    """2000 normal steps of lengths over five decades from a fit, none of which lowers the objective."""
    rng = np.random.default_rng(2)
    sizes = 10.0 ** rng.uniform(-6, -1, (2000, 1))
    near = fit.theta[3] + torch.from_numpy(sizes * rng.standard_normal((2000, len(TRUTH.theta))))
    residual = TRUTH.model.mean(near, data.x[3]) - data.y[3]
    assert float((0.5 * residual.square().sum((1, 2))).min()) >= float(fit.objective[3]) * (1 - 1e-9)


def test_the_prompts_order_in_the_starts_does_not_matter(data, starts, fit):
    turned = starts[..., [1, 0, 5, 6, 7, 2, 3, 4]]
    again = TopOneLeastSquares().fit(TRUTH.model, data, turned)
    assert torch.allclose(again.objective, fit.objective, rtol=2e-3)


def test_the_box_is_kept(data, starts):
    tight = TopOneLeastSquares(box=1.5).fit(TRUTH.model, data, starts)
    assert float(tight.theta.abs().max()) <= 1.5 * (1 + 1e-9) and bool(tight.at_boundary.any())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gate": TopKGate(2)}, "K = 1 and two prompts or more"),
        ({"gate": SoftmaxGate()}, "K = 1 and two prompts or more"),
        ({"expert": FlatAdaptivePrompt(2, 3, 1, "tanh")}, "scores linear in the parameters"),
        ({"gating_bias": False}, "gating biases"),
    ],
)
def test_what_it_is_not_for_is_refused(data, change, words):
    model = replace(TRUTH.model, **change)
    with pytest.raises(InputError, match=words):
        TopOneLeastSquares().fit(model, data, torch.zeros(REPLICATES, 1, model.num_parameters).double())


def test_weights_are_refused(data, starts):
    weighted = Dataset(data.x, data.y, torch.ones(N).double())
    with pytest.raises(InputError, match="without weights"):
        TopOneLeastSquares().fit(TRUTH.model, weighted, starts)


# ------------------------------------------------------------------------------------------- its small problems


@pytest.mark.parametrize("seed", range(5))
def test_least_distance_is_scipys_quadratic_program(seed):
    rng = np.random.default_rng(seed)
    root, g, a = rng.standard_normal((7, 5)), rng.standard_normal(5), rng.standard_normal((11, 5))
    h, c = root.T @ root, a @ rng.standard_normal(5) - 0.1
    found = _least_distance(*map(torch.from_numpy, (h, g, a, c)))
    asked = {"type": "ineq", "fun": lambda v: a @ v - c, "jac": lambda v: a}
    best = minimize(
        lambda v: v @ h @ v / 2 + g @ v, np.zeros(5), jac=lambda v: h @ v + g, method="SLSQP", constraints=asked,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert best.status in (0, 8)  # 8: no descent is left at this tolerance
    assert found.numpy() == pytest.approx(best.x, abs=1e-5)
    assert float((torch.from_numpy(a) @ found - torch.from_numpy(c)).min()) > -1e-9


def test_least_distance_says_when_nothing_is_allowed():
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    assert _least_distance(torch.eye(2).double(), torch.zeros(2).double(), a, torch.ones(2).double()) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_ray_finds_what_a_fine_grid_finds(seed):
    rng = np.random.default_rng(seed)
    margin, pace, price = np.abs(rng.standard_normal(13)), rng.standard_normal((13, 3)), rng.standard_normal(13)
    slope, reach = rng.standard_normal(3), 2.0
    value, t, line = _ray(*map(torch.from_numpy, (margin, pace, price, slope)), reach)
    grid = np.linspace(1e-6, reach, 20_001)
    values = [[s * u + u * u / 2 + price[margin + u * pace[:, k] < 0].sum() for u in grid] for k, s in enumerate(slope)]
    assert value == pytest.approx(np.min(values), abs=2e-3)
    paid = price[margin + t * pace[:, line] < 0].sum()
    assert value == pytest.approx(slope[line] * t + t * t / 2 + paid, abs=1e-12)
