"""Maximum likelihood against SciPy on the same likelihood, planted truths, and everything that can go wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import chi2, norm
from torch.autograd.functional import hessian

from moe_prompt.errors import InputError
from moe_prompt.likelihood.climb import Climb
from moe_prompt.likelihood.expectation_maximization import ExpectationMaximization, _promising
from moe_prompt.likelihood.louis_information import Observations
from moe_prompt.likelihood.m_steps import gate_maximum, scoring_step
from moe_prompt.likelihood.models import ContaminatedMoE, FrozenDensity, GaussianMoE
from moe_prompt.likelihood.population import MixturePopulation
from moe_prompt.likelihood.published_em import PublishedEM
from moe_prompt.likelihood.starts import BesideTruth, Scattered
from moe_prompt.models.covariates import EvenGrid, Gaussian, Uniform
from moe_prompt.models.sampling import Dataset

ESTIMATOR = ExpectationMaximization()
EXPERTS = [-8.0, 25.0, 15.0, -20.0, -5.0, 20.0, math.log(0.3), math.log(0.4)]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def gaussian(num_experts: int = 2) -> MixturePopulation:
    if num_experts == 2:
        return MixturePopulation(GaussianMoE(2, 1), torch.tensor(EXPERTS, dtype=torch.float64), EvenGrid())
    model = GaussianMoE(num_experts, 2)
    theta = 1.5 * normal(1, model.num_parameters)
    theta[model.slices["log_sd"]] -= 1
    return MixturePopulation(model, theta, Uniform(-2.0, 2.0, 2))


def contaminated(kind: str = "laplace") -> MixturePopulation:
    direction = torch.eye(3, dtype=torch.float64)[0]
    model = ContaminatedMoE(FrozenDensity(kind, direction, 0.01))
    return MixturePopulation(model, model.theta(0.5 + 0 * direction, 1.0, -direction, 0.02), Gaussian(3))


POPULATIONS = {
    "two experts": gaussian,
    "three in the plane": lambda: gaussian(3),
    "Laplace": contaminated,
    "Gaussian": lambda: contaminated("gaussian"),
}


def sample(population: MixturePopulation, n: int, replicates: int = 3) -> Dataset:
    return population.sample(n, [np.random.default_rng((4, k)) for k in range(replicates)])


def near(population: MixturePopulation, replicates: int, starts: int = 1, spread: float = 0.2) -> torch.Tensor:
    return population.theta + spread * normal(5, replicates, starts, population.model.num_parameters)


def likelihood(population: MixturePopulation, data: Dataset, theta: torch.Tensor) -> torch.Tensor:
    return population.model.log_density(theta, data.x, data.y).sum(1)


# -------------------------------------------------------------------------------------------- the optimum


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_maximum_is_scipys(name):
    """BFGS from a place nearby, on the plain log-density and its automatic gradient."""
    population = POPULATIONS[name]()
    model, data, starts = population.model, sample(population, 401), near(population, 3)
    fit = ESTIMATOR.fit(model, data, starts)
    assert bool(fit.converged.all()) and set(fit.message) == {"converged"} and not fit.at_boundary.any()
    for k in range(3):

        def minus(t, k=k):
            theta = torch.from_numpy(t).requires_grad_()
            value = -model.log_density(theta[None], data.x[k : k + 1], data.y[k : k + 1]).sum()
            return value.item(), torch.autograd.grad(value, theta)[0].numpy()

        nearby = (fit.theta[k] + 0.03 * normal(6, model.num_parameters)).numpy()
        peer = minimize(minus, nearby, jac=True, method="BFGS", options={"gtol": 1e-4, "maxiter": 2000})
        assert float(fit.objective[k]) == pytest.approx(peer.fun, rel=1e-8)
        standard_error = np.sqrt(np.diag(np.linalg.inv(information(model, data, fit.theta, k))))
        assert (np.abs(minus(fit.theta[k].numpy())[1]) * standard_error < 1e-5).all()
        assert (np.abs(fit.theta[k].numpy() - peer.x) < 0.01 * standard_error).all()


def information(model, data: Dataset, theta: torch.Tensor, k: int) -> np.ndarray:
    def minus(t):
        return -model.log_density(t[None], data.x[k : k + 1], data.y[k : k + 1]).sum()

    return hessian(minus, theta[k]).numpy()


@pytest.mark.parametrize("name", POPULATIONS)
def test_offset_and_gradient_are_what_their_names_say(name):
    """Distance to the maximum in standard errors, from an independent Hessian, at a fit that was stopped early."""
    population = POPULATIONS[name]()
    data = sample(population, 401, 1)
    early = replace(ESTIMATOR, tolerance=0.05, least_sd=1e-6)
    fit = early.fit(population.model, data, near(population, 1))
    theta = fit.theta[0].clone().requires_grad_()
    gradient = torch.autograd.grad(likelihood(population, data, theta[None]).sum(), theta)[0].numpy()
    observed = information(population.model, data, fit.theta, 0)
    assert float(fit.gradient_norm) == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
    expected = math.sqrt(gradient @ np.linalg.solve(observed, gradient) / len(gradient))
    assert float(fit.offset) == pytest.approx(expected, rel=1e-4) and 0 < expected < 0.05
    last = ESTIMATOR.fit(population.model, data, fit.theta[None])
    moved = (last.theta - fit.theta)[0].numpy()
    assert math.sqrt(moved @ observed @ moved / len(moved)) == pytest.approx(expected, rel=0.3)


def test_planted_truth_is_found_within_its_standard_error():
    """Wilks: twice the gain over the truth is chi-square with p degrees of freedom; false alarms 1e-4 at each end."""
    population = gaussian()
    data = sample(population, 2000, 20)
    starts = Scattered({"gate": 10.0, "mean": 12.0, "log_sd": 0.5}, 1.0)
    rngs = [np.random.default_rng((7, k)) for k in range(20)]
    fit = ESTIMATOR.fit(population.model, data, starts.starts(population.model, population, 2000, rngs))
    gains = 2 * (-fit.objective - likelihood(population, data, population.theta.expand(20, -1)))
    low, high = chi2.ppf([1e-4, 1 - 1e-4], 20 * population.model.num_parameters)
    assert bool(fit.converged.all()) and low < float(gains.sum()) < high


@pytest.mark.parametrize("name", ["two experts", "three in the plane"])
def test_labels_do_not_matter(name):
    population = POPULATIONS[name]()
    model, data, starts = population.model, sample(population, 401), near(population, 3)
    order = tuple(reversed(range(model.num_experts)))
    fit, other = (ESTIMATOR.fit(model, data, s) for s in (starts, model.relabel(starts, order)))
    assert torch.allclose(fit.objective, other.objective, rtol=1e-10)
    assert torch.allclose(model.relabel(other.theta, order), fit.theta, rtol=1e-4, atol=1e-5)


def test_a_sample_is_climbed_to_and_the_rungs_change_nothing():
    population = gaussian()
    data, starts = sample(population, 5000), near(population, 3, 4)
    whole, climbed = (replace(ESTIMATOR, first_rung=r).fit(population.model, data, starts) for r in (5000, 200))
    assert int(climbed.steps.max()) < int(whole.steps.max())
    assert torch.allclose(climbed.theta, whole.theta, rtol=1e-6, atol=1e-6)


def test_the_best_of_the_starts_is_kept():
    """One good start among three with an expert that no observation is near, in every place."""
    population = gaussian()
    data = sample(population, 401)
    bad = torch.tensor([0.0, 0.0, 90.0, 0.0, 0.0, 0.0, -5.0, 1.0], dtype=torch.float64).expand(3, 3, 8)
    alone = ESTIMATOR.fit(population.model, data, near(population, 3))
    lost = ESTIMATOR.fit(population.model, data, bad)
    assert bool((lost.objective > alone.objective + 10).all())
    for place in range(4):
        starts = torch.cat([bad[:, :place], near(population, 3), bad[:, place:]], 1)
        fit = replace(ESTIMATOR, shortlist=2).fit(population.model, data, starts)
        assert torch.allclose(fit.objective, alone.objective, rtol=1e-9)


def test_replicates_do_not_see_each_other():
    population = contaminated()
    data, starts = sample(population, 401), near(population, 3, 2)
    together = ESTIMATOR.fit(population.model, data, starts)
    for k in range(3):
        alone = ESTIMATOR.fit(population.model, Dataset(data.x[k : k + 1], data.y[k : k + 1]), starts[k : k + 1])
        assert torch.allclose(alone.theta[0], together.theta[k], rtol=1e-7, atol=1e-8)


# ---------------------------------------------------------------------------------------------- M-steps


def test_scoring_step_is_the_m_step_of_linear_experts():
    """Weighted least squares with NumPy, weights from the plain densities."""
    population = gaussian(3)
    model, data, theta = population.model, sample(population, 101, 1), near(population, 1)[0]
    sums = Observations(model, data.x, data.y).sums(theta, torch.tensor([0]))
    moved = model.unflatten(theta + scoring_step(model, sums, torch.ones_like(theta, dtype=torch.bool)))
    r = model.responsibilities(theta, data.x, data.y)[0].numpy()
    design, y = np.column_stack([np.ones(101), data.x[0].numpy()]), data.y[0, :, 0].numpy()
    for j in range(3):
        root = np.sqrt(r[:, j])
        line = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        assert np.allclose(moved["mean"][0, j], line, rtol=1e-7, atol=1e-9)
        square = (r[:, j] * (y - design @ line) ** 2).sum() / r[:, j].sum()
        assert float(moved["log_sd"][0, j].exp()) == pytest.approx(math.sqrt(square), rel=1e-7)


def test_gate_maximum_is_scipys():
    rng = np.random.default_rng(8)
    x, r = rng.standard_normal((1, 203, 2)), rng.dirichlet([0.3, 0.5, 0.4], size=(1, 203)).transpose(0, 2, 1)
    model, data = GaussianMoE(3, 2), Dataset(torch.from_numpy(x), torch.zeros(1, 203, 1).double())
    monomials = Observations(model, data.x, data.y).monomials
    start = 3 * normal(9, 1, 2, 3)
    got = gate_maximum(start, torch.from_numpy(r), monomials, tolerance=1e-14)

    def minus(gates: np.ndarray) -> float:
        scores = np.column_stack([np.ones(203), x[0]]) @ np.vstack([gates.reshape(2, 3), np.zeros(3)]).T
        return float((np.logaddexp.reduce(scores, 1) - (r[0].T * scores).sum(1)).sum())

    peer = minimize(minus, np.zeros(6), method="BFGS", options={"gtol": 1e-7})
    assert np.allclose(got.flatten(), peer.x, atol=1e-4) and minus(got.flatten().numpy()) <= peer.fun + 1e-9


@pytest.mark.parametrize("name", POPULATIONS)
def test_em_steps_never_lower_the_likelihood(name):
    population = POPULATIONS[name]()
    data = sample(population, 401)
    start = near(population, 3, spread=1.0)[:, 0]
    bounds = ESTIMATOR._bounds(population.model)
    climb = Climb(Observations(population.model, data.x, data.y), start, torch.arange(3), bounds)
    before = climb.sums.log_likelihood.clone()
    for _ in range(15):
        last = climb.sums.log_likelihood.clone()
        climb.advance(em_only=True)
        assert bool((climb.sums.log_likelihood >= last - 1e-9 * last.abs()).all())
    assert bool((climb.sums.log_likelihood > before + 1).all())


def test_promising_fits_are_few_different_and_close():
    objective = torch.tensor([7.0, 3.0, 3.05, 50.0, 5.0, torch.inf, 1.0, 1.0], dtype=torch.float64)
    owner = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])
    assert _promising(objective, owner, 3, 20.0).tolist() == [1, 4, 0, 5, 6]
    assert _promising(objective, owner, 2, 20.0).tolist() == [1, 4, 5, 6]
    assert _promising(objective, owner, 9, torch.inf).tolist() == [1, 4, 0, 3, 5, 6]


# ----------------------------------------------------------------------------------------- what goes wrong


def test_an_unbounded_likelihood_ends_on_the_box_and_says_so():
    """Two observations on one line: an expert of their own would have no variance."""
    x = torch.linspace(0, 1, 41, dtype=torch.float64)
    y = torch.from_numpy(np.random.default_rng(3).standard_normal(41))
    y[:20] = 40.0
    data = Dataset(x[None, :, None], y[None, :, None])
    start = torch.tensor([[[20.0, -40.0, 39.0, 1.0, 0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    fit = replace(ESTIMATOR, least_sd=0.05).fit(GaussianMoE(2, 1), data, start)
    assert bool(fit.at_boundary.all()) and float(fit.theta[0, -2]) == math.log(0.05) and bool(fit.converged.all())
    own = norm(0, 0.05).logpdf(0) * 20
    assert float(-fit.objective) == pytest.approx(own + norm(y[20:].mean(), y[20:].std()).logpdf(y[20:]).sum(), rel=0.1)


def test_failed_fits_are_results():
    population = gaussian()
    data, starts = sample(population, 401), near(population, 3)
    short = replace(ESTIMATOR, max_steps=1).fit(population.model, data, starts)
    assert not short.converged.any() and set(short.message) == {"not converged in 1 steps"}
    assert bool(short.objective.isfinite().all()) and bool((short.steps == 1).all())
    starts[1] = torch.nan
    mixed = ESTIMATOR.fit(population.model, data, starts)
    assert mixed.converged.tolist() == [True, False, True]
    assert mixed.message[1] == "the likelihood is not finite at the start" and float(mixed.objective[1]) == math.inf
    rescued = ESTIMATOR.fit(population.model, data, torch.cat([starts, near(population, 3)], 1))
    assert bool(rescued.converged.all())


@pytest.mark.parametrize(
    "data, starts, words",
    [
        (Dataset(normal(1, 3, 50, 2), normal(2, 3, 50, 1)), normal(3, 3, 1, 8), "takes 1 covariates, one output"),
        (Dataset(normal(1, 3, 50, 1), normal(2, 3, 50, 2)), normal(3, 3, 1, 8), "got x with 1, y with 2"),
        (
            Dataset(normal(1, 3, 50, 1), normal(2, 3, 50, 1), torch.ones(50).double()),
            normal(3, 3, 1, 8),
            "no weights: .*and weights",
        ),
        (Dataset(normal(1, 3, 7, 1), normal(2, 3, 7, 1)), normal(3, 3, 1, 8), "number of parameters, 8: got n = 7"),
        (
            Dataset(normal(1, 3, 50, 1), normal(2, 3, 50, 1)),
            normal(3, 3, 1, 7),
            r"\(3, at least one, 8\): got \(3, 1, 7\)",
        ),
        (Dataset(normal(1, 3, 50, 1), normal(2, 3, 50, 1)), normal(3, 2, 1, 8), r"got \(2, 1, 8\)"),
        (Dataset(normal(1, 3, 50, 1), normal(2, 3, 50, 1)), normal(3, 3, 0, 8), r"got \(3, 0, 8\)"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_a_sentence(data, starts, words):
    with pytest.raises(InputError, match=words):
        ESTIMATOR.fit(GaussianMoE(2, 1), data, starts)


# --------------------------------------------------------------------------------- the published simulation


def test_published_rule_stops_at_a_small_change_and_far_from_the_maximum():
    """With an expert too many, where the likelihood is flat: its own rule is met, the maximum is not."""
    population, model = gaussian(), GaussianMoE(3, 1)
    data = sample(population, 2000, 3)
    rngs = [np.random.default_rng((11, k)) for k in range(3)]
    starts = BesideTruth(1).starts(model, population, 2000, rngs)
    fit = PublishedEM().fit(model, data, starts)
    assert bool(fit.converged.all()) and float(fit.offset.median()) > 1e-3
    more = PublishedEM(max_steps=50, tolerance=0.0).fit(model, data, fit.theta[:, None])
    gained = fit.objective - more.objective
    assert bool((gained > 1e-6 * fit.objective.abs()).any()) and not more.converged.any()
    best = ESTIMATOR.fit(model, data, fit.theta[:, None])
    assert bool((best.objective <= fit.objective).all()) and float(best.offset.max()) < 1e-6


def test_published_fits_that_fail_are_results():
    population = gaussian()
    data, starts = sample(population, 401), near(population, 3)
    starts[1] = torch.nan
    fit = PublishedEM(max_steps=1).fit(population.model, data, starts)
    assert not fit.converged.any() and fit.objective.isfinite().tolist() == [True, False, True]
    assert fit.message == ("not converged in 1 steps", "the likelihood is not finite any more", fit.message[0])


def test_published_rule_with_no_tolerance_is_maximum_likelihood():
    population = gaussian()
    data = sample(population, 401)
    fit = PublishedEM(tolerance=1e-15).fit(population.model, data, near(population, 3))
    assert torch.allclose(
        fit.objective, ESTIMATOR.fit(population.model, data, near(population, 3)).objective, rtol=1e-8
    )


@pytest.mark.parametrize("n", [100, 10_000])
def test_published_starts_are_copies_of_true_experts_with_shrinking_noise(n):
    population, model = gaussian(), GaussianMoE(4, 1)
    theta = BesideTruth(300).draw(model, population, n, np.random.default_rng(12))
    blocks, true = model.unflatten(theta), population.model.unflatten(population.theta)
    which = (blocks["mean"][..., :1] - true["mean"][:, 0]).abs().argmin(2)
    assert bool((which[:, -1] == 1).all()) and bool((which == 0).any(1).all())
    error = blocks["mean"] - true["mean"][which]
    assert torch.allclose(error[..., 0], error[..., 1])  # one number for intercept and slope
    assert float(error.std()) == pytest.approx(0.05 * n**-0.083, rel=0.15)  # 4.5 standard errors of 1200 draws
    gate = torch.cat([true["gate"], torch.zeros_like(true["gate"])])
    assert float((blocks["gate"] - gate[which[:, :-1]]).std()) == pytest.approx(0.005 * n**-0.083, rel=0.15)
    excess = (2 * blocks["log_sd"]).exp() - true["log_sd"].exp()[which]
    assert float(excess.min()) >= 0 and float(excess.mean()) == pytest.approx(0.004 * n**-0.25, rel=0.15)


def test_scattered_starts_know_neither_truth_nor_size():
    model, scales = GaussianMoE(2, 1), {"gate": 10.0, "mean": 3.0, "log_sd": 0.5}
    starts = Scattered(scales, log_sd=1.0, count=1000)
    draws = [starts.draw(model, p, n, np.random.default_rng(1)) for p, n in ((gaussian(), 10), (contaminated(), 99))]
    assert draws[0].equal(draws[1]) and draws[0].shape == (1000, 8)
    for name, where in model.slices.items():
        assert float(draws[0][:, where].std()) == pytest.approx(scales[name], rel=0.1)  # over 4 standard errors
    assert float(draws[0][:, -2:].mean()) == pytest.approx(1.0, abs=0.05)


def test_starts_that_do_not_fit_the_model():
    with pytest.raises(InputError, match="blocks gate, mean, log_sd: got gate, eta"):
        Scattered({"gate": 1.0, "eta": 1.0}).draw(GaussianMoE(2, 1), gaussian(), 9, np.random.default_rng(0))
    for model, population in ((GaussianMoE(1, 1), gaussian()), (GaussianMoE(3, 3), contaminated())):
        with pytest.raises(InputError, match="at least as many experts as the true one"):
            BesideTruth().draw(model, population, 9, np.random.default_rng(0))
    with pytest.raises(InputError, match="the published EM fits Gaussian mixtures of experts: got ContaminatedMoE"):
        PublishedEM().fit(contaminated().model, sample(contaminated(), 50), near(contaminated(), 3))
