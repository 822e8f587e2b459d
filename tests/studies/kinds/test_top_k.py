"""The study of a gate that chooses: its hyperplane against scores, its bound against differences and fits."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_prompt.attention.gates import SoftmaxGate
from moe_prompt.errors import InputError
from moe_prompt.estimation.base import FitResult
from moe_prompt.studies.kinds.cell_limits import matched_limits
from moe_prompt.studies.kinds.top_k import boundary, judge
from moe_prompt.studies.loading import load

STUDY = load("gates-top-k")
TRUTH = STUDY.truths["top-1"]
CELL = ("top-1", "top-1")
TURNED = [1, 0, 5, 6, 7, 2, 3, 4]  # the prompts exchanged


@pytest.fixture(scope="module")
def limits():
    return STUDY.limits(*CELL)


def draw(n: int, seed: int = 0) -> torch.Tensor:
    return TRUTH.covariates.sample(n, np.random.default_rng(seed))


def scores(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x' B p_j + b_j (n, 2)."""
    b, p, key = theta[:2], theta[2:].reshape(2, 3), TRUTH.model.key_map.numpy()
    return np.array([[xi @ key @ p[j] + b[j] for j in range(2)] for xi in x])


def as_fit(theta: torch.Tensor) -> FitResult:
    ones = torch.ones(len(theta)).double()
    return FitResult(TRUTH.model, theta, ones, ones > 0, ones < 0, ones.long(), ones, ones, ("",) * len(theta))


def test_the_boundary_is_where_scores_are_equal():
    x = draw(101)
    w = boundary(TRUTH.model, TRUTH.theta)
    found = scores(TRUTH.theta.numpy(), x.numpy() @ np.eye(3))
    key = TRUTH.model.key_map.numpy()
    p = TRUTH.theta.numpy()[2:].reshape(2, 3)
    apart = [float((key @ (p[1] - p[0])) @ xi + TRUTH.theta[1] - TRUTH.theta[0]) for xi in x.numpy()]
    told = (torch.cat([torch.ones(101, 1).double(), x], 1) @ w).numpy()
    assert told / np.array(apart) == pytest.approx(told[0] / apart[0], rel=1e-9) and float(w.norm()) == pytest.approx(1)
    assert found.shape == (101, 2) and torch.allclose(boundary(TRUTH.model, TRUTH.theta[TURNED]), -w)


def test_there_is_no_cramer_rao_line_under_a_gate_that_chooses():
    found = matched_limits(TRUTH, 12**3)
    assert found.risk_constant is found.loss_constant is found.squared_error_constant is found.information is None
    smooth = replace(TRUTH, model=replace(TRUTH.model, gate=SoftmaxGate()))
    assert matched_limits(smooth, 12**3).loss_constant > 0


def test_limits_are_those_of_a_known_boundary(limits):
    """p - q = 8 - 3, and the loss of normal errors in directions found by differences that leave the hyperplane."""
    assert limits.parameters == 5 and limits.risk_constant == pytest.approx(5 * TRUTH.noise**2, rel=1e-12)
    h, p = 1e-6, 8
    turns = np.stack(
        [(boundary(TRUTH.model, TRUTH.theta + s) - boundary(TRUTH.model, TRUTH.theta - s)).numpy() / (2 * h)
         for s in h * torch.eye(p).double()], 1,
    )  # fmt: skip
    _, _, right = np.linalg.svd(turns)
    still = right[3:].T
    assert np.abs(turns @ still).max() < 1e-7
    x = draw(20_000, 1)
    jacobian = TRUTH.model.jacobian(TRUTH.theta, x).numpy().reshape(-1, p) @ still
    covariance = TRUTH.noise**2 * np.linalg.inv(jacobian.T @ jacobian / 20_000)
    errors = np.random.default_rng(2).multivariate_normal(np.zeros(5), covariance, 20_000) @ still.T
    mass = np.exp(TRUTH.theta[:2].numpy())
    loss = (mass * (np.abs(errors[:, :2]) + np.linalg.norm(errors[:, 2:].reshape(-1, 2, 3), axis=2))).sum(1).mean()
    assert limits.loss_constant == pytest.approx(loss, rel=0.05)
    assert json.loads(json.dumps(limits.to_dict(), allow_nan=False)) == limits.to_dict()


def test_the_common_risk_is_over_covariates_on_which_both_choose_alike():
    """Against loops over 20 000 covariates, two percent; exchanged prompts are the same estimate."""
    theta = TRUTH.theta + 0.05 * torch.from_numpy(np.random.default_rng(3).standard_normal(8))
    judged = judge(TRUTH, as_fit(torch.stack([theta, theta[TURNED]])), TRUTH.noiseless(40**3))
    x = draw(20_000, 4)
    errors = (TRUTH.model.mean(theta, x) - TRUTH.model.mean(TRUTH.theta, x)).square().sum(1).numpy()
    same = scores(theta.numpy(), x.numpy()).argmax(1) == scores(TRUTH.theta.numpy(), x.numpy()).argmax(1)
    assert not same.all() and (errors * same).mean() < 0.7 * errors.mean()
    assert judged["common_risk"].numpy() == pytest.approx((errors * same).mean(), rel=0.05)
    assert float(judged["boundary_error"][0]) == pytest.approx(float(judged["boundary_error"][1]), rel=1e-9)
    assert 0.001 < float(judged["boundary_error"][0]) < 0.1


def test_fits_reach_the_bound_of_a_known_boundary_and_learn_the_boundary_faster(limits):
    """19 fits at n = 500 and 8000: the risk within 4 standard errors of (p - q) s^2 / n, 8e-4 for Student's t; the
    boundary's median falls by more than 7, n^-1/2 being 4 and n^-1 16. Some fits stop at a minimum beside the least."""
    replicates, found = tuple(range(19)), {}
    for n in (500, 8000):
        rows = STUDY.fit_batch(*CELL, n, replicates, limits)
        assert all(row["converged"] for row in rows) and sum(row["missed"] for row in rows) <= 9
        found[n] = {name: np.array([row[name] for row in rows]) for name in ("boundary_error", "common_risk")}
    risk = 8000 * found[8000]["common_risk"] / limits.risk_constant
    assert abs(risk.mean() - 1) < 4 * risk.std(ddof=1) / math.sqrt(19)
    fall = np.median(found[500]["boundary_error"]) / np.median(found[8000]["boundary_error"])
    assert fall > 7


def test_what_has_no_such_boundary_is_refused():
    smooth = replace(TRUTH.model, gate=SoftmaxGate())
    with pytest.raises(InputError, match="a boundary is between two prompts"):
        replace(STUDY, truths={"top-1": replace(TRUTH, model=smooth)}, contenders={"top-1": smooth})


# ------------------------------------------------------------------------------------------------ the gates' study


def test_gates_differ_in_the_gate_alone():
    study = load("gates")
    assert list(study.truths) == ["softmax", "sigmoid", "top-1"] and list(study.contenders) == ["softmax", "sigmoid"]
    first, *others = study.truths.values()
    for other in others:
        assert torch.equal(other.theta, first.theta) and type(other.model.gate) is not type(first.model.gate)
    assert [study.matched(*cell) for cell in study.cells].count(True) == 2
    assert study.sizes == STUDY.sizes == (1000, 3162, 10_000, 31_623, 100_000)
