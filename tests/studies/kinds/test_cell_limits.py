"""Limits of cells against Monte Carlo, differences of the mean, closed forms, and SciPy's best of many starts."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.kinds.rates import RateStudy
from tests.builders.small_study import study

NOISE, LOW, HIGH = 0.05, -2.0, 2.0


def relu_study(rank: int = 1) -> RateStudy:
    """VAPT with scaled hidden units: its parameters are known up to one direction for each."""
    vpt = study.contenders["vpt"]
    model = replace(vpt, expert=FlatAdaptivePrompt(1, 2, rank, "relu"))
    theta = torch.from_numpy(np.random.default_rng(4).uniform(0.5, 1.5, model.num_parameters))
    truth = replace(study.truths["vpt"], model=model, theta=theta)
    return replace(study, truths={"relu": truth}, contenders={"relu": model})


def draw(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(LOW, HIGH, (n, 2)))


def differenced(model: RegressionModel, theta: torch.Tensor, x: torch.Tensor) -> np.ndarray:
    """d f / d theta (n, o, p) by central differences of the mean."""
    h, columns = 1e-5, []
    for i in range(len(theta)):
        step = torch.zeros_like(theta)
        step[i] = h
        columns.append((model.mean(theta + step, x) - model.mean(theta - step, x)).numpy() / (2 * h))
    return np.stack(columns, -1)


@pytest.mark.parametrize("name", ["vpt", "vapt"])
def test_constants_of_a_matched_cell_are_those_of_monte_carlo(name):
    """40000 covariates, 20000 errors of the Gaussian limit: percent each."""
    limits, truth = study.limits(name, name), study.truths[name]
    p = truth.model.num_parameters
    assert (limits.parameters, limits.noise, limits.floor) == (p, NOISE, 0.0) and limits.projection is None
    assert limits.risk_constant == pytest.approx(p * NOISE**2, rel=1e-12)
    jacobian = differenced(truth.model, truth.theta, draw(40_000, 1))
    gram = np.einsum("noi,noj->ij", jacobian, jacobian) / len(jacobian)
    assert np.abs(limits.information.numpy() / gram - 1).max() < 0.1
    inverse = np.linalg.inv(gram)
    hats = [np.sum((j @ inverse @ j.T) ** 2) for j in jacobian]
    assert limits.leverage == pytest.approx(np.mean(hats) / p, rel=0.05)
    assert limits.squared_error_constant == pytest.approx(NOISE**2 * np.trace(inverse), rel=0.05)
    errors = np.random.default_rng(2).multivariate_normal(np.zeros(p), NOISE**2 * inverse, 20_000)
    assert limits.loss_constant == pytest.approx(linear_loss(name, truth.theta.tolist(), errors), rel=0.03)


def linear_loss(name: str, theta: list[float], errors: np.ndarray) -> float:
    """The mean Voronoi loss of small errors: mass |db| + mass |d atom| + mass |d shared|, mass = exp(b)."""
    mass, total = math.exp(theta[0]), 0.0
    for e in errors:
        atom, shared = (e[1:3], []) if name == "vpt" else (e[1:3], e[3:])
        total += mass * (abs(e[0]) + math.hypot(*atom) + math.hypot(*shared))
    return total / len(errors)


def test_loss_constant_of_scaled_units_is_in_their_canonical_coordinates():
    """Scaling w1 by c and w2 by 1/c is no error: errors orthogonal to it, measured after scaling w1 to norm one."""
    small = relu_study()
    limits, truth = small.limits("relu", "relu"), small.truths["relu"]
    theta = truth.theta.numpy()
    jacobian = differenced(truth.model, truth.theta, draw(40_000, 3))
    covariance = NOISE**2 * np.linalg.pinv(np.einsum("noi,noj->ij", jacobian, jacobian) / 40_000, rcond=1e-9)
    size = 1e-4
    total = 0.0
    for e in np.random.default_rng(4).multivariate_normal(np.zeros(5), covariance, 20_000, check_valid="ignore"):
        b, w1, w2 = theta[0] + size * e[0], theta[1:3] + size * e[1:3], theta[3:] + size * e[3:]
        lengths = np.hypot(*w1), np.hypot(*theta[1:3])
        atom, shared = w1 / lengths[0] - theta[1:3] / lengths[1], w2 * lengths[0] - theta[3:] * lengths[1]
        total += abs(math.exp(b) - math.exp(theta[0])) + math.exp(b) * math.hypot(*atom)
        total += math.exp(theta[0]) * math.hypot(*shared)
    assert limits.loss_constant == pytest.approx(total / 20_000 / size, rel=0.03)


def test_fits_reach_the_constants():
    """199 fits at n = 2003: mean risk and loss over their limits within 4 standard errors, 6e-5 each."""
    truth, limits, n = study.truths["vpt"], study.limits("vpt", "vpt"), 2003
    data = truth.sample(n, [np.random.default_rng((5, k)) for k in range(199)])
    fit = LeastSquares().fit(truth.model, data, (truth.theta + 0.1).expand(199, 1, -1))
    errors = (fit.theta - truth.theta).numpy()
    x = draw(3000, 6)
    risks = [
        float((truth.model.mean(t, x) - truth.model.mean(truth.theta, x)).square().sum(1).mean()) for t in fit.theta
    ]
    mass = [math.exp(float(t[0])) for t in fit.theta]
    losses = [
        abs(m - math.exp(float(truth.theta[0]))) + m * math.hypot(*e[1:]) for m, e in zip(mass, errors, strict=True)
    ]
    for found, limit, slack in ((risks, limits.risk_constant / n, 0.03), (losses, limits.loss_constant / n**0.5, 0.01)):
        error = np.std(found, ddof=1) / math.sqrt(199)
        assert abs(np.mean(found) - limit) < 4 * error + slack * limit
    squares = (errors**2).sum(1)
    assert abs(squares.mean() - limits.squared_error_constant / n) < 4 * squares.std(ddof=1) / math.sqrt(199)


# ------------------------------------------------------------------------------------------------ floors


@pytest.fixture(scope="module")
def toy():
    """VPT with two prompts as the truth, with one as the estimator."""
    rng = np.random.default_rng(8)
    number = lambda *shape: torch.from_numpy(rng.standard_normal(shape))  # noqa: E731
    two = RegressionModel(FrozenExperts.random(1, 2, 3, rng), ConstantPrompt(2, 2), number(2, 2), number(3, 2))
    theta = torch.tensor([0.2, -0.3, 1.5, 0.4, -1.2, 0.9], dtype=torch.float64)
    truth = Population(two, theta, Uniform(LOW, HIGH, 2), 0.1)
    contenders = {"two": two, "one": two.with_atoms(1)}
    options = {"estimator": LeastSquares(box=5.0), "nodes": 21**2, "projection_starts": 12}
    grid = {"sizes": (23, 61), "replicates": 3, "window": (23, 61)}
    return RateStudy(name="toy", claim="a floor", truths={"two": truth}, contenders=contenders, **grid, **options)


def risk(study: RateStudy, theta: torch.Tensor) -> float:
    """E |f_theta - f_*|^2 of the one-prompt model on a grid of midpoints, 200 an axis: 1e-4 of it."""
    side = LOW + (HIGH - LOW) * (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    x = torch.cartesian_prod(side, side)
    truth = study.truths["two"]
    apart = study.contenders["one"].mean(theta, x) - truth.model.mean(truth.theta, x)
    return float(apart.square().sum(1).mean())


def test_floor_is_scipys_best_of_many_starts(toy):
    limits, model = toy.limits("two", "one"), toy.contenders["one"]
    truth, x = toy.truths["two"], draw(2000, 9)
    target = truth.model.mean(truth.theta, x)
    residual = lambda t: (model.mean(torch.from_numpy(t), x) - target).numpy().ravel()  # noqa: E731
    starts = np.random.default_rng(10).standard_normal((12, 3))
    best = min((least_squares(residual, start, bounds=(-5, 5)) for start in starts), key=lambda fit: fit.cost)
    assert limits.floor == pytest.approx(risk(toy, limits.projection), rel=1e-3) and limits.floor > 0.01
    assert limits.floor <= risk(toy, torch.from_numpy(best.x)) * 1.001  # SciPy's is the minimum on 2000 points only
    assert limits.floor == pytest.approx(risk(toy, torch.from_numpy(best.x)), rel=0.01)


def test_no_fit_is_below_the_floor(toy):
    limits = toy.limits("two", "one")
    data = toy.truths["two"].sample(61, [np.random.default_rng((11, k)) for k in range(40)])
    starts = torch.from_numpy(np.random.default_rng(12).standard_normal((40, 5, 3)))
    fit = LeastSquares(box=5.0).fit(toy.contenders["one"], data, starts)
    assert min(risk(toy, theta) for theta in fit.theta) >= limits.floor * 0.999


def test_more_starts_find_no_higher_floor_and_the_box_is_kept(toy):
    few, many = (replace(toy, projection_starts=k).limits("two", "one").floor for k in (3, 24))
    assert many <= few * (1 + 1e-9)
    tight = replace(toy, estimator=LeastSquares(box=0.25)).limits("two", "one")
    assert float(tight.projection.abs().max()) == 0.25 and tight.floor > many


def test_noise_does_not_move_the_floor(toy):
    loud = replace(toy, truths={"two": replace(toy.truths["two"], noise=7.0)})
    assert loud.limits("two", "one").floor == pytest.approx(toy.limits("two", "one").floor, rel=1e-9)


def test_limits_are_json(toy):
    for small, cell in ((toy, ("two", "one")), (study, ("vapt", "vapt"))):
        told = small.limits(*cell).to_dict()
        assert json.loads(json.dumps(told, allow_nan=False)) == told and "information" not in told
