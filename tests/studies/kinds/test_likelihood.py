"""Studies of maximum likelihood: losses, bounds, judged numbers and whole small studies, against plain computations."""

import itertools
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from moe_prompt.errors import InputError
from moe_prompt.likelihood.cramer_rao import bound_at, fisher_information, power_law
from moe_prompt.likelihood.expectation_maximization import ExpectationMaximization
from moe_prompt.likelihood.losses import HellingerDistance, SoftmaxVoronoiLoss
from moe_prompt.likelihood.models import ContaminatedMoE, FrozenDensity, GaussianMoE
from moe_prompt.likelihood.population import MixturePopulation
from moe_prompt.likelihood.starts import Scattered
from moe_prompt.measures.mixing_measure import MixingMeasure
from moe_prompt.models.covariates import EvenGrid, Gaussian, Uniform
from moe_prompt.studies import loading as studies
from moe_prompt.studies.analysis.cells import all_summaries, cells_of
from moe_prompt.studies.kinds.likelihood import Contender, Fixed, LikelihoodStudy, Truth
from moe_prompt.studies.kinds.likelihood_scoring import ContaminatedJudge, SoftmaxGaussianJudge
from moe_prompt.studies.running.database import Results
from moe_prompt.studies.running.runner import run

TRUTH = torch.tensor([-1.0, 3.0, 1.5, -2.0, -0.5, 2.0, -1.2, -0.9], dtype=torch.float64)
TWO = GaussianMoE(2, 1)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def measure(theta: torch.Tensor, num_experts: int = 2, dim: int = 1) -> MixingMeasure:
    return GaussianMoE(num_experts, dim).measure(theta)


# ------------------------------------------------------------------------------------------------ losses


def atoms(model: GaussianMoE, theta: torch.Tensor) -> list[tuple]:
    """(gate intercept, gate slope, intercept, slope, variance) of each expert, from the vector's order."""
    k, width, t = model.num_experts, model.dim + 1, theta.numpy()
    gates = [*t[: (k - 1) * width].reshape(k - 1, width), np.zeros(width)]
    lines = t[(k - 1) * width : (2 * k - 1) * width].reshape(k, width)
    return [(g[0], g[1:], m[0], m[1:], math.exp(2 * v)) for g, m, v in zip(gates, lines, t[-k:], strict=True)]


def plain_loss(fitted: list[tuple], true: list[tuple]) -> float:
    """D by loops, over shifts of the gate that match two slopes and factors that make one cell's mass exact."""
    least = math.inf
    for one, other in itertools.product(fitted, true):
        shift = one[1] - other[1]
        cells, far = [[] for _ in true], []
        for b, slope, *rest in fitted:
            gaps = [
                np.concatenate([slope - shift - s, [rest[0] - t[0]], rest[1] - t[1], [rest[2] - t[2]]])
                for _, s, *t in true
            ]
            j = min(range(len(true)), key=lambda j: np.linalg.norm(gaps[j]))
            cells[j].append((math.exp(b), gaps[j]))
        d = len(shift)
        for members in cells:
            r = {0: 0, 1: 1, 2: 4, 3: 6}.get(len(members), 7)
            for weight, gap in members:
                first, second = np.linalg.norm(gap[: d + 1]), np.linalg.norm(gap[d + 1 :])
                far.append(weight * (np.linalg.norm(gap) if r == 1 else first**r + second ** (r / 2)))
        masses = [sum(w for w, _ in members) for members in cells]
        for factor in [0.0] + [math.exp(b) / m for (b, *_), m in zip(true, masses, strict=True) if m > 0]:
            wrong = sum(abs(factor * m - math.exp(b)) for (b, *_), m in zip(true, masses, strict=True))
            least = min(least, factor * sum(far) + wrong)
    return least


@pytest.mark.parametrize("num_experts, dim", [(2, 1), (3, 1), (5, 2)])
def test_voronoi_loss_is_that_of_plain_loops(num_experts, dim):
    model, true = GaussianMoE(num_experts, dim), GaussianMoE(2, dim)
    theta, truth = 0.6 * normal(1, 7, model.num_parameters), 0.6 * normal(2, true.num_parameters)
    loss = SoftmaxVoronoiLoss()(model.measure(theta), true.measure(truth))
    assert loss.shape == (7,)
    for k in range(7):
        assert float(loss[k]) == pytest.approx(plain_loss(atoms(model, theta[k]), atoms(true, truth)), rel=1e-10)


def test_voronoi_loss_does_not_see_labels_or_the_pinned_expert():
    model = GaussianMoE(3, 2)
    theta, true = normal(1, 5, model.num_parameters), GaussianMoE(2, 2).measure(normal(2, 11))
    loss = SoftmaxVoronoiLoss()(model.measure(theta), true)
    for order in itertools.permutations(range(3)):
        moved = model.measure(model.relabel(theta, order))
        assert torch.allclose(SoftmaxVoronoiLoss()(moved, true), loss, rtol=1e-9)
    same = model.relabel(theta, (1, 2, 0))
    for k in range(5):
        assert float(SoftmaxVoronoiLoss()(model.measure(same[k]), model.measure(theta[k]))) < 1e-12


def test_voronoi_loss_of_a_split_expert_has_its_own_power():
    """A true expert in two halves, its intercepts apart by 2 t: D = w t^4; slopes apart: D = w t^2."""
    blocks = TWO.unflatten(TRUTH)
    three = GaussianMoE(3, 1)
    half = torch.tensor([[math.log(0.5), 0.0]], dtype=torch.float64)
    for column, power in ((0, 4), (1, 2)):
        losses = []
        for t in (0.02, 0.04):
            gap = torch.zeros(1, 2, dtype=torch.float64)
            gap[0, column] = t
            mean = torch.cat([blocks["mean"][:1], blocks["mean"][1:] + gap, blocks["mean"][1:] - gap])
            gate = torch.cat([blocks["gate"] - half, torch.zeros_like(half)])  # the last half is pinned
            theta = three.flatten({"gate": gate, "mean": mean, "log_sd": blocks["log_sd"][[0, 1, 1]]})
            losses.append(float(SoftmaxVoronoiLoss()(measure(theta, 3), measure(TRUTH))))
        assert losses[1] / losses[0] == pytest.approx(2**power, rel=0.05)


def test_a_failed_fit_has_no_loss():
    theta = torch.stack([TRUTH, torch.full_like(TRUTH, torch.nan)])
    loss = SoftmaxVoronoiLoss()(measure(theta), measure(TRUTH))
    assert float(loss[0]) < 1e-12 and math.isnan(loss[1])


def test_voronoi_loss_is_of_gaussian_experts():
    other = MixingMeasure(torch.zeros(2), {"p": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="Gaussian mixtures of experts: got atoms of p"):
        SoftmaxVoronoiLoss()(other, other)


def test_hellinger_distance_is_scipys():
    """One expert against one: the closed form for two Gaussians, averaged over x; two against two: by integration."""
    one = GaussianMoE(1, 1)
    theta, true = (torch.tensor(t, dtype=torch.float64) for t in ([0.2, 1.0, -0.3], [0.0, 0.7, 0.1]))
    distance = HellingerDistance(one, true, Uniform(-1.0, 1.0, 1))
    s, s_0 = math.exp(-0.3), math.exp(0.1)

    def squared(x: float) -> float:
        gap = 0.2 + 0.3 * x
        return 1 - math.sqrt(2 * s * s_0 / (s**2 + s_0**2)) * math.exp(-0.25 * gap**2 / (s**2 + s_0**2))

    expected = integrate.quad(squared, -1, 1)[0] / 2
    assert float(distance(one, theta[None])[0]) ** 2 == pytest.approx(expected, rel=1e-6)

    other = TRUTH + 0.3 * normal(3, 8)
    got = HellingerDistance(TWO, TRUTH, EvenGrid())(TWO, torch.stack([other, TRUTH]))

    y = np.linspace(-8, 9, 4001)
    points, weights = np.polynomial.legendre.leggauss(40)

    def roots(theta: np.ndarray, x: float) -> np.ndarray:
        gate = 1 / (1 + math.exp(-theta[0] - theta[1] * x))
        one, two = (stats.norm.pdf(y, theta[k] + theta[k + 1] * x, math.exp(theta[6 + k // 4])) for k in (2, 4))
        return np.sqrt(gate * one + (1 - gate) * two)

    expected = sum(
        w / 4 * integrate.simpson((roots(other.numpy(), (u + 1) / 2) - roots(TRUTH.numpy(), (u + 1) / 2)) ** 2, x=y)
        for u, w in zip(points, weights, strict=True)
    )
    assert float(got[0]) ** 2 == pytest.approx(expected, rel=1e-4) and float(got[1]) < 1e-7


def test_hellinger_distance_of_what_has_nothing_in_common_is_one():
    far = TRUTH.clone()
    far[[2, 4]] += 100.0
    assert float(HellingerDistance(TWO, TRUTH, EvenGrid())(TWO, far[None])[0]) == pytest.approx(1.0, abs=1e-6)


# ------------------------------------------------------------------------------------------------ bounds


def test_information_of_least_squares_is_known():
    """One expert: I = E (1, x)(1, x)' / sd^2 and 2; half a percent by 200,000 draws."""
    population = MixturePopulation(GaussianMoE(1, 2), torch.tensor([0.5, 1.0, -1.0, 0.3]).double(), Gaussian(2))
    expected = torch.diag(torch.tensor([math.exp(-0.6)] * 3 + [2.0], dtype=torch.float64))
    assert (fisher_information(population) - expected).abs().max() < 0.02


def test_bound_of_a_mean_is_known():
    """E|N(0, sd^2 / n)| = sd sqrt(2 / (pi n)), its median 0.674 sd / sqrt n."""
    population = MixturePopulation(GaussianMoE(1, 1), torch.tensor([0.5, 1.0, 0.3]).double(), Gaussian(1))
    errors = lambda theta: {"intercept": (theta[:, 0] - 0.5).abs()}  # noqa: E731
    sd = math.exp(0.3)
    assert bound_at(population, 400, errors)["intercept"] == pytest.approx(sd * math.sqrt(2 / math.pi) / 20, rel=0.05)
    assert bound_at(population, 400, errors, "median")["intercept"] == pytest.approx(sd * 0.6745 / 20, rel=0.06)


def test_power_law_of_a_power_is_itself():
    bounds = {n: 3.0 * n**-0.4 for n in (10, 100, 1000)}
    assert power_law(bounds) == pytest.approx((-0.4, 3.0)) and power_law(bounds, -0.4)[1] == pytest.approx(3.0)
    assert power_law(bounds, -0.5)[1] == pytest.approx(3.0 * 100**0.1)


# ----------------------------------------------------------------------------------------- whole studies


@dataclass(frozen=True)
class Approaching(Truth):
    """A prompt in the plane that comes near a frozen Laplace expert."""

    def at(self, n: int) -> MixturePopulation:
        first = torch.eye(2, dtype=torch.float64)[0]
        model = ContaminatedMoE(FrozenDensity("laplace", first, 0.01))
        return MixturePopulation(model, model.theta(0 * first, 0.5, -first * (1 + 10 / n), 0.02), Gaussian(2))


def contaminated_study() -> LikelihoodStudy:
    starts = Scattered({"gate": 1.0, "eta": 1.0, "log_sd": 0.5}, -0.7, count=6)
    slopes = {"approaching": {"beta_error": -0.5, "exp_tau_error": -0.5}}
    return LikelihoodStudy(
        name="small", claim="", truths={"approaching": Approaching()}, contenders={"ml": Contender(starts)},
        judge=ContaminatedJudge(slopes), sizes=(200, 400, 800), replicates=30, window=(200, 800),
    )  # fmt: skip


def gaussian_study() -> LikelihoodStudy:
    starts = Scattered({"gate": 2.0, "mean": 2.0, "log_sd": 0.3}, count=8)
    models = {"two": TWO, "three": GaussianMoE(3, 1)}
    estimator = ExpectationMaximization(box=20.0, least_sd=0.1)
    return LikelihoodStudy(
        name="small", claim="", truths={"two": Fixed(MixturePopulation(TWO, TRUTH, EvenGrid()))},
        contenders={name: Contender(starts, model, estimator) for name, model in models.items()},
        judge=SoftmaxGaussianJudge(nodes=32, values=256), sizes=(300, 900), replicates=20, window=(300, 900),
    )  # fmt: skip


def finished(study: LikelihoodStudy, folder: Path):
    results = Results(folder / "rows.sqlite", study.columns)
    assert run(study, results) == len(study.cells) * len(study.sizes) * study.replicates
    rows, notes = results.frame(study.key), results.notes(study.key)
    results.close()
    return rows, notes


def test_a_study_with_a_moving_truth_reaches_the_bound(tmp_path):
    """Mean errors over the drawn line at the largest size; 30 replicates, 5 standard errors of at most 0.15 each."""
    study = contaminated_study()
    rows, notes = finished(study, tmp_path)
    assert rows.converged.all() and not rows.missed.any() and (rows.offset < 1e-6).all()
    (cell,) = cells_of(study, rows, notes)
    assert [summary.name for summary in cell.summaries] == ["beta", "exp_tau"] and cell.ends.failed == 0
    assert all(abs(summary.over_prediction - 1) < 0.75 for summary in cell.summaries)
    row = rows[(rows.n == 400) & (rows.replicate == 3)].iloc[0]
    population = study.truths["approaching"].at(400)
    data = population.sample(400, [study.rng("approaching", 400, 3, 0)])
    at_truth = -float(population.model.log_density(population.theta[None], data.x, data.y).sum())
    assert row.objective_at_truth == pytest.approx(at_truth, rel=1e-12) and row.objective < at_truth


def test_judged_numbers_are_errors_of_the_named_parameters():
    study = contaminated_study()
    population = study.truths["approaching"].at(400)
    row = study.fit_batch("approaching", "ml", 400, (3, 5), None)[1]
    data = population.sample(400, [study.rng("approaching", 400, 5, 0)])
    starts = study.contenders["ml"].starts.draw(population.model, population, 400, study.rng("approaching", 400, 5, 1))
    theta = ExpectationMaximization().fit(population.model, data, starts[None]).theta[0].numpy()
    tau, beta, eta, nu = theta[0], theta[1:3], theta[3:5], math.exp(2 * theta[5])
    assert row["beta_error"] == pytest.approx(np.linalg.norm(beta), rel=1e-6)
    assert row["tau_error"] == pytest.approx(abs(tau - 0.5), rel=1e-6)
    assert row["exp_tau_error"] == pytest.approx(abs(math.exp(tau) - math.exp(0.5)), rel=1e-6)
    assert row["eta_error"] == pytest.approx(np.linalg.norm(eta - [-1.025, 0.0]), rel=1e-6)
    assert row["nu_error"] == pytest.approx(abs(nu - 0.02), rel=1e-6)


def test_exact_and_over_specified_cells(tmp_path):
    study = gaussian_study()
    rows, notes = finished(study, tmp_path)
    exact, over = (rows[rows.estimator == name] for name in ("two", "three"))
    assert rows.converged.all() and rows.voronoi_loss.notna().all() and not exact.missed.any()
    assert exact.gate_error.notna().all() and over.gate_error.isna().all()
    assert (over.sort_values(["n", "replicate"]).objective.values
            < exact.sort_values(["n", "replicate"]).objective.values + 1e-6).all()  # fmt: skip
    assert {"voronoi_loss_constant", "hellinger_constant"} <= set(notes["limits two two"])
    cells = {(s.cell.estimator, s.name): s for s in all_summaries(cells_of(study, rows, notes))}
    assert 0.7 < cells["two", "hellinger"].over_prediction < 1.4  # 20 replicates: standard error 0.07
    assert 0.5 < cells["two", "voronoi"].over_prediction < 2.0
    assert cells["three", "hellinger"].over_prediction is None


def test_parameter_errors_are_under_the_best_labels():
    population = MixturePopulation(TWO, TRUTH, EvenGrid())
    error = 0.01 * normal(4, 3, 8)
    swapped = TWO.relabel(TRUTH + error, (1, 0))
    fit = ExpectationMaximization(max_steps=0, box=99.0).fit(TWO, population.sample(50, rngs(3)), swapped[:, None])
    columns = SoftmaxGaussianJudge(16, 128).judge(population, fit, swapped)
    assert torch.allclose(columns["gate_error"], error[:, :2].norm(dim=1))
    assert torch.allclose(columns["mean_error"], error[:, 2:6].norm(dim=1))
    variances = (2 * (TRUTH + error)[:, 6:]).exp() - (2 * TRUTH[6:]).exp()
    assert torch.allclose(columns["variance_error"], variances.norm(dim=1))


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng((9, k)) for k in range(count)]


def test_failed_fits_are_counted(tmp_path):
    study = gaussian_study()
    hasty = Contender(study.contenders["two"].starts, TWO, ExpectationMaximization(max_steps=1))
    study = replace(study, contenders={"two": hasty}, replicates=4)
    rows, notes = finished(study, tmp_path)
    assert not rows.converged.any() and all(cell.ends.failed == 8 for cell in cells_of(study, rows, notes))


def test_rows_depend_on_content_and_not_on_what_is_said_of_it():
    study = contaminated_study()
    assert replace(study, judge=ContaminatedJudge({"approaching": {"nu_error": -1.0}})).key == study.key
    assert replace(study, sizes=(200, 400), replicates=3).key == study.key
    slower = replace(study.contenders["ml"], estimator=ExpectationMaximization(keep=1))
    assert replace(study, contenders={"ml": slower}).key != study.key and replace(study, seed=1).key != study.key


def test_too_small_a_sample_is_refused():
    with pytest.raises(InputError, match=r"estimator three has 13 parameters on two and needs n >= 13; got n = 9"):
        replace(gaussian_study(), sizes=(9, 300, 900))


# ----------------------------------------------------------------------------------------- named studies

NAMED = {
    "contaminated": "contaminated",
    "softmax-gaussian": "softmax_gaussian",
    "softmax-gaussian-published": "softmax_gaussian_published",
}
KEYS = {
    "contaminated": "aeda8d48cab3fc88",
    "softmax-gaussian": "2527e220d17638c4",
    "softmax-gaussian-published": "3ebf84693bcc671d",
}


@pytest.fixture(scope="module", params=NAMED)
def named(request):
    return build(request.param)


def build(name: str) -> LikelihoodStudy:
    module = __import__(f"moe_prompt.studies.named.{NAMED[name]}", fromlist=["build"])
    return module.build()


def documented(name: str) -> str:
    return (Path(studies.__file__).parent / "named" / f"{NAMED[name]}.py").read_text().split('"""')[1]


def test_key_is_that_of_the_rows_computed_so_far(named):
    """Whoever means to change a study's content computes its rows again, and then changes this."""
    assert named.key == KEYS[named.name] and build(named.name).key == named.key


def test_cost_and_command_are_as_written(named):
    text = documented(named.name)
    fits = len(named.cells) * len(named.sizes) * named.replicates
    assert f"moe-prompt study run {named.name} " in text and re.search(r"Cost: +(\d+) fits", text)[1] == str(fits)


def test_settings_are_those_printed():
    """arXiv 2505.18455, section 4, and 2305.03288."""
    study = build("contaminated")
    assert (len(study.sizes), study.sizes[0], study.sizes[-1], study.replicates) == (20, 1000, 100_000, 40)
    for n in (1000, 100_000):
        d = n**-0.125
        for truth, kind, eta, nu in (
            ("laplace", "laplace", -1.0, 0.001),
            ("near", "gaussian", 1 + d, 0.001),
            ("opposite", "gaussian", -1.0, 0.001 * (1 + d)),
        ):
            population = study.truths[truth].at(n)
            found = population.model.named(population.theta)
            assert population.model.frozen.kind == kind and population.model.frozen.variance == 0.001
            assert found["beta"].tolist() == pytest.approx([8**-0.5] * 8) and float(found["tau"]) == 1.0
            assert found["eta"].tolist() == pytest.approx([eta] + [0.0] * 7)
            assert float(found["nu"]) == pytest.approx(nu)
    for name in ("softmax-gaussian", "softmax-gaussian-published"):
        study = build(name)
        theta = study.truths["two"].at(100).theta
        assert theta[:6].tolist() == [-8, 25, 15, -20, -5, 20]
        assert theta[6:].exp().tolist() == pytest.approx([0.3, 0.4])
        assert (study.sizes[0], study.sizes[-1], study.replicates) == (100, 100_000, 40)
        assert isinstance(study.truths["two"].at(100).covariates, EvenGrid)


def test_published_and_our_fits_see_the_same_data():
    ours, published = build("softmax-gaussian"), build("softmax-gaussian-published")
    assert (
        ours.sizes == published.sizes
        and ours.rng("two", 100, 3, 0).random() == published.rng("two", 100, 3, 0).random()
    )


@pytest.mark.parametrize("truth", ["near", "near, flat gate", "opposite", "laplace"])
def test_predicted_exponents_are_those_of_the_bound(truth):
    """Two percent by sampling."""
    study = build("contaminated")
    limits = study.limits(truth, "ml").to_dict()
    for quantity in study.quantities(truth, "ml"):
        assert limits[f"{quantity.name}_bound_slope"] == pytest.approx(quantity.slope, abs=0.02)


def test_one_batch_of_each_named_study(named):
    """Fits end, and none misses the maximum where the family is the truth's."""
    n = named.sizes[1]
    for truth, estimator in named.cells:
        for row in named.fit_batch(truth, estimator, n, (0, 1), None):
            assert row["converged"] and not row["missed"] and set(named.columns) <= set(row)
            assert row["objective"] <= row["objective_at_truth"]
