"""Limits of whole families: the table on paper, planted zeros, vacuous sharing, a user's own expert."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from moe_prompt.attention.activations import Activation, activation
from moe_prompt.attention.prompts import LinearGateExpert, PromptExpert, PromptTokens
from moe_prompt.errors import InputError
from moe_prompt.models.covariates import Gaussian, Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.theory.families import EXPERTS, FAMILIES, Family, select, table, vapt
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.report import (
    as_prefix,
    identifiability_report,
    remainder_order,
    report_table,
    sharing_is_vacuous,
)
from tests.builders.truths import described, truth_parts

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


def test_the_table_on_paper():
    reports = {report.family: report for report in table()}
    assert {name: (r.rate_exact, r.rate, r.gauge) for name, r in reports.items()} == PAPER
    for name, report in reports.items():
        assert report.rank == report.num_parameters - report.gauge, name
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
        assert FAMILIES[name].splits_show == (report.rate == "n^-1/4"), name
        assert FAMILIES[name].kinked == ("kink" in report.reason), name
        if report.rate == "n^-1/4":
            assert report.sigma_2 > 1e-4 and report.sigma_2_relaxed > 1e-5, name
    assert reports["VAPT, relu"].sigma_2 is None and "kink" in reports["VAPT, relu"].reason
    assert "free prefix" in reports["reparameterised, maps free, L' <= d"].reason
    lines = report_table(list(reports.values())).splitlines()
    assert all(line.startswith(name) for line, name in zip(lines[1:], PAPER, strict=False))
    assert max(map(len, lines)) < 180


def test_free_maps_are_vacuous_up_to_d_atoms_and_no_further():
    def setting(dim: int):
        model, theta, covariates = truth_parts(replace(EXPERTS["reparameterized-free"], dim=dim).build())
        return model, theta, covariates.nodes(256)

    assert sharing_is_vacuous(*setting(3)) and not sharing_is_vacuous(*setting(2))
    model, theta, nodes = setting(2)
    report = described(model, theta, nodes)
    assert report.rate == "n^-1/4" and report.sigma_2 > 1e-5
    for name in ("VPT, B injective", "prefix, non-shared", "VAPT, tanh", "reparameterised prefix, maps known"):
        model, theta, covariates = truth_parts(FAMILIES[name].build())
        assert not sharing_is_vacuous(model, theta, covariates.nodes(256))


def test_free_maps_give_every_split_of_a_prefix():
    """Three atoms in d = 3: solve for maps and prompts with any three keys and values, two of them a split value."""
    model, theta, covariates = truth_parts(replace(EXPERTS["reparameterized-free"], dim=3).build())
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
    model, theta, covariates = truth_parts(Family("small", vapt, activation, hidden=3, dim=2, seed=5).build())
    assert low < remainder_order(LocalGeometry(model, theta, covariates)) < high


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
    report = described(model, theta, Uniform(-2.0, 2.0, 1))
    assert (report.family, report.num_parameters, report.rank, report.gauge) == ("Bump", 8, 8, 0)
    assert report.rate_exact == "n^-1/2" and report.rate == "n^-1/4" and report.sigma_2 > 1e-5
    assert report == described(model, theta, Uniform(-2.0, 2.0, 1))
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
    report = described(model, theta, Gaussian(2).nodes(400))
    assert report.rate_exact == "n^-1/2" and report.rate == rate
    assert report.sigma_2 < 1e-9 and "eta" in report.direction


def test_without_log_weights_there_is_no_split():
    model, theta, covariates = truth_parts(FAMILIES["VPT, B injective"].build())
    report = described(replace(model, gating_bias=False), theta[2:], covariates.nodes(256))
    assert report.rate_exact == "n^-1/2" and report.rate == "-" and report.sigma_2 is None and "b" in report.reason


@pytest.mark.usefixtures("without_shape_checks")
def test_errors_say_what_to_do():
    truth = FAMILIES["VPT, B injective"].build()
    with pytest.raises(InputError, match=r"float64: got theta of torch\.float32; use \.double\(\)"):
        identifiability_report(replace(truth, theta=truth.theta.float()))
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
    assert replace(select("vpt", rank=2), name="VPT, B singular") == FAMILIES["VPT, B singular"]
    assert torch.linalg.matrix_rank(select("vpt", rank=3).build().model.key_map) == 3
    linear, named = select("linear-gate", "linear"), FAMILIES["linear gate + linear expert"]
    assert replace(linear, name=named.name, splits_show=False) == named


@pytest.mark.parametrize("name", list(EXPERTS))
def test_a_recipe_is_the_same_truth_every_time_and_leaves_the_generator_alone(name):
    before = torch.get_rng_state()
    (model, theta, _), (other, theta_2, _) = (truth_parts(EXPERTS[name].build()) for _ in range(2))
    assert theta.equal(theta_2) and model.key_map.equal(other.key_map)
    points = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 4)))
    assert model.mean(theta, points).equal(other.mean(theta, points))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    "name", ["VPT, B injective", "VAPT, tanh", "reparameterised, maps free, L' <= d", "VAPT, relu"]
)
def test_one_jacobian_a_truth_and_node_set(name, monkeypatch):
    """A whole report evaluates the Jacobian once at each model, parameter vector and set of nodes."""
    seen, evaluate = [], RegressionModel.jacobian

    def counted(model, theta, x):
        seen.append((type(model.expert).__name__, model.num_atoms, theta.detach().numpy().tobytes()))
        return evaluate(model, theta, x)

    monkeypatch.setattr(RegressionModel, "jacobian", counted)
    truth = FAMILIES[name].build()
    identifiability_report(truth)
    assert len(seen) == len(set(seen))
    kind, theta = type(truth.model.expert).__name__, truth.theta.numpy().tobytes()
    assert sum(call == (kind, 2, theta) for call in seen) == 1
