"""Information, rank and limits against double loops, finite differences, planted symmetries and the table on paper."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from moe_prompt.activations import Activation, activation
from moe_prompt.covariates import Gaussian, Uniform
from moe_prompt.errors import InputError
from moe_prompt.estimators import LeastSquares
from moe_prompt.identifiability import (
    Direction,
    cramer_rao,
    information,
    jacobian_rank,
    parameter_names,
    token_rank,
    triangular,
)
from moe_prompt.limits import as_prefix, describe, remainder_order, render, sharing_is_vacuous
from moe_prompt.prompts import ConstantPrompt, LinearGateExpert, PromptExpert, PromptTokens
from moe_prompt.regression import FrozenExperts, Population, RegressionModel
from moe_prompt.zoo import EXPERTS, FAMILIES, Recipe, select, table, vapt

DIM, OUTPUTS, ATOMS, FROZEN, NODES = 3, 2, 5, 7, 11

# family -> (exact-specified, over-specified), gauge: the table on paper
PAPER = {
    "VPT, B injective": ("n^-1/2", "n^-1/4", 0),
    "VPT, B singular": ("n^-1/2", "not identifiable", 0),
    "prefix, non-shared": ("n^-1/2", "not identifiable", 0),
    "reparameterised prefix, maps known": ("n^-1/2", "n^-1/4", 0),
    "reparameterised, maps free, L' <= d": ("n^-1/2 up to gauge 24", "not identifiable", 24),
    "VAPT, tanh": ("n^-1/2", "n^-1/4", 0),
    "VAPT, gelu": ("n^-1/2", "n^-1/4", 0),
    "VAPT, sigmoid": ("n^-1/2", "n^-1/4", 0),
    "VAPT, relu": ("n^-1/2 up to gauge 2", "-", 2),
    "VAPT, linear, r = 1": ("n^-1/2 up to gauge 1", "n^-1/4", 1),
    "VAPT, linear, r = 2": ("n^-1/2 up to gauge 4", "not identifiable", 4),
    "linear gate + linear expert": ("n^-1/2", "not identifiable", 0),
    "linear gate + tanh ridge": ("n^-1/2", "n^-1/4", 0),
    "NoRGa + linear expert": ("n^-1/2", "not identifiable", 0),
    "NoRGa + constant expert": ("n^-1/2", "not identifiable", 0),
    "NoRGa + tanh ridge": ("n^-1/2", "n^-1/4", 0),
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
    result = information(model, theta, (torch.from_numpy(points), torch.from_numpy(weights)))
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
    model, theta, covariates, _ = Recipe(EXPERTS["vpt"].expert, dim=2, frozen=2, seed=1).build()
    population, n, replicates = Population(model, theta, covariates, noise=0.1), 2000, 300
    rngs = [np.random.default_rng([4, k]) for k in range(replicates)]
    fit = LeastSquares().fit(model, population.sample(n, rngs), theta.expand(replicates, 1, -1))
    assert bool(fit.converged.all())
    bound = cramer_rao(information(model, theta, covariates), 0.1, n)
    # n (theta_hat - theta)^T I (theta_hat - theta) / (s^2 p) has mean 1 and variance 2 / p
    p = len(theta)
    ratio = torch.einsum("np,pq,nq->n", fit.theta - theta, torch.linalg.inv(bound), fit.theta - theta) / p
    assert abs(float(ratio.mean()) - 1) < 5 * math.sqrt(2 / (p * replicates))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_what_moves_no_token_is_the_declared_symmetry_and_f_sees_the_rest(name):
    model, theta, covariates, symmetry = FAMILIES[name].build()
    ranks, tokens = jacobian_rank(model, theta, covariates), token_rank(model, theta, covariates)
    nullity = len(theta) - tokens.rank
    assert nullity == PAPER[name][2]
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
    model, theta, covariates, _ = FAMILIES["VAPT, relu"].build()
    w1, w2 = (model.unflatten(theta)[1][name].numpy() for name in ("w1", "w2"))
    found = [direction.weights() for direction in jacobian_rank(model, theta, covariates).null_directions]
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
    model, theta, covariates, _ = recipe.build()
    ranks = jacobian_rank(model, theta, covariates)
    kernel = np.linalg.svd(model.key_map.numpy())[2][3]
    assert len(theta) - ranks.rank == 2
    for direction in ranks.null_directions:
        weights = direction.weights()
        (atom,) = {key[4] for key in weights}
        found = np.array([weights[f"key[{atom},{k}]"] for k in range(4)])
        assert abs(abs(found @ kernel) - 1) < 1e-8
    report = describe(model, theta, covariates)
    assert report.rate_exact == report.rate == "not identifiable" and report.direction.count("key[") >= 2


def test_parameter_names_follow_the_parameter_vector():
    model, theta, _, _ = FAMILIES["VAPT, tanh"].build()
    names, (b, blocks) = parameter_names(model), model.unflatten(theta)
    assert len(names) == len(set(names)) == len(theta)
    for name, value in {"b[1]": b[1], "w1[1,0,3]": blocks["w1"][1, 0, 3], "w2[2,1]": blocks["w2"][2, 1]}.items():
        assert theta[names.index(name)] == value


def test_directions_drop_what_is_negligible():
    direction = Direction(("u", "v", "w"), torch.tensor([-0.6, 1e-9, 0.8]))
    assert direction.weights() == pytest.approx({"w": 0.8, "u": -0.6})
    assert direction.words(1) == "0.80 w and 1 smaller" and str(direction) == "0.80 w -0.60 u"


def test_the_table_on_paper():
    reports = {report.family: report for report in table()}
    assert {name: (r.rate_exact, r.rate, r.gauge) for name, r in reports.items()} == PAPER
    for name, report in reports.items():
        assert report.rank == report.num_parameters - report.gauge, name
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
        if report.rate == "n^-1/4":
            assert report.sigma_2 > 1e-4 and report.sigma_2_relaxed > 1e-5, name
    assert reports["VAPT, relu"].sigma_2 is None and "kink" in reports["VAPT, relu"].reason
    assert "free prefix" in reports["reparameterised, maps free, L' <= d"].reason
    lines = render(list(reports.values())).splitlines()
    assert all(line.startswith(name) for line, name in zip(lines[2:], PAPER, strict=False))
    assert max(map(len, lines)) < 180


def test_free_maps_are_vacuous_up_to_d_atoms_and_no_further():
    def setting(dim: int):
        model, theta, covariates, _ = replace(EXPERTS["reparameterized-free"], dim=dim).build()
        return model, theta, covariates.nodes(256)

    assert sharing_is_vacuous(*setting(3)) and not sharing_is_vacuous(*setting(2))
    model, theta, nodes = setting(2)
    report = describe(model, theta, nodes)
    assert report.rate == "n^-1/4" and report.sigma_2 > 1e-5
    for name in ("VPT, B injective", "prefix, non-shared", "VAPT, tanh", "reparameterised prefix, maps known"):
        model, theta, covariates, _ = FAMILIES[name].build()
        assert not sharing_is_vacuous(model, theta, covariates.nodes(256))


def test_free_maps_give_every_split_of_a_prefix():
    """Three atoms in d = 3: solve for maps and prompts with any three keys and values, two of them a split value."""
    model, theta, covariates, _ = replace(EXPERTS["reparameterized-free"], dim=3).build()
    nodes = covariates.nodes(64)
    prefix, free = as_prefix(model, theta, nodes)
    b, blocks = prefix.unflatten(free)
    keys, values = (blocks[name][[0, 1, 0]].clone() for name in ("key", "value"))
    values[0, 1] += 0.2
    values[2, 1] -= 0.2
    more = model.with_atoms(3)
    parts = {
        "b": torch.stack([b[0] - math.log(2), b[1], b[0] - math.log(2)]),
        "p": torch.eye(3, dtype=torch.float64),
        "w1": keys.atanh().mT,
        "w2": values.atanh().mT,
    }
    split = torch.cat([parts[name].flatten() for name in more.shapes])
    np.testing.assert_allclose(more.mean(split, nodes[0]), model.mean(theta, nodes[0]), rtol=1e-12)
    np.testing.assert_allclose(prefix.mean(free, nodes[0]), model.mean(theta, nodes[0]), rtol=1e-12)


@pytest.mark.parametrize("activation, low, high", [("tanh", 1.7, 2.2), ("square", 1.7, 2.2), ("relu", 0.2, 0.9)])
def test_kinks_are_told_from_smooth_bends(activation, low, high):
    model, theta, covariates, _ = Recipe(vapt, activation, hidden=3, dim=2, seed=5).build()
    assert low < remainder_order(model, theta, covariates.nodes()) < high


class Bump(PromptExpert):
    """A user's expert: score beta x, value w tanh(s x + t), dropout on the way that must not act."""

    def __init__(self, num_prompts: int) -> None:
        super().__init__()
        self.beta, self.s, self.t = (nn.Parameter(torch.zeros(num_prompts)) for _ in range(3))
        self.dropout = nn.Dropout(0.9)
        self.register_buffer("w", torch.tensor([1.0, -0.5]))

    def forward(self, tokens: torch.Tensor) -> PromptTokens:
        x = tokens.flatten(-2)
        h = self.dropout(torch.tanh(x * self.s + self.t))
        return PromptTokens(self.beta.expand_as(h)[..., None], h[..., None] * self.w)


def bump() -> tuple[RegressionModel, torch.Tensor]:
    frozen = FrozenExperts.random(2, 1, 2, np.random.default_rng(0))
    identity = torch.eye(2, dtype=torch.float64)
    model = RegressionModel(frozen, Bump(2), identity[:1, :1], identity)
    return model, torch.tensor([0.3, -0.2, 0.7, -0.5, 1.1, -0.8, 0.4, 0.9], dtype=torch.float64)


def test_a_users_own_expert():
    """tanh(s x + t) is not strongly identifiable on paper, and its splits are visible all the same."""
    model, theta = bump()
    state = [parameter.clone() for parameter in model.expert.parameters()]
    report = describe(model, theta, Uniform(-2.0, 2.0, 1))
    assert (report.family, report.num_parameters, report.rank, report.gauge) == ("Bump", 8, 8, 0)
    assert report.rate_exact == "n^-1/2" and report.rate == "n^-1/4" and report.sigma_2 > 1e-5
    assert report == describe(model, theta, Uniform(-2.0, 2.0, 1))
    assert model.expert.training and model.expert.w.dtype == torch.float32  # the user's object is left alone
    assert all(a.equal(b) for a, b in zip(state, model.expert.parameters(), strict=True))


@pytest.mark.parametrize(
    "act, rate",
    [
        (activation("tanh"), "not identifiable"),  # odd: halves at +-eta cancel
        (Activation("z + z^4", lambda z: z + z**4, lambda z, _: 1 + 4 * z**3), "slower than n^-1/4"),
    ],
)
def test_a_zero_of_sigma_2_is_followed_to_a_finite_split(act, rate):
    """act''(0) = 0, so sigma_2 vanishes along eta at eta = 0, whatever happens further out."""
    frozen = FrozenExperts.random(2, 2, 1, np.random.default_rng(1))
    identity = torch.eye(2, dtype=torch.float64)
    model = RegressionModel(frozen, LinearGateExpert(1, 2, 1, act), identity, identity[:1, :1])
    theta = torch.tensor([0.2, 0.9, -0.4, 0.0, 0.0], dtype=torch.float64)
    report = describe(model, theta, Gaussian(2).nodes(400))
    assert report.rate_exact == "n^-1/2" and report.rate == rate
    assert report.sigma_2 < 1e-9 and "eta" in report.direction


def test_without_log_weights_there_is_no_split():
    model, theta, covariates, _ = FAMILIES["VPT, B injective"].build()
    report = describe(replace(model, gating_bias=False), theta[2:], covariates.nodes(256))
    assert report.rate_exact == "n^-1/2" and report.rate == "-" and report.sigma_2 is None and "b" in report.reason


def test_errors_say_what_to_do():
    model, theta, covariates, _ = FAMILIES["VPT, B injective"].build()
    with pytest.raises(InputError, match=r"float64: got theta of torch\.float32; use \.double\(\)"):
        describe(model, theta.float(), covariates)
    with pytest.raises(InputError, match="noise > 0"):
        cramer_rao(torch.eye(2, dtype=torch.float64), 0.0, 10)
    with pytest.raises(InputError, match="did you mean 'vapt'"):
        select("vaptt")
    with pytest.raises(InputError, match="unknown activation 'tan'"):
        select("vapt", "tan")
    with pytest.raises(InputError, match="'vpt' has no activation"):
        select("vpt", "tanh")
    with pytest.raises(InputError, match="'norga' has no rank"):
        select("norga", rank=2)
    with pytest.raises(InputError, match=r"one of 1\.\.4: got 5"):
        select("vpt", rank=5)


def test_select_changes_activation_and_rank():
    assert select("vapt", "gelu", rank=3).build().model.expert.w1.shape == (2, 3, 4)
    assert select("vpt", rank=2) == FAMILIES["VPT, B singular"]
    assert torch.linalg.matrix_rank(select("vpt", rank=3).build().model.key_map) == 3
    assert select("linear-gate", "linear") == FAMILIES["linear gate + linear expert"]


@pytest.mark.parametrize("name", list(EXPERTS))
def test_a_recipe_is_the_same_truth_every_time_and_leaves_the_generator_alone(name):
    before = torch.get_rng_state()
    (model, theta, _, _), (other, theta_2, _, _) = (EXPERTS[name].build() for _ in range(2))
    assert theta.equal(theta_2) and model.key_map.equal(other.key_map)
    points = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 4)))
    assert model.mean(theta, points).equal(other.mean(theta, points))
    assert torch.get_rng_state().equal(before)
