"""Information, rank and null directions against double loops, finite differences, fits and known symmetries."""

import math

import numpy as np
import pytest
import torch

from moe_prompt.attention.prompts import ConstantPrompt
from moe_prompt.errors import InputError
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.models.atoms import parameter_names
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.theory.families import EXPERTS, FAMILIES, Family, select
from moe_prompt.theory.identifiability import cramer_rao, token_jacobian, token_rank, token_vector
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.rank import Direction, triangular
from moe_prompt.theory.report import _declared
from tests.builders.truths import described, truth_parts

DIM, OUTPUTS, ATOMS, FROZEN, NODES = 3, 2, 5, 7, 11

GAUGES = {
    "VAPT, relu": 2,
    "VAPT, linear, r = 1": 1,
    "VAPT, linear, r = 2": 4,
    "reparameterised, maps free, L' <= d": 24,
}


def loops(model: RegressionModel, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """f_G(x) of a VPT model, expert by expert."""
    b, p = theta[:ATOMS], theta[ATOMS:].reshape(ATOMS, DIM)
    frozen, key_map, value_map = model.frozen, model.key_map.numpy(), model.value_map.numpy()
    top, bottom = np.zeros(OUTPUTS), 0.0
    for quadratic, constant, eta in zip(frozen.quadratic, frozen.constant, frozen.values, strict=True):
        weight = math.exp(x @ quadratic.numpy() @ x + float(constant))
        top, bottom = top + weight * (eta.numpy() @ x), bottom + weight
    for j in range(ATOMS):
        weight = math.exp((key_map @ p[j]) @ x + b[j])
        top, bottom = top + weight * (value_map @ p[j]), bottom + weight
    return top / bottom


def vpt_model(seed: int = 0) -> tuple[RegressionModel, torch.Tensor]:
    rng = np.random.default_rng(seed)
    key_map, value_map = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
    frozen = FrozenExperts.random(FROZEN, DIM, OUTPUTS, rng)
    model = RegressionModel(frozen, ConstantPrompt(ATOMS, DIM), key_map, value_map)
    return model, torch.from_numpy(0.7 * rng.standard_normal(model.num_parameters))


def test_information_is_the_weighted_sum_of_gradient_products():
    model, theta = vpt_model()
    rng = np.random.default_rng(1)
    points, weights = rng.uniform(-1, 1, (NODES, DIM)), rng.dirichlet(np.ones(NODES))
    p, h = model.num_parameters, 1e-5
    expected = np.zeros((p, p))
    for x, weight in zip(points, weights, strict=True):
        steps = h * np.eye(p)
        gradients = np.array([loops(model, theta.numpy() + e, x) - loops(model, theta.numpy() - e, x) for e in steps])
        gradients /= 2 * h
        for output in range(OUTPUTS):
            for k in range(p):
                for other in range(p):
                    expected[k, other] += weight * gradients[k, output] * gradients[other, output]
    result = LocalGeometry(model, theta, (torch.from_numpy(points), torch.from_numpy(weights))).information
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-7, atol=1e-10)


def test_triangular_factor_of_blocks_of_any_length():
    rng = np.random.default_rng(2)
    blocks = [rng.standard_normal((rows, OUTPUTS, 5)) for rows in (1, 13, 3)]
    factor = triangular([torch.from_numpy(block) for block in blocks])
    expected = sum(np.einsum("nok,nol->kl", block, block) for block in blocks)
    np.testing.assert_allclose((factor.mT @ factor).numpy(), expected, rtol=1e-12)


def test_cramer_rao_is_the_inverse_or_the_pseudo_inverse():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((19, 7)) * np.logspace(-3, 3, 7)
    full = cramer_rao(torch.from_numpy(rows.T @ rows), noise=0.5, n=100)
    np.testing.assert_allclose(full.numpy(), 0.25 / 100 * np.linalg.inv(rows.T @ rows), rtol=1e-6)
    rows = rng.standard_normal((19, 5)) @ rng.standard_normal((5, 7))
    deficient = cramer_rao(torch.from_numpy(rows.T @ rows), noise=0.5, n=100)
    expected = 0.25 / 100 * np.linalg.pinv(rows.T @ rows, rcond=1e-10)
    np.testing.assert_allclose(deficient.numpy(), expected, rtol=1e-6, atol=1e-12)


def test_least_squares_reaches_the_bound():
    """Mean square error over the bound, 300 fits: chance moves it by 5 sd with probability below 1e-6."""
    model, theta, covariates = truth_parts(Family("small", EXPERTS["vpt"].expert, dim=2, frozen=2, seed=1).build())
    population, n, replicates = Population(model, theta, covariates, noise=0.1), 2000, 300
    rngs = [np.random.default_rng([4, k]) for k in range(replicates)]
    fit = LeastSquares().fit(model, population.sample(n, rngs), theta.expand(replicates, 1, -1))
    assert bool(fit.converged.all())
    bound = cramer_rao(LocalGeometry(model, theta, covariates).information, 0.1, n)
    # n (theta_hat - theta)^T I (theta_hat - theta) / (s^2 p) has mean 1 and variance 2 / p
    p = len(theta)
    ratio = torch.einsum("np,pq,nq->n", fit.theta - theta, torch.linalg.inv(bound), fit.theta - theta) / p
    assert abs(float(ratio.mean()) - 1) < 5 * math.sqrt(2 / (p * replicates))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_what_moves_no_token_is_the_declared_symmetry_and_f_sees_the_rest(name):
    model, theta, covariates = truth_parts(FAMILIES[name].build())
    symmetry = _declared(model)
    ranks, tokens = LocalGeometry(model, theta, covariates).rank, token_rank(model, theta, covariates.nodes())
    nullity = len(theta) - tokens.rank
    assert nullity == GAUGES.get(name, 0)
    assert symmetry is None or nullity == symmetry.dimension(model.measure(theta))
    assert ranks.rank == tokens.rank
    kept, dropped = ranks.gap
    assert kept > 1e-4 and dropped < 1e-13
    points, h = covariates.nodes(256)[0], 1e-5
    moved = [
        (model.mean(theta + h * v, points) - model.mean(theta - h * v, points)).abs().max() / h
        for v in (direction.vector for direction in ranks.null_directions)
    ]
    assert len(moved) == nullity and all(change < 1e-7 for change in moved)


def test_the_null_directions_of_relu_are_the_scales_of_its_units_one_by_one():
    model, theta, covariates = truth_parts(FAMILIES["VAPT, relu"].build())
    w1, w2 = (model.unflatten(theta)[1][name].numpy() for name in ("w1", "w2"))
    found = [direction.weights() for direction in LocalGeometry(model, theta, covariates).rank.null_directions]
    for unit in range(2):
        expected = {f"w1[{j},{unit},{x}]": w1[j, unit, x] for j in range(2) for x in range(4)}
        expected |= {f"w2[{d},{unit}]": -w2[d, unit] for d in range(4)}
        norm = math.sqrt(sum(value**2 for value in expected.values()))
        (match,) = [weights for weights in found if f"w2[0,{unit}]" in weights]
        assert set(match) == set(expected)
        sign = math.copysign(1, match[f"w2[0,{unit}]"] * expected[f"w2[0,{unit}]"])
        for key, value in expected.items():
            assert match[key] == pytest.approx(sign * value / norm, abs=1e-6)


def test_a_prefix_key_in_the_kernel_of_b_is_unidentified():
    recipe = select("prefix", rank=3)
    model, theta, covariates = truth_parts(recipe.build())
    ranks = LocalGeometry(model, theta, covariates).rank
    kernel = np.linalg.svd(model.key_map.numpy())[2][3]
    assert len(theta) - ranks.rank == 2
    for direction in ranks.null_directions:
        weights = direction.weights()
        (atom,) = {key[4] for key in weights}
        found = np.array([weights[f"key[{atom},{k}]"] for k in range(4)])
        assert abs(abs(found @ kernel) - 1) < 1e-8
    report = described(model, theta, covariates)
    assert report.rate_exact == report.rate == "not identifiable" and report.direction.count("key[") >= 2


def test_parameter_names_follow_the_parameter_vector():
    model, theta, _ = truth_parts(FAMILIES["VAPT, tanh"].build())
    names, (b, blocks) = parameter_names(model), model.unflatten(theta)
    assert len(names) == len(set(names)) == len(theta)
    for name, value in {"b[1]": b[1], "w1[1,0,3]": blocks["w1"][1, 0, 3], "w2[2,1]": blocks["w2"][2, 1]}.items():
        assert theta[names.index(name)] == value


def test_directions_drop_what_is_negligible():
    direction = Direction(("u", "v", "w"), torch.tensor([-0.6, 1e-9, 0.8]))
    assert direction.weights() == pytest.approx({"w": 0.8, "u": -0.6})
    assert direction.words(1) == "0.80 w and 1 smaller" and str(direction) == "0.80 w -0.60 u"


def test_a_bound_needs_noise():
    with pytest.raises(InputError, match="noise > 0"):
        cramer_rao(torch.eye(2, dtype=torch.float64), 0.0, 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_of_tokens_are_those_of_automatic_differentiation(name):
    model, theta, covariates = truth_parts(FAMILIES[name].build())
    x = covariates.nodes(256)[0][[0, 7, 100]]
    expected = torch.func.vmap(torch.func.jacrev(lambda t, x: token_vector(model, t, x)), (None, 0))(theta, x)
    found = token_jacobian(model, theta, x)
    np.testing.assert_allclose(sorted_rows(found[0]), sorted_rows(expected[0]), atol=1e-12)
    np.testing.assert_allclose(found.mT @ found, (expected.mT @ expected).detach(), atol=1e-10)


def sorted_rows(matrix):
    """The same rows in an order that does not depend on how they came."""
    rows = matrix.detach().numpy().round(9)
    return rows[np.lexsort(rows.T)]
