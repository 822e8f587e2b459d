"""Latent mixtures against plain loops over SciPy's densities; their samples against their own densities."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.autograd.functional import hessian, jacobian

from moe_prompt.attention.activations import activation
from moe_prompt.errors import InputError
from moe_prompt.likelihood.louis_information import Observations
from moe_prompt.likelihood.models import ContaminatedMoE, FrozenDensity, GaussianMoE
from moe_prompt.likelihood.population import MixturePopulation
from moe_prompt.models.covariates import EvenGrid, Gaussian, Uniform

REPLICATES, SAMPLES, DIM = 3, 17, 5


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def contaminated(kind: str = "laplace", mean: str = "tanh", dim: int = DIM) -> ContaminatedMoE:
    return ContaminatedMoE(FrozenDensity(kind, normal(1, dim), 0.3, activation("sigmoid")), activation(mean))


def data(dim: int, n: int = SAMPLES):
    return normal(2, REPLICATES, n, dim), normal(3, REPLICATES, n, 1)


def plain_gaussian(model: GaussianMoE, theta: np.ndarray, x: np.ndarray, y: float) -> list[float]:
    """pi_j p_j at one observation, from the vector's documented order: gates, means, log sds."""
    k, width = model.num_experts, model.dim + 1
    gates = [theta[j * width : (j + 1) * width] for j in range(k - 1)] + [np.zeros(width)]
    rest = theta[(k - 1) * width :]
    scores = [g[0] + sum(a * b for a, b in zip(g[1:], x, strict=True)) for g in gates]
    total = sum(math.exp(s) for s in scores)
    terms = []
    for j in range(k):
        line = rest[j * width : (j + 1) * width]
        mean = line[0] + sum(a * b for a, b in zip(line[1:], x, strict=True))
        terms.append(math.exp(scores[j]) / total * stats.norm.pdf(y, mean, math.exp(rest[k * width + j])))
    return terms


def plain_contaminated(model: ContaminatedMoE, theta: np.ndarray, x: np.ndarray, y: float) -> list[float]:
    """The prompt's term, then the frozen one's."""
    d, frozen = model.dim, model.frozen
    named = {k: v.numpy() for k, v in model.named(torch.from_numpy(theta)).items()}
    assert np.allclose(theta, [named["tau"], *named["beta"], *named["eta"], 0.5 * math.log(named["nu"])])
    weight = 1 / (1 + math.exp(sum(a * b for a, b in zip(theta[1 : d + 1], x, strict=True)) + theta[0]))
    mean = {"tanh": math.tanh, "linear": float}[model.mean.name](float(theta[d + 1 : -1] @ x))
    centre = 1 / (1 + math.exp(-float(frozen.direction.numpy() @ x)))
    laplace = stats.laplace(centre, math.sqrt(frozen.variance / 2))
    f_0 = laplace if frozen.kind == "laplace" else stats.norm(centre, math.sqrt(frozen.variance))
    assert f_0.var() == pytest.approx(0.3)
    return [(1 - weight) * stats.norm.pdf(y, mean, math.sqrt(named["nu"])), weight * f_0.pdf(y)]


GAUSSIAN = [(GaussianMoE(k, d), plain_gaussian) for k, d in ((1, 1), (2, 1), (4, 3))]
CONTAMINATED = [
    (contaminated(kind, mean), plain_contaminated) for kind in ("laplace", "gaussian") for mean in ("tanh", "linear")
]


@pytest.mark.parametrize("model, plain", GAUSSIAN + CONTAMINATED)
def test_density_and_responsibilities_are_those_of_plain_loops(model, plain):
    x, y = data(model.dim)
    theta = 0.7 * normal(4, REPLICATES, model.num_parameters)
    density, responsibilities = model.log_density(theta, x, y), model.responsibilities(theta, x, y)
    assert density.shape == (REPLICATES, SAMPLES)
    assert responsibilities.shape == (REPLICATES, SAMPLES, model.num_components)
    for r in range(REPLICATES):
        for i in range(SAMPLES):
            terms = plain(model, theta[r].numpy(), x[r, i].numpy(), float(y[r, i, 0]))
            assert float(density[r, i]) == pytest.approx(math.log(sum(terms)), rel=1e-10)
            assert np.allclose(responsibilities[r, i], np.array(terms) / sum(terms), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "model", [m for m, _ in GAUSSIAN + CONTAMINATED] + [contaminated("gaussian", name) for name in ("gelu", "square")]
)
def test_one_pass_gives_the_automatic_derivatives(model):
    """Also where replicates repeat and come out of order."""
    x, y = data(model.dim)
    order = torch.tensor([2, 0, 0])
    theta = 0.7 * normal(4, 3, model.num_parameters)
    sums = Observations(model, x, y).sums(theta, order)
    for k, r in enumerate(order.tolist()):

        def likelihood(t, r=r):
            return model.log_density(t[None], x[r : r + 1], y[r : r + 1]).sum()

        assert torch.allclose(sums.log_likelihood[k], likelihood(theta[k]), rtol=1e-12)
        assert torch.allclose(sums.score[k], jacobian(likelihood, theta[k]), rtol=1e-9, atol=1e-10)
        assert torch.allclose(sums.observed[k], -hessian(likelihood, theta[k]), rtol=1e-8, atol=1e-9)
        mass = model.responsibilities(theta[k : k + 1], x[r : r + 1], y[r : r + 1])[0].sum(0)
        assert torch.allclose(sums.mass[k], mass[: model.num_experts], rtol=1e-10)


def test_complete_information_is_the_expected_one_given_the_component():
    """From its definition: gates by the variance of the labels, means by r h'^2 / sd^2, log sds by 2 r."""
    model = contaminated("gaussian", "tanh")
    x, y = data(DIM)
    theta = 0.7 * normal(4, REPLICATES, model.num_parameters)
    got = Observations(model, x, y).sums(theta, torch.arange(REPLICATES)).complete[1].numpy()
    expected = np.zeros_like(got)
    for i in range(SAMPLES):
        point, named = x[1, i].numpy(), {k: v[1].numpy() for k, v in model.named(theta).items()}
        r = float(model.responsibilities(theta, x, y)[1, i, 0])
        pi = 1 / (1 + math.exp(-named["tau"] - named["beta"] @ point))
        slope = 1 - math.tanh(named["eta"] @ point) ** 2
        row = np.concatenate([[1], point])
        expected[: DIM + 1, : DIM + 1] += pi * (1 - pi) * np.outer(row, row)
        expected[DIM + 1 : -1, DIM + 1 : -1] += r * slope**2 / named["nu"] * np.outer(point, point)
        expected[-1, -1] += 2 * r
    assert np.allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [4096 + 5, 3])
def test_long_and_short_samples_are_cut_into_pieces_without_trace(n, monkeypatch):
    monkeypatch.setattr("moe_prompt.likelihood.louis_information.CHUNK", 1000)
    model = GaussianMoE(2, 1)
    x, y = data(1, n)
    theta = normal(4, REPLICATES, model.num_parameters)
    pieces = Observations(model, x, y).sums(theta, torch.arange(REPLICATES))
    assert torch.allclose(pieces.log_likelihood, model.log_density(theta, x, y).sum(1), rtol=1e-11)
    monkeypatch.setattr("moe_prompt.likelihood.louis_information.CHUNK", 10**9)
    whole = Observations(model, x, y).sums(theta, torch.arange(REPLICATES))
    assert torch.allclose(pieces.observed, whole.observed, rtol=1e-9, atol=1e-7)


def test_vectors_and_blocks_are_the_same():
    for model, _ in GAUSSIAN + CONTAMINATED:
        theta = normal(5, 7, model.num_parameters)
        assert model.flatten(model.unflatten(theta)).equal(theta)
    model = contaminated()
    beta, eta = normal(6, DIM), normal(7, DIM)
    named = model.named(model.theta(beta, 0.4, eta, 0.09))
    assert named["beta"].equal(beta) and named["eta"].equal(eta)
    assert (float(named["tau"]), float(named["nu"])) == pytest.approx((0.4, 0.09))


def test_relabelling_changes_the_vector_and_not_the_density():
    model = GaussianMoE(3, 2)
    x, y = data(2)
    theta = normal(5, REPLICATES, model.num_parameters)
    moved = model.relabel(theta, (2, 0, 1))
    assert (moved - theta).abs().max() > 0.1
    assert torch.allclose(model.log_density(moved, x, y), model.log_density(theta, x, y), rtol=1e-10)
    before, after = (model.responsibilities(t, x, y) for t in (theta, moved))
    assert torch.allclose(after, before[..., [2, 0, 1]], rtol=1e-8, atol=1e-12)


def test_measure_has_an_atom_for_each_expert():
    model = GaussianMoE(3, 2)
    theta = normal(5, 7, model.num_parameters)
    measure = model.measure(theta)
    assert measure.num_atoms == 3 and measure.batch_shape == (7,)
    assert measure.log_weights[:, 2].eq(0).all() and measure.atoms["gate_slope"][:, 2].eq(0).all()
    assert measure.log_weights[:, 1].equal(theta[:, 3]) and measure.atoms["gate_slope"][:, 1].equal(theta[:, 4:6])
    assert measure.atoms["intercept"][:, 1].equal(theta[:, 9]) and measure.atoms["slope"][:, 1].equal(theta[:, 10:12])
    assert torch.allclose(measure.atoms["variance"], (2 * theta[:, -3:]).exp())


@pytest.mark.parametrize(
    "model, covariates",
    [(GaussianMoE(3, 2), Uniform(-1.0, 1.0, 2)), (contaminated("laplace", dim=2), Gaussian(2))],
    ids=["Gaussian", "contaminated"],
)
def test_samples_have_the_density(model, covariates):
    """The distribution function at Y is uniform given X: Kolmogorov-Smirnov at a false-alarm probability of 1e-4."""
    theta = 0.8 * normal(8, model.num_parameters)
    sample = MixturePopulation(model, theta, covariates).sample(2000, [np.random.default_rng(9)])
    log_pi, log_p = model.log_terms(theta[None], sample.x, sample.y)
    below = torch.zeros(2000, dtype=torch.float64)
    _, means, log_sd = model.coefficients(theta[None])
    design = torch.cat([torch.ones_like(sample.x[..., :1]), sample.x], 2)
    for j in range(model.num_experts):
        z = (sample.y[..., 0] - model.link(design @ means[0, j])) / log_sd[0, j].exp()
        below += log_pi[0, j].exp() * torch.special.ndtr(z[0])
    if model.frozen is not None:
        errors = (sample.y - model.frozen.centre(sample.x))[0, :, 0]
        cdf = stats.laplace(scale=math.sqrt(model.frozen.variance / 2)).cdf(errors)
        below += log_pi[0, -1].exp() * torch.from_numpy(cdf)
    assert stats.kstest(below.numpy(), "uniform").pvalue > 1e-4
    assert log_p.shape == (1, model.num_components, 2000)


def test_a_replicate_depends_on_its_generator_alone_and_a_grid_on_nothing():
    population = MixturePopulation(GaussianMoE(2, 1), normal(8, 8), EvenGrid())
    both = population.sample(29, [np.random.default_rng(1), np.random.default_rng(2)])
    alone = population.sample(29, [np.random.default_rng(2)])
    assert both.y[1].equal(alone.y[0]) and not both.y[0].equal(both.y[1]) and both.x[0].equal(both.x[1])


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: GaussianMoE(0, 1), "at least one expert and one covariate: got 0 and 1"),
        (lambda: FrozenDensity("cauchy", normal(1, 2), 1.0), "unknown frozen density 'cauchy': choose one of"),
        (lambda: FrozenDensity("laplace", normal(1, 2), 0.0), "a variance above 0: got 0.0"),
        (lambda: GaussianMoE(2, 1).unflatten(normal(1, 7)), "8 parameters: got a vector of 7"),
        (lambda: GaussianMoE(2, 1).relabel(normal(1, 8), (0, 0)), "each of the 2 experts once"),
        (lambda: GaussianMoE(2, 1).log_density(normal(1, 3, 8), *data(2)), "x with 1 columns and y with 1"),
        (lambda: MixturePopulation(GaussianMoE(2, 1), normal(1, 7), EvenGrid()), "8 parameters: got 1 and"),
        (lambda: MixturePopulation(GaussianMoE(2, 2), normal(1, 11), EvenGrid()), "takes 2 covariates"),
        (
            lambda: MixturePopulation(GaussianMoE(2, 1), normal(1, 8), EvenGrid()).sample(0, []),
            "a sample needs n >= 1: got 0",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(wrong, words):
    with pytest.raises(InputError, match=words):
        wrong()
