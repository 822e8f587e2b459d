"""Least squares against SciPy's optimum, planted truths, the Cramer-Rao bound, and everything that can go wrong."""

import math
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, root

from moe_prompt.attention.gates import NonlinearResidualGate, SoftmaxGate
from moe_prompt.attention.prompts import (
    ConstantPrompt,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptTokens,
    ReparameterizedPrefix,
)
from moe_prompt.errors import InputError
from moe_prompt.estimation.base import FitResult
from moe_prompt.estimation.least_squares import LeastSquares, SecantTerm
from moe_prompt.models.covariates import EvenGrid, Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Dataset, Population

ATOMS, DIM, OUTPUTS, REPLICATES, SAMPLES = 2, 3, 5, 7, 211
STRICT = LeastSquares(tolerance=1e-10, max_steps=200)


class Scaled(ConstantPrompt):
    """A user's expert, differentiated automatically."""

    def forward(self, tokens):
        key, value = super().forward(tokens)
        return PromptTokens(key, torch.tanh(value) * tokens.mean(-1, keepdim=True))


EXPERTS = {
    "constant": lambda: ConstantPrompt(ATOMS, DIM),
    "prefix": lambda: PrefixPrompt(ATOMS, DIM),
    "reparameterised": lambda: ReparameterizedPrefix(ATOMS, DIM, generator=torch.Generator().manual_seed(5)).double(),
    "flat tanh": lambda: FlatAdaptivePrompt(ATOMS, DIM, 2),
    "linear gate tanh": lambda: LinearGateExpert(ATOMS, DIM, DIM),
    "user's": lambda: Scaled(ATOMS, DIM),
}


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def truth(name: str = "flat tanh", noise: float = 0.1, dim: int = DIM, gate=SoftmaxGate) -> Population:
    rng = np.random.default_rng(3)
    expert = EXPERTS[name]()
    frozen = FrozenExperts.random(ATOMS, dim, OUTPUTS, rng)
    model = RegressionModel(frozen, expert, normal(rng, dim, DIM), normal(rng, OUTPUTS, DIM), gate())
    covariates = Uniform(-1.5, 1.5, dim) if dim > 1 else EvenGrid(-1.5, 1.5)
    return Population(model, normal(rng, model.num_parameters), covariates, noise)


def sample(population: Population, replicates: int = REPLICATES, n: int = SAMPLES) -> Dataset:
    return population.sample(n, [np.random.default_rng((4, k)) for k in range(replicates)])


def near(population: Population, replicates: int = REPLICATES, starts: int = 1, spread: float = 0.1) -> torch.Tensor:
    """Starts (replicates, starts, p) around the truth."""
    p = population.model.num_parameters
    return torch.stack(
        [population.theta + spread * normal(np.random.default_rng((5, k)), starts, p) for k in range(replicates)]
    )


def take(data: Dataset, index: list[int]) -> Dataset:
    return Dataset(data.x[index], data.y[index], data.weights)


def scipy_fit(model: RegressionModel, data: Dataset, start: torch.Tensor, **options) -> np.ndarray:
    """SciPy's theta on the first replicate, from the plain mean and Jacobian, weights as square roots.

    Its least squares stop where gains drown in rounding, 1e-7 from the optimum; without bounds, SciPy's root finder on
    the gradient goes the rest of the way.
    """
    weights = np.ones(data.n) if data.weights is None else data.weights.numpy()
    root_weights, p = np.sqrt(weights)[:, None], model.num_parameters

    def residual(t: np.ndarray) -> np.ndarray:
        return ((model.mean(torch.from_numpy(t), data.x[0]) - data.y[0]).numpy() * root_weights).ravel()

    def jacobian(t: np.ndarray) -> np.ndarray:
        return (model.jacobian(torch.from_numpy(t), data.x[0]).numpy() * root_weights[..., None]).reshape(-1, p)

    fit = least_squares(residual, start.numpy(), jacobian, xtol=1e-15, ftol=1e-15, gtol=1e-15, **options).x
    return fit if "bounds" in options else root(lambda t: jacobian(t).T @ residual(t), fit, tol=1e-14).x


def cost(model: RegressionModel, data: Dataset, theta: np.ndarray) -> float:
    """1/2 |y - f|^2 of the first replicate."""
    return float((model.mean(torch.from_numpy(theta), data.x[0]) - data.y[0]).square().sum() / 2)


def assert_same_fits(a: FitResult, b: FitResult, tolerance: float = 1e-8) -> None:
    assert (a.theta - b.theta).abs().max() <= tolerance
    assert torch.allclose(a.objective, b.objective, rtol=tolerance, atol=0)
    assert a.converged.equal(b.converged) and a.message == b.message


# -------------------------------------------------------------------------------------------- the optimum


@pytest.mark.parametrize("gate", [SoftmaxGate, lambda: NonlinearResidualGate(0.5, 1.0)], ids=["softmax", "NoRGa"])
@pytest.mark.parametrize("name", EXPERTS)
def test_planted_truth_is_recovered_from_noiseless_data(name, gate):
    population = truth(name, noise=0.0, gate=gate)
    fit = STRICT.fit(population.model, sample(population), near(population))
    assert bool(fit.converged.all()) and set(fit.message) == {"converged"}
    assert (fit.theta - population.theta).abs().max() <= 1e-9
    assert not fit.at_boundary.any()
    assert int(fit.steps.max()) <= 20  # a fit that is exact to rounding is recognised, not walked on


@pytest.mark.parametrize("gate", [SoftmaxGate, lambda: NonlinearResidualGate(0.5, 1.0)], ids=["softmax", "NoRGa"])
@pytest.mark.parametrize("name", EXPERTS)
def test_optimum_on_noisy_data_is_scipys(name, gate):
    population = truth(name, gate=gate)
    data, starts = sample(population, 3), near(population, 3)
    fit = STRICT.fit(population.model, data, starts)
    assert bool(fit.converged.all())
    for k in range(3):
        peer = scipy_fit(population.model, take(data, [k]), starts[k, 0], method="lm")
        assert np.abs(fit.theta[k].numpy() - peer).max() <= 1e-7
        assert math.isclose(fit.objective[k], cost(population.model, take(data, [k]), peer), rel_tol=1e-12)


def test_misspecified_optimum_is_scipys():
    """One atom where the truth has two: residuals stay, and Gauss-Newton alone converges slowly."""
    population = truth("linear gate tanh", noise=0.05)
    model = population.model.with_atoms(1)
    data = sample(population, 3)
    kept = population.model.measure(population.theta).take_atoms(torch.tensor([1]))
    starts = model.flatten(kept).expand(3, 1, -1)
    fit = STRICT.fit(model, data, starts)
    assert bool(fit.converged.all()) and not fit.at_boundary.any()
    assert bool((fit.objective > 10 * 0.05**2 * SAMPLES * OUTPUTS / 2).all())
    for k in range(3):
        shaken = fit.theta[k] + 1e-3 * normal(np.random.default_rng(k), model.num_parameters)
        peer = scipy_fit(model, take(data, [k]), shaken, method="lm")
        assert np.abs(fit.theta[k].numpy() - peer).max() <= 1e-7
        assert math.isclose(fit.objective[k], cost(model, take(data, [k]), peer), rel_tol=1e-12)


def test_fits_end_where_gains_are_rounding_and_gauss_newton_diverges():
    """At these optima residuals bend f as much as J'J does: undamped Gauss-Newton circles at 1e-7 of an error."""
    population = truth("constant", noise=0.05)
    model = population.model.with_atoms(1)
    starts = 0.5 * normal(np.random.default_rng(6), 30, 1, model.num_parameters)
    fit = STRICT.fit(model, sample(population, 30), starts)
    assert bool(fit.converged.all()) and int(fit.steps.max()) <= 60


def test_secant_term_explains_the_last_change_of_the_gradient():
    """The secant equation, S step = change of the gradient - J'J step, and symmetry, whatever S was before."""
    rng = np.random.default_rng(12)
    secant = SecantTerm(3, 5)
    k, none = torch.tensor([0, 2]), torch.zeros(2).double()
    for _ in range(3):
        rows = normal(rng, 2, 2, 17, 6)
        old, new = rows.mT @ rows
        step = torch.linalg.solve(old[:, :-1, :-1], new[:, :-1, -1] - old[:, :-1, -1])  # along which the slope rises
        secant.learn(k, step, old, new, none, none)
        missing = new[:, :-1, -1] - old[:, :-1, -1] - torch.einsum("kab,kb->ka", new[:, :-1, :-1], step)
        assert torch.allclose(torch.einsum("kab,kb->ka", secant.s[k], step), missing, rtol=1e-9, atol=1e-9)
        assert torch.allclose(secant.s, secant.s.mT, rtol=1e-12, atol=1e-12)
    assert not secant.s[1].any()


def test_gradient_and_offset_are_what_their_names_say():
    population = truth()
    data = sample(population, 1)
    fit = replace(STRICT, tolerance=0.5, max_steps=1).fit(population.model, data, near(population, 1))
    j = population.model.jacobian(fit.theta[0], data.x[0]).numpy().reshape(-1, population.model.num_parameters)
    r = (population.model.mean(fit.theta[0], data.x[0]) - data.y[0]).numpy().ravel()
    gradient, p = j.T @ r, j.shape[1]
    newton = np.linalg.lstsq(j, r, rcond=None)[0]
    assert math.isclose(float(fit.gradient_norm[0]), np.linalg.norm(gradient), rel_tol=1e-9)
    expected = math.sqrt(gradient @ newton / (p * (r @ r) / (len(r) - p)))
    assert math.isclose(float(fit.offset[0]), expected, rel_tol=1e-7)
    assert math.isclose(float(fit.objective[0]), r @ r / 2, rel_tol=1e-12)
    assert int(fit.steps[0]) == 1


def test_measure_of_a_fit_is_the_models():
    population = truth()
    fit = STRICT.fit(population.model, sample(population, 2), near(population, 2))
    assert fit.measure.log_weights.equal(fit.theta[:, :ATOMS])


# --------------------------------------------------------------------------------------------------- the box


def test_box_constrained_optimum_is_scipys_and_satisfies_kkt():
    population = truth("constant", noise=0.1)
    box = float(population.theta.abs().median())
    data = sample(population, 3)
    starts = near(population, 3).clamp(-box / 2, box / 2)
    fit = replace(STRICT, box=box).fit(population.model, data, starts)
    assert bool(fit.converged.all()) and bool(fit.at_boundary.all())
    assert bool((fit.theta.abs() <= box).all())
    for k in range(3):
        peer = scipy_fit(population.model, take(data, [k]), starts[k, 0], method="trf", bounds=(-box, box))
        assert fit.objective[k] <= cost(population.model, take(data, [k]), peer) * (1 + 1e-12)
        assert np.abs(fit.theta[k].numpy() - peer).max() <= 1e-5
        jacobian = population.model.jacobian(fit.theta[k], data.x[k]).flatten(0, 1)
        gradient = jacobian.T @ (population.model.mean(fit.theta[k], data.x[k]) - data.y[k]).flatten()
        at = (fit.theta[k].abs() == box).nonzero()[:, 0]
        assert len(at) > 0 and bool((gradient[at] * fit.theta[k, at] < 0).all())  # descent points out of the box
        inside = (fit.theta[k].abs() < box).nonzero()[:, 0]
        assert gradient[inside].norm() <= 1e-6 and torch.isclose(
            fit.gradient_norm[k], gradient[inside].norm(), rtol=1e-3, atol=1e-9
        )


def test_objective_never_rises_even_where_the_box_bends_the_step():
    """Steps of one at a time, each from the last: in a tight box a clipped step may point uphill."""
    population = truth("flat tanh", noise=0.3)
    data, theta = sample(population), near(population, spread=2.0)
    one_step = replace(STRICT, box=1.0, max_steps=1)
    last = torch.full((REPLICATES,), math.inf)
    for _ in range(15):
        fit = one_step.fit(population.model, data, theta)
        assert bool((fit.objective <= last * (1 + 1e-12)).all())
        theta, last = fit.theta[:, None], fit.objective


# --------------------------------------------------------------------------------------------- the batch


def test_a_replicates_result_is_its_own():
    """Alone, among others, in another order, with its starts in another order: the same to 1e-8."""
    population = truth(noise=0.2)
    data, starts = sample(population), near(population, starts=3, spread=0.3)
    whole = STRICT.fit(population.model, data, starts)
    order = [4, 0, 6, 2, 5, 1, 3]
    assert_same_fits(STRICT.fit(population.model, take(data, order), starts[order]), pick(whole, order))
    assert_same_fits(STRICT.fit(population.model, data, starts.flip(1)), whole)
    for k in (0, 5):
        assert_same_fits(STRICT.fit(population.model, take(data, [k]), starts[[k]]), pick(whole, [k]))


def pick(fit: FitResult, index: list[int]) -> FitResult:
    fields = ("theta", "objective", "converged", "at_boundary", "steps", "gradient_norm", "offset")
    return FitResult(fit.model, *(getattr(fit, name)[index] for name in fields), tuple(fit.message[i] for i in index))


def test_of_several_starts_the_best_is_kept():
    population = truth("flat tanh", noise=0.05)
    data = sample(population)
    far = near(population, starts=4, spread=3.0)
    starts = torch.cat([far, near(population)], 1)
    fit = STRICT.fit(population.model, data, starts)
    singles = [STRICT.fit(population.model, data, starts[:, [s]]).objective for s in range(5)]
    every = torch.stack(singles)
    assert torch.allclose(fit.objective, every.min(0).values, rtol=1e-9, atol=0)
    assert bool((every.max(0).values > 1.5 * fit.objective).any())  # some starts do end elsewhere


# ------------------------------------------------------------------------------------------------- ladder


@pytest.mark.parametrize("dim", [1, DIM])
def test_ladder_of_samples_ends_where_the_whole_sample_does(dim):
    """Data in the order of a grid as well as shuffled, a prime n, and the ladder does save steps at the top."""
    population = truth("linear gate tanh", 0.05, dim) if dim == DIM else grid_truth()
    data, starts = sample(population, 2, 20011), near(population, 2, starts=2, spread=0.05)
    ladder = replace(STRICT, first_rung=150).fit(population.model, data, starts)
    plain = replace(STRICT, first_rung=10**9).fit(population.model, data, starts)
    assert bool(plain.converged.all())
    assert_same_fits(ladder, plain)
    assert bool((ladder.steps < plain.steps).any())


def grid_truth() -> Population:
    """A head on one covariate: every parameter of b and p is visible on a line."""
    rng = np.random.default_rng(8)
    frozen = FrozenExperts.random(1, 1, 2, rng)
    expert = ConstantPrompt(ATOMS, 2)
    model = RegressionModel(frozen, expert, torch.tensor([[3.0, 0.5]]).double(), torch.eye(2).double())
    theta = torch.tensor([0.3, -0.2, 1.0, -1.0, -1.2, 0.8]).double()
    return Population(model, theta, EvenGrid(-1.5, 1.5), 0.05)


# ------------------------------------------------------------------------------------------------ weights


def test_whole_weights_are_repeated_rows():
    population = truth()
    data, starts = sample(population, 3), near(population, 3)
    times = torch.from_numpy(np.random.default_rng(9).integers(0, 4, SAMPLES))
    weighted = Dataset(data.x, data.y, times.double())
    repeated = Dataset(data.x.repeat_interleave(times, 1), data.y.repeat_interleave(times, 1))
    a, b = (STRICT.fit(population.model, d, starts) for d in (weighted, repeated))
    assert_same_fits(a, b)


def test_weights_have_no_scale():
    population = truth()
    data, starts = sample(population, 3), near(population, 3)
    w = torch.from_numpy(np.random.default_rng(10).uniform(0.1, 1, SAMPLES))
    a, b = (STRICT.fit(population.model, Dataset(data.x, data.y, c * w), starts) for c in (1.0, 1e-9))
    assert (a.theta - b.theta).abs().max() <= 1e-8 and bool((a.converged & b.converged).all())
    peer = scipy_fit(population.model, Dataset(data.x[:1], data.y[:1], w), starts[0, 0], method="lm")
    assert np.abs(a.theta[0].numpy() - peer).max() <= 1e-7


def test_weighted_samples_are_not_climbed_to():
    """Rows of weight 0 are wild here: a smaller sample that forgot the weights would lead astray."""
    population = truth()
    data, starts = sample(population, 2, 2003), near(population, 2)
    w = torch.ones(2003).double()
    w[::5] = 0
    wild = Dataset(data.x, torch.where(w[:, None] == 0, 1e3, data.y), w)
    a, b = (replace(STRICT, first_rung=size).fit(population.model, wild, starts) for size in (100, 10**9))
    assert_same_fits(a, b)
    assert a.steps.equal(b.steps) and bool(a.converged.all())


def test_a_projection_onto_the_truths_own_model_is_the_truth():
    population = truth("constant", noise=0.7)
    fit = STRICT.fit(population.model, population.noiseless(1000), near(population, 1))
    assert (fit.theta[0] - population.theta).abs().max() <= 1e-9 and bool(fit.converged.all())


# ----------------------------------------------------------------------------------------------- failures


def test_a_fit_that_fails_is_a_result_with_its_reason_and_leaves_the_others_alone():
    population = truth()
    data, starts = sample(population), near(population)
    good = STRICT.fit(population.model, data, starts)
    starts[2, 0, 4] = math.nan
    fit = STRICT.fit(population.model, data, starts)
    assert fit.message[2] == "the objective is not finite at the start"
    assert not fit.converged[2] and fit.objective[2] == math.inf and fit.steps[2] == 0 and not fit.at_boundary[2]
    rest = [0, 1, 3, 4, 5, 6]
    assert_same_fits(pick(fit, rest), pick(good, rest))


def test_a_failed_start_does_not_lose_its_replicate():
    population = truth()
    data = sample(population)
    starts = near(population, starts=2)
    starts[:, 0] = math.nan
    fit = replace(STRICT, first_rung=50).fit(population.model, data, starts)
    assert bool(fit.converged.all())
    assert_same_fits(fit, STRICT.fit(population.model, data, starts[:, 1:]))


def test_overflow_is_a_failure_not_a_crash():
    rng = np.random.default_rng(11)
    frozen = FrozenExperts.random(ATOMS, DIM, OUTPUTS, rng)
    expert = LinearGateExpert(ATOMS, DIM, DIM, "square")
    model = RegressionModel(frozen, expert, torch.eye(DIM).double(), normal(rng, OUTPUTS, DIM))
    population = Population(model, normal(rng, model.num_parameters), Uniform(-1.0, 1.0, DIM), 0.1)
    data, starts = sample(population, 2), near(population, 2)
    starts[0] *= 1e170
    fit = replace(STRICT, box=1e200).fit(model, data, starts)
    assert fit.message == ("the objective is not finite at the start", "converged")


def test_too_few_steps_are_told():
    population = truth()
    fit = replace(STRICT, max_steps=2).fit(population.model, sample(population), near(population))
    assert not fit.converged.any() and set(fit.message) == {"not converged in 2 steps"}
    assert fit.steps.tolist() == [2] * REPLICATES and bool((fit.offset > 1e-10).all())


def test_singular_information_is_survived():
    """Two atoms at the same place: J'J is singular there, the fit still lowers the objective and ends."""
    population = truth("constant")
    theta = population.theta.clone()
    theta[0] = theta[1]
    theta[2:5] = theta[5:8]
    data = sample(population, 2)
    fit = STRICT.fit(population.model, data, theta.expand(2, 1, -1))
    before = (population.model.mean(theta, data.x[0]) - data.y[0]).square().sum() / 2
    assert bool(fit.objective.isfinite().all()) and fit.objective[0] < before


@pytest.fixture
def without_shape_checks():
    """As a user has it: the checks of annotations, which only tests have, would be first to object."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def cut(what: str) -> tuple[RegressionModel, Dataset, torch.Tensor]:
    population = truth()
    data, starts = sample(population, 3, 23), near(population, 3)
    changed = {
        "few rows": (Dataset(data.x[:, :19], data.y[:, :19]), starts),
        "parameters": (data, starts[..., 1:]),
        "replicates": (data, starts[1:]),
        "axes": (data, starts[:, 0]),
        "no start": (data, starts[:, :0]),
        "outputs": (Dataset(data.x, data.y[..., 1:]), starts),
        "one output": (Dataset(data.x, data.y[..., :1]), starts),
        "covariates": (Dataset(data.x[..., 1:], data.y), starts),
    }
    return population.model, *changed[what]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("few rows", r"number of parameters, 20: got n = 19; take a larger sample\."),
        ("parameters", r"starts must be .* = \(3, at least one, 20\): got \(3, 1, 19\)"),
        ("replicates", r"= \(3, at least one, 20\): got \(2, 1, 20\)"),
        ("axes", r"= \(3, at least one, 20\): got \(3, 20\)"),
        ("no start", r"= \(3, at least one, 20\): got \(3, 0, 20\)"),
        ("outputs", "this model has 5 outputs: got y with 4"),
        ("one output", "this model has 5 outputs: got y with 1"),
        ("covariates", "x needs 3 columns: got 2"),
    ],
)
def test_misuse_is_answered_in_one_sentence(what, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        STRICT.fit(*cut(what))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------- efficiency


def test_error_is_at_the_cramer_rao_bound():
    """n e' I e / s^2 is chi-squared with p degrees of freedom: its mean over 1000 replicates is p within 4.9 standard
    errors, a false alarm of 1e-6. Terms of order 1/n are below a tenth of that at this noise."""
    population = replace(grid_truth(), noise=0.02)
    model, s, replicates, n = population.model, population.noise, 1000, 499
    p = model.num_parameters
    data = sample(population, replicates, n)
    fit = LeastSquares(tolerance=1e-6).fit(model, data, near(population, replicates, spread=0.02))
    assert bool(fit.converged.all())
    jacobian = model.jacobian(population.theta, data.x[0]).numpy().reshape(-1, p)
    error = (fit.theta - population.theta).numpy()
    chi = np.square(error @ jacobian.T).sum(1) / s**2
    assert abs(chi.mean() - p) < 4.9 * math.sqrt(2 * p / replicates)
    assert 0.8 < chi.var() / (2 * p) < 1.25


@pytest.mark.usefixtures("without_shape_checks")
def test_an_infinite_objective_is_no_fit():
    """Data may be finite and their squares not."""
    population = truth()
    data, starts = sample(population, 2, 29), near(population, 2)
    y = data.y.clone()
    y[0, 0, 0] = 1e200
    fit = STRICT.fit(population.model, Dataset(data.x, y), starts)
    assert fit.converged.tolist() == [False, True] and "finite" in fit.message[0]
