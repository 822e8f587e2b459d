"""Over-specified fits: minima by every test there is, against Levenberg-Marquardt and SciPy; saddles, box, failures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from moe_prompt.attention.gates import NonlinearResidualGate, SigmoidGate, SoftmaxGate
from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt, LinearGateExpert, PromptTokens
from moe_prompt.errors import InputError
from moe_prompt.estimation.base import FitResult
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.over_specified import trust_region
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Dataset, Population

DIM, OUTPUTS, ATOMS, REPLICATES, STARTS, SAMPLES = 3, 2, 2, 5, 7, 211
NEWTON = NewtonLeastSquares(tolerance=1e-8)


class Scaled(ConstantPrompt):
    """A user's expert, differentiated automatically."""

    def forward(self, tokens):
        key, value = super().forward(tokens)
        return PromptTokens(key, torch.tanh(value) * (1 + tokens.mean(-1, keepdim=True)))


EXPERTS = {
    "VPT": lambda: ConstantPrompt(ATOMS, DIM),
    "VAPT": lambda: FlatAdaptivePrompt(ATOMS, DIM, 1),
    "linear gate": lambda: LinearGateExpert(ATOMS, DIM, DIM),
    "user's": lambda: Scaled(ATOMS, DIM),
}


OTHERS = {"two units": lambda: FlatAdaptivePrompt(ATOMS, DIM, 2, "linear")}


def truth(name: str = "VPT", noise: float = 0.02, gate=SoftmaxGate, bias: bool = True) -> Population:
    rng = np.random.default_rng(0)
    frozen = FrozenExperts.random(2, DIM, OUTPUTS, rng)
    maps = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
    model = RegressionModel(frozen, (EXPERTS | OTHERS)[name](), *maps, gate(), gating_bias=bias)
    theta = torch.from_numpy(rng.uniform(-2, 2, model.num_parameters))
    theta[model.slices.get("b", slice(0, 0))] /= 3
    return Population(model, theta, Uniform(-math.sqrt(3), math.sqrt(3), DIM), noise)


def sample(population: Population, replicates: int = REPLICATES, n: int = SAMPLES) -> Dataset:
    return population.sample(n, [np.random.default_rng((4, k)) for k in range(replicates)])


def anywhere(model: RegressionModel, replicates: int = REPLICATES, count: int = STARTS) -> torch.Tensor:
    return Random(count).starts(model, None, [np.random.default_rng((5, k)) for k in range(replicates)])


def take(data: Dataset, index: list[int]) -> Dataset:
    return Dataset(data.x[index], data.y[index], data.weights)


def residual(model: RegressionModel, data: Dataset, k: int, theta: torch.Tensor) -> torch.Tensor:
    """sqrt(w) (f - y) of replicate k, from the plain mean."""
    out = model.mean(theta, data.x[k]) - data.y[k]
    return (out if data.weights is None else out * data.weights.sqrt()[:, None]).flatten()


def gradient(model: RegressionModel, data: Dataset, k: int, theta: torch.Tensor) -> torch.Tensor:
    """J'r of replicate k, from the plain Jacobian."""
    jacobian = model.jacobian(theta, data.x[k])
    jacobian = jacobian if data.weights is None else jacobian * data.weights.sqrt()[:, None, None]
    return jacobian.flatten(0, 1).mT @ residual(model, data, k, theta)


def hessian(model: RegressionModel, data: Dataset, k: int, theta: torch.Tensor, h: float = 1e-4) -> np.ndarray:
    """By differences of fourth order of the plain gradient."""
    at = lambda t: gradient(model, data, k, t)  # noqa: E731
    columns = []
    for e in torch.eye(len(theta), dtype=torch.float64) * h:
        columns.append((8 * (at(theta + e) - at(theta - e)) - (at(theta + 2 * e) - at(theta - 2 * e))) / (12 * h))
    out = torch.stack(columns, 1).numpy()
    return 0.5 * (out + out.T)


def assert_minimum(fit: FitResult, data: Dataset, k: int, box: float = 20.0) -> None:
    """The gradient of what is inside the box vanishes to rounding, its Hessian is positive, and on the boundary descent
    points out."""
    model, theta = fit.model, fit.theta[k]
    inside = theta.abs() < box
    g, size = gradient(model, data, k, theta), model.jacobian(theta, data.x[k]).flatten(0, 1).norm(dim=0)
    scale = size * residual(model, data, k, theta).norm()  # the largest that each component of J'r could be
    assert bool((g[inside].abs() <= 1e-7 * scale[inside] + 1e-12).all())
    assert bool((g[~inside] * theta[~inside].sign() <= 0).all())
    kept = inside.nonzero()[:, 0].numpy()
    unit = np.where(size.numpy()[kept] > 0, size.numpy()[kept], 1.0)
    h = hessian(model, data, k, theta)[np.ix_(kept, kept)] / np.outer(unit, unit)
    assert np.linalg.eigvalsh(h)[0] >= -1e-9


def assert_same_fits(a: FitResult, b: FitResult, tolerance: float = 1e-8) -> None:
    assert torch.allclose(a.objective, b.objective, rtol=tolerance, atol=0)
    assert a.converged.equal(b.converged) and a.message == b.message
    assert (a.theta - b.theta).abs().max() <= 100 * tolerance


# -------------------------------------------------------------------------------------------- the minimum


@pytest.mark.parametrize("gate", [SoftmaxGate, lambda: NonlinearResidualGate(0.5, 1.0)], ids=["softmax", "NoRGa"])
@pytest.mark.parametrize("name", ["VPT", "VAPT", "user's"])
def test_an_over_specified_fit_ends_at_a_minimum(name, gate):
    population = truth(name, gate=gate)
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 2, 101)
    fit = NEWTON.fit(model, data, anywhere(model, 2, 2))
    assert fit.converged.any()
    for k in fit.converged.nonzero()[:, 0].tolist():
        assert fit.message[k] == "converged"
        assert_minimum(fit, data, k)
        assert math.isclose(
            fit.objective[k], float(residual(model, data, k, fit.theta[k]).square().sum()) / 2, rel_tol=1e-12
        )


def split(population: Population, data: Dataset, apart: float) -> torch.Tensor:
    """Starts (replicates, 1, p): the truth, or the fit with its number of atoms, first atom in two halves."""
    one = population.model
    theta = population.theta.expand(len(data), -1)
    if not apart:
        theta = LeastSquares(tolerance=1e-11).fit(one, data, theta[:, None]).theta
    measure = one.measure(theta)
    doubled = measure.take_atoms(torch.tensor([0, *range(one.num_atoms)]).expand(len(data), -1))
    more = one.with_atoms(one.num_atoms + 1)
    out = more.flatten(doubled)
    out[:, more.slices["b"]][:, :2] -= math.log(2)
    return (out + apart * torch.from_numpy(np.random.default_rng(8).standard_normal(out.shape)))[:, None]


@pytest.mark.parametrize("name", ["VPT", "VAPT"])
def test_fits_of_the_studies_families_converge_in_few_steps(name):
    population = truth(name)
    model, data = population.model.with_atoms(ATOMS + 1), sample(population)
    fit = NEWTON.fit(model, data, anywhere(model))
    assert bool(fit.converged.all()) and int(fit.steps.median()) <= 60  # the longest is left to rounding
    at_truth = [residual(population.model, data, k, population.theta).square().sum() / 2 for k in range(REPLICATES)]
    assert bool((fit.objective < torch.stack(at_truth)).all())


def test_flat_sets_that_the_box_bends_are_followed(monkeypatch):
    """Two linear units: splits of the antisymmetric part do not show. Without the step back, fits creep for 1000s."""
    population = truth("two units")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 6)
    estimator = NewtonLeastSquares(first=LeastSquares(box=3.0), keep=1, max_steps=500)
    fit = estimator.fit(model, data, anywhere(model, 6, 2))
    assert bool(fit.converged.all()) and bool(fit.at_boundary.any())
    monkeypatch.setattr(trust_region.TrustRegion, "_correct", lambda *_: None)
    creeping = estimator.fit(model, data, anywhere(model, 6, 2))
    assert not bool(creeping.converged.all()) and int(fit.steps.sum()) < 0.75 * int(creeping.steps.sum())
    assert bool((fit.objective <= creeping.objective + 1e-9).all())


@pytest.mark.parametrize("name", EXPERTS)
def test_no_worse_than_levenberg_marquardt(name):
    """Going on from where that ends, lower or as low; and from the same start near the truth, too."""
    population = truth(name)
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 3)
    starts = split(population, data, 0.3)
    plain = LeastSquares(max_steps=100).fit(model, data, starts)
    onwards = NEWTON.fit(model, data, plain.theta[:, None])
    assert bool((onwards.objective <= plain.objective * (1 + 1e-12)).all())
    if name in ("VPT", "VAPT"):  # elsewhere the two may part from the start for other minima
        fit = NEWTON.fit(model, data, starts)
        assert bool((fit.objective <= plain.objective * (1 + 1e-12)).all())


@pytest.mark.parametrize("name", ["VPT", "VAPT"])
def test_no_worse_than_scipy_from_the_same_starts(name):
    population = truth(name)
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 2)
    starts = split(population, data, 0.3)
    fit = NEWTON.fit(model, data, starts)
    for k in range(2):
        peer = least_squares(
            lambda t, k=k: residual(model, data, k, torch.from_numpy(t)).numpy(),
            starts[k, 0].numpy(),
            lambda t, k=k: model.jacobian(torch.from_numpy(t), data.x[k]).flatten(0, 1).numpy(),
            bounds=(-20, 20),
            max_nfev=300,
        )
        assert fit.objective[k] <= peer.cost * (1 + 1e-10) and fit.objective[k] >= 0.99 * peer.cost


@pytest.mark.parametrize("bias", [True, False], ids=["b free", "b = 0"])
@pytest.mark.parametrize("name", EXPERTS)
def test_an_exactly_specified_fit_is_levenberg_marquardts(name, bias):
    population = truth(name, bias=bias)
    data = sample(population, 3)
    near = population.theta + 0.05 * torch.from_numpy(
        np.random.default_rng(6).standard_normal((3, 1, population.model.num_parameters))
    )
    plain = LeastSquares(tolerance=1e-10).fit(population.model, data, near)
    fit = replace(NEWTON, tolerance=1e-10).fit(population.model, data, near)
    assert bool(plain.converged.all()) and bool(fit.converged.all())
    assert (fit.theta - plain.theta).abs().max() <= 1e-8
    assert torch.allclose(fit.objective, plain.objective, rtol=1e-13, atol=0)
    assert not fit.escaped.any() and not fit.at_boundary.any()


def test_gradient_and_offset_are_what_their_names_say():
    """One step of Newton's method and no more: both are far from zero there."""
    population = truth()
    model, data = population.model, sample(population, 1)
    start = (population.theta + 0.1)[None, None]
    fit = replace(NEWTON, handover=math.inf, max_steps=1).fit(model, data, start)
    assert int(fit.steps[0]) == 1 and fit.message == ("not converged in 1 steps",) and not fit.converged[0]
    g = gradient(model, data, 0, fit.theta[0])
    assert math.isclose(fit.gradient_norm[0], g.norm(), rel_tol=1e-9) and g.norm() > 1e-6
    assert 1e-8 < fit.offset[0] < 100


# ---------------------------------------------------------------------------------------------- the saddle


@pytest.mark.parametrize("name", ["VPT", "VAPT"])
def test_coincident_atoms_are_left(name):
    """The best fit with the true number of atoms, one of them twice: the gradient is zero there, and it is a saddle."""
    population = truth(name)
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 3)
    starts = split(population, data, 0.0)
    before = torch.stack([residual(model, data, k, starts[k, 0]).square().sum() / 2 for k in range(3)])
    for k in range(3):
        assert gradient(model, data, k, starts[k, 0]).norm() <= 1e-8
        assert np.linalg.eigvalsh(hessian(model, data, k, starts[k, 0]))[0] < -1e-4
    assert bool(LeastSquares().fit(model, data, starts).converged.all())  # sees nothing
    fit = NEWTON.fit(model, data, starts)
    assert bool(fit.escaped.all()) and bool(fit.converged.all())
    gained = (before - fit.objective) / population.noise**2
    assert bool((gained > 0.1).all())
    for k in range(3):
        assert_minimum(fit, data, k)


def test_a_saddle_that_was_left_on_a_rung_counts():
    """That of the smaller sample: the whole one has none near where its fit begins."""
    population = truth("VAPT")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 3, 2003)
    stride = 2003 // 300
    starts = split(population, Dataset(data.x[:, ::stride], data.y[:, ::stride]), 0.0)
    climbing = replace(NEWTON, first=LeastSquares(first_rung=300))
    assert climbing.first.rungs(data) == [stride]
    fit = climbing.fit(model, data, starts)
    assert bool(fit.escaped.all()) and bool(fit.converged.all())
    assert not NEWTON.fit(model, data, fit.theta[:, None]).escaped.any()


def test_no_saddle_where_none_was():
    population = truth()
    data = sample(population, 3)
    fit = NEWTON.fit(population.model, data, population.theta.expand(3, 1, -1))
    assert bool(fit.converged.all()) and not fit.escaped.any()


# ------------------------------------------------------------------------------------------------- the box


@pytest.mark.parametrize("name", ["VPT", "VAPT", "linear gate"])
def test_fits_in_a_tight_box_satisfy_kkt_there(name):
    population = truth(name)
    box = float(population.theta.abs().median())
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 3)
    starts = split(population, data, 0.1)
    fit = replace(NEWTON, first=LeastSquares(box=box)).fit(model, data, starts)
    assert bool((fit.theta.abs() <= box).all()) and bool(fit.at_boundary.all()) and bool(fit.converged.all())
    for k in range(3):
        assert bool((fit.theta[k].abs() == box).any())
        assert_minimum(fit, data, k, box)
        inside = fit.theta[k].abs() < box
        free = gradient(model, data, k, fit.theta[k])[inside]
        assert torch.isclose(fit.gradient_norm[k], free.norm(), rtol=1e-3, atol=1e-9)


# ----------------------------------------------------------------------------------------------- the batch


def test_a_replicates_result_is_its_own():
    """Alone, among others, in another order, with its starts in another order: the same to 1e-8."""
    population = truth("VAPT")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population)
    starts = anywhere(model, count=4)
    whole = NEWTON.fit(model, data, starts)
    order = [4, 0, 2, 1, 3]
    assert_same_fits(NEWTON.fit(model, take(data, order), starts[order]), whole.select(torch.tensor(order)))
    assert_same_fits(NEWTON.fit(model, data, starts.flip(1)), whole)
    assert_same_fits(NEWTON.fit(model, take(data, [3]), starts[[3]]), whole.select(torch.tensor([3])))


def test_of_several_starts_the_best_is_kept():
    population = truth("VAPT")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 2)
    starts = anywhere(model, 2, 3)
    every = torch.stack([NEWTON.fit(model, data, starts[:, [s]]).objective for s in range(3)])
    assert torch.allclose(NEWTON.fit(model, data, starts).objective, every.min(0).values, rtol=1e-9, atol=0)
    assert bool((every.max(0).values > 1.001 * every.min(0).values).any())  # some starts do end elsewhere
    kept = replace(NEWTON, keep=1).fit(model, data, starts)
    assert bool((kept.objective >= every.min(0).values * (1 - 1e-9)).all())


def test_rungs_end_where_the_whole_sample_does_and_save_steps():
    population = truth("VAPT")
    data = sample(population, 2, 4001)
    starts = population.theta + 0.2 * anywhere(population.model, 2, 2)
    climbed, plain = (
        replace(NEWTON, first=LeastSquares(first_rung=rung), handover_steps=0).fit(population.model, data, starts)
        for rung in (150, 10**9)
    )
    assert bool(plain.converged.all())
    assert_same_fits(climbed, plain)
    assert bool((climbed.steps < plain.steps).all())  # on the whole sample


# ------------------------------------------------------------------------------------------------- weights


def test_whole_weights_are_repeated_rows():
    population = truth("VAPT")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 3)
    starts = split(population, data, 0.3)
    times = torch.from_numpy(np.random.default_rng(9).integers(0, 4, SAMPLES))
    weighted = Dataset(data.x, data.y, times.double())
    repeated = Dataset(data.x.repeat_interleave(times, 1), data.y.repeat_interleave(times, 1))
    a, b = (NEWTON.fit(model, d, starts) for d in (weighted, repeated))
    assert_same_fits(a, b)
    for k in range(3):
        assert_minimum(a, weighted, k)
    assert not torch.allclose(a.objective, NEWTON.fit(model, data, starts).objective, rtol=1e-3)


# ------------------------------------------------------------------------------------------------ failures


def test_a_fit_that_fails_is_a_result_with_its_reason_and_leaves_the_others_alone():
    population = truth("VAPT")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population)
    starts = split(population, data, 0.3)
    good = NEWTON.fit(model, data, starts)
    starts[2, 0, 4] = math.nan
    fit = NEWTON.fit(model, data, starts)
    assert fit.message[2] == "the objective is not finite at the start"
    assert not fit.converged[2] and fit.objective[2] == math.inf and fit.steps[2] == 0
    assert not fit.at_boundary[2] and not fit.escaped[2]
    rest = torch.tensor([0, 1, 3, 4])
    assert_same_fits(fit.select(rest), good.select(rest))


def test_a_failed_start_does_not_lose_its_replicate():
    population = truth("VAPT")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 2)
    starts = split(population, data, 0.3)
    fit = NEWTON.fit(model, data, torch.cat([torch.full_like(starts, math.nan), starts], 1))
    assert_same_fits(fit, NEWTON.fit(model, data, starts))
    assert bool(fit.converged.all())


def test_data_without_noise_are_fitted_to_rounding():
    population = truth(noise=0.0)
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 3)
    for fit in (
        NEWTON.fit(model, data, split(population, data, 0.05)),
        NEWTON.fit(population.model, data, population.theta.expand(3, 1, -1)),
    ):
        assert bool(fit.converged.all()) and set(fit.message) == {"converged"}
        assert bool((fit.objective <= 1e-24).all())


def test_overflow_is_a_failure_not_a_crash():
    rng = np.random.default_rng(11)
    frozen = FrozenExperts.random(ATOMS, DIM, OUTPUTS, rng)
    expert = LinearGateExpert(ATOMS, DIM, DIM, "square")
    maps = torch.eye(DIM).double(), torch.from_numpy(rng.standard_normal((OUTPUTS, DIM)))
    model = RegressionModel(frozen, expert, *maps)
    theta = torch.from_numpy(rng.standard_normal(model.num_parameters))
    data = sample(Population(model, theta, Uniform(-1.0, 1.0, DIM), 0.01), 3)
    for size in (1e170, 1e30):
        starts = theta.repeat(3, 1, 1)
        starts[0] *= size
        starts[1, :, :ATOMS] *= size
        fit = replace(NEWTON, first=LeastSquares(box=1e200), max_steps=100).fit(model, data, starts)
        assert bool(fit.converged[2])
        assert size < 1e100 or fit.message[0] == "the objective is not finite at the start"


def test_masses_that_differ_beyond_numbers_are_survived():
    """Two atoms of which one has no mass at all: exp of half the difference would be infinite."""
    population = truth()
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 2)
    starts = split(population, data, 0.3)
    starts[0, 0, 0], starts[0, 0, 1] = 5000.0, -5000.0
    fit = replace(NEWTON, first=LeastSquares(box=1e5)).fit(model, data, starts)
    assert bool(fit.theta.isfinite().all()) and bool(fit.converged[1])


def test_a_hessian_that_is_not_finite_ends_its_own_fit_only(monkeypatch):
    population = truth("VAPT")
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 2)
    starts = split(population, data, 0.3)
    good = NEWTON.fit(model, data, starts)
    true = trust_region.second_order
    broken = lambda problem, theta, k: true(problem, theta, k).masked_fill((k == 0)[:, None, None], math.inf)  # noqa: E731
    monkeypatch.setattr(trust_region, "second_order", broken)
    fit = NEWTON.fit(model, data, starts)
    assert fit.message == ("the Hessian is not finite", "converged") and fit.converged.tolist() == [False, True]
    assert_same_fits(fit.select(torch.tensor([1])), good.select(torch.tensor([1])))


def test_too_few_steps_are_told():
    population = truth()
    model, data = population.model.with_atoms(ATOMS + 1), sample(population, 3)
    fit = replace(NEWTON, max_steps=2, handover_steps=1).fit(model, data, anywhere(model, 3, 2))
    assert not fit.converged.any() and set(fit.message) == {"not converged in 2 steps"}
    assert fit.steps.tolist() == [2] * 3 and bool((fit.offset > 1e-8).all())


def test_gates_without_a_second_order_term_are_refused():
    population = truth(gate=SigmoidGate)
    with pytest.raises(InputError, match="second-order term needs an exponential gate"):
        NEWTON.fit(population.model, sample(population, 2), anywhere(population.model, 2, 1))


def test_misuse_is_answered_in_one_sentence():
    population = truth()
    with pytest.raises(InputError, match=r"number of parameters, 8: got n = 7; take a larger sample\."):
        NEWTON.fit(population.model, sample(population, 2, 7), anywhere(population.model, 2, 1))
