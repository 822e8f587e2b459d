"""Over-specified studies: every judged number again by loops from the same fit; what is predicted, of which cell."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from moe_prompt.attention.prompts import ConstantPrompt
from moe_prompt.errors import InputError
from moe_prompt.measures.losses import VoronoiLoss
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.analysis.cells import cells_of
from moe_prompt.studies.base import DATA, STARTS
from moe_prompt.studies.running import runner
from moe_prompt.studies.running.database import Results
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.split_law import split_law
from tests.builders.small_over_specified import study
from tests.studies.running.test_runner import assert_same_rows
from tests.theory.test_split_law import jacobian_by_differences, split_by

N, REPLICATES = 211, (0, 1, 2)
CELLS = [("VPT, L = 1", "L' = 2"), ("VPT, L = 2", "L' = 3"), ("VAPT, L = 1", "L' = 2"), ("prefix, L = 1", "L' = 2")]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The study by the runner: its rows and notes."""
    results = Results(tmp_path_factory.mktemp("over") / "rows.sqlite", study.columns)
    assert runner.run(study, results, jobs=1) == 4 * 2 * 3
    found = results.frame(study.key), results.notes(study.key)
    results.close()
    return found


def refitted(truth: str, n: int = N):
    """The fit of a cell from its generators, and the data."""
    population = study.truths[truth]
    model = population.model.with_atoms(population.model.num_atoms + 1)
    data, starts = ([study.rng(truth, n, r, stream) for r in REPLICATES] for stream in (DATA, STARTS))
    data = population.sample(n, data)
    return study.estimator.fit(model, data, study.starts.starts(model, None, starts)), data


# ----------------------------------------------------------------------------------------------------- rows


def cell_moments(b, atoms, b_star, stars, labels) -> tuple[float, float]:
    """max_j t_j, and the drift of masses and first moments, when atom i belongs to true atom labels[i]."""
    splits, drift = [], 0.0
    for j, star in enumerate(stars):
        own = [i for i in range(len(b)) if labels[i] == j]
        splits.append(math.sqrt(sum(math.exp(b[i] - b_star[j]) * sum((atoms[i] - star) ** 2) for i in own)))
        drift += abs(sum(math.exp(b[i]) for i in own) - math.exp(b_star[j]))
        drift += math.sqrt(sum(sum(math.exp(b[i]) * (atoms[i] - star) for i in own) ** 2)) if own else 0.0
    return max(splits), drift


@pytest.mark.parametrize("truth", ["VPT, L = 1", "VPT, L = 2"])
def test_rows_are_the_fits_judged_again_by_loops(stored, truth):
    population, (fit, data) = study.truths[truth], refitted(truth)
    rows = stored[0]
    rows = rows[(rows.truth == truth) & (rows.n == N)].sort_values("replicate")
    count = population.model.num_atoms
    b_star, stars = population.theta[:count].numpy(), population.theta[count:].reshape(count, -1).numpy()
    points, weights = population.covariates.nodes(study.nodes)
    for r, (_, row) in zip(REPLICATES, rows.iterrows(), strict=True):
        b, atoms = fit.theta[r, : count + 1].numpy(), fit.theta[r, count + 1 :].reshape(count + 1, -1).numpy()
        near = [int(np.argmin([sum((atom - star) ** 2) for star in stars])) for atom in atoms]
        assert row.split_error == pytest.approx(cell_moments(b, atoms, b_star, stars, near)[0], rel=1e-6)
        ways = itertools.product(range(count), repeat=count + 1)
        least = min(cell_moments(b, atoms, b_star, stars, labels)[1] for labels in ways)
        assert row.first_moment_error == pytest.approx(least, rel=1e-6)
        apart = fit.model.mean(fit.theta[r], points) - population.model.mean(population.theta, points)
        square = sum(float(w) * float(d @ d) for w, d in zip(weights, apart, strict=True))
        assert row.function_error == pytest.approx(math.sqrt(square), rel=1e-6)
        assert row.least_mass == pytest.approx(min(math.exp(v) for v in b), rel=1e-6)
        at_truth = 0.5 * float((data.y[r] - population.model.mean(population.theta, data.x[r])).square().sum())
        at_fit = 0.5 * float((data.y[r] - fit.model.mean(fit.theta[r], data.x[r])).square().sum())
        assert row.objective_at_truth == pytest.approx(at_truth, rel=1e-9)
        assert row.objective == pytest.approx(at_fit, rel=1e-9) and row.missed == int(at_fit > at_truth)
        assert row.converged == 1 and row.escaped == bool(fit.escaped[r])


@pytest.mark.parametrize("truth", [truth for truth, _ in CELLS])
def test_the_loss_is_that_of_the_larger_family(stored, truth):
    """Up to its symmetry; without it VAPT's is another number somewhere."""
    population, (fit, _) = study.truths[truth], refitted(truth)
    rows = stored[0]
    rows = rows[(rows.truth == truth) & (rows.n == N)].sort_values("replicate")
    true = population.model.measure(population.theta)
    assert fit.model.num_atoms == population.model.num_atoms + 1
    np.testing.assert_allclose(rows.parameter_loss, VoronoiLoss(fit.model.symmetry)(fit.measure, true), rtol=1e-6)
    assert (rows.parameter_loss <= VoronoiLoss()(fit.measure, true).numpy() * (1 + 1e-9)).all()


def test_least_squares_beats_the_truth_and_finds_it(stored):
    """Planted: masses, moments and the function are near the truth's in every fit, whatever is split."""
    rows, _ = stored
    assert len(rows) == 24 and rows.converged.all() and not rows.missed.any()
    assert (rows.objective < rows.objective_at_truth).all()
    assert rows.function_error.max() < 0.1 and rows[rows.n == N].first_moment_error.median() < 0.3
    assert set(rows.escaped) <= {0, 1} and (rows.least_mass > math.exp(-3) - 1e-12).all()


def test_rows_do_not_depend_on_their_batch(stored):
    rows, _ = stored
    truth, estimator = CELLS[0]
    alone = study.fit_batch(truth, estimator, N, (2,), study.limits(truth, estimator))[0]
    (kept,) = rows[(rows.truth == truth) & (rows.n == N) & (rows.replicate == 2)].to_dict("records")
    for name in study.columns:
        assert alone[name] == pytest.approx(kept[name], rel=1e-7, abs=1e-10), name


def test_an_estimator_that_does_not_look_for_saddles():
    """Levenberg-Marquardt alone: nothing is known to have been escaped."""
    plain = replace(study, estimator=study.estimator.first)
    (row,) = plain.fit_batch(*CELLS[0], 67, (0,), study.limits(*CELLS[3]))
    assert row["escaped"] is False and set(plain.columns) <= set(row) and plain.key != study.key


# ----------------------------------------------------------------------------------- cells and predictions


def test_cells_name_the_number_of_atoms():
    assert list(study.cells) == CELLS
    assert [estimator for _, estimator in replace(study, extra=2).cells] == ["L' = 3", "L' = 4", "L' = 3", "L' = 3"]
    assert replace(study, extra=2).key != study.key
    assert replace(study, smooth=(), sizes=(67, 73), replicates=1, window=(67, 73)).key == study.key


def test_quantities_of_smooth_truths_and_of_the_others():
    names = ["D", "split", "moments", "function"]
    for truth, estimator in CELLS:
        found = study.quantities(truth, estimator)
        assert [quantity.name for quantity in found] == names and all(q.statistic == "mean" for q in found)
        smooth = truth in study.smooth
        assert [q.slope for q in found] == [-0.5 if smooth else None, -0.25 if smooth else None, -0.5, -0.5]
        assert [q.constant for q in found] == [f"{name}_constant" for name in ("loss", "split", "moment", "function")]


def test_limits_are_the_law_at_the_noise_of_the_truth(stored):
    """As JSON: sizes of splits by the root of the noise, the others by the noise; null where there is no law."""
    _, notes = stored
    for truth, estimator in CELLS:
        told = json.loads(json.dumps(notes[f"limits {truth} {estimator}"]))
        population = study.truths[truth]
        parameters = population.model.with_atoms(population.model.num_atoms + 1).num_parameters
        assert (told["parameters"], told["noise"]) == (parameters, 0.05)
        law = {name: told[name] for name in told if name not in ("parameters", "noise")}
        if truth == "prefix, L = 1":
            assert set(law.values()) == {None}
            continue
        one = split_law(LocalGeometry(population.model, population.theta, population.covariates.nodes(study.nodes)), 1)
        root = math.sqrt(0.05)
        assert law == pytest.approx(
            {
                "sigma_2": one.sigma_2,
                "split_constant": root * one.split,
                "joint_sigma_2": one.joint_sigma_2,
                "moment_constant": 0.05 * one.moments,
                "loss_constant": 0.05 * one.loss,
                "function_constant": 0.05 * one.function,
            }
        )


def test_summaries_divide_by_the_law(stored):
    rows, notes = stored
    (cell,) = [cell for cell in cells_of(study, rows, notes) if cell.truth == "VPT, L = 1"]
    limits = notes["limits VPT, L = 1 L' = 2"]
    own = rows[(rows.truth == "VPT, L = 1") & (rows.n == N)]
    for summary, constant, power in zip(
        cell.summaries, ("loss", "split", "moment", "function"), (-0.5, -0.25, -0.5, -0.5), strict=True
    ):
        expected = own[summary.quantity.column].sum() / 3 / (limits[f"{constant}_constant"] * N**power)
        assert summary.over_prediction == pytest.approx(expected, rel=1e-9)


def test_cost_grows_with_size_parameters_and_atoms():
    cost = study.cost(*CELLS[0], 100)
    assert cost < study.cost(*CELLS[0], 1000) and cost < study.cost(*CELLS[1], 100)
    assert cost < replace(study, extra=2).cost(*CELLS[0], 100)


def test_bad_studies_are_said():
    with pytest.raises(InputError, match="study small-over: over-specified means at least one atom more: got 0"):
        replace(study, extra=0)
    with pytest.raises(InputError, match="study small-over: no truths nobody to be smooth"):
        replace(study, smooth=("VPT, L = 1", "nobody"))


# ---------------------------------------------------------------------------------------------- the law


def test_fits_follow_the_law_on_the_line():
    """One VPT prompt in one dimension, fitted by two, with little noise e: every fit is where the law puts it.

    t^2 = <e, Q>_+ / |Q|^2, Q = e^b 1/2 d2W across the tangent space, inner products those of the fit's own sample;
    where <e, Q> < 0 nothing is split. The mean of |f_hat - f_*| is the law's within five standard errors, those of 60
    fits and of the law's 400 draws: a false alarm of 6e-7.
    """
    fits, n, noise = 60, 400, 1e-3
    rng = np.random.default_rng(0)
    maps = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((1, 1), (2, 1)))
    model = RegressionModel(FrozenExperts.random(1, 1, 2, rng), ConstantPrompt(1, 1), *maps)
    population = Population(model, torch.tensor([0.3, 1.1], dtype=torch.float64), Uniform(-2.0, 2.0, 1), noise)
    line = replace(study, truths={"line": population}, smooth=("line",), nodes=200)
    limits = line.limits("line", "L' = 2")
    rows = pd.DataFrame(line.fit_batch("line", "L' = 2", n, tuple(range(fits)), limits))
    assert rows.converged.all() and not rows.missed.any()
    data = population.sample(n, [line.rng("line", n, r, DATA) for r in range(fits)])
    gained = []
    for x, y in zip(data.x, data.y, strict=True):
        nodes = x, torch.full((n,), 1 / n, dtype=torch.float64)
        e = (y - model.mean(population.theta, x)).flatten().numpy() / math.sqrt(n)
        jacobian = jacobian_by_differences(model, population.theta, nodes)
        bent = split_by(model, population.theta, nodes, 0, torch.ones(1, dtype=torch.float64))
        q = bent - jacobian @ np.linalg.lstsq(jacobian, bent, rcond=None)[0]
        gained.append(e @ q / (q @ q))
    gained, squares = np.array(gained), rows.split_error.to_numpy() ** 2
    split = gained > 0.1 * gained.std()
    assert 15 < split.sum() < 45
    np.testing.assert_allclose(squares[split], gained[split], rtol=0.2, atol=0.05 * gained.std())
    assert squares[gained < 0].max() < 0.1 * gained.std()
    ratio = rows.function_error / (limits.function_constant / math.sqrt(n))
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() * math.sqrt(1 / fits + 1 / 400))


def test_the_runner_writes_the_same_rows_twice(stored, tmp_path):
    """A study of one of the cells, and once more: its rows are those among the others', and none is computed again."""
    results = Results(tmp_path / "again.sqlite", study.columns)
    one_cell = replace(study, truths={"VPT, L = 1": study.truths["VPT, L = 1"]}, smooth=("VPT, L = 1",))
    assert runner.run(one_cell, results, jobs=1) == 6 and runner.run(one_cell, results, jobs=1) == 0
    again = results.frame(one_cell.key)
    results.close()
    rows = stored[0]
    assert_same_rows(again.assign(study=study.key), rows[rows.truth == "VPT, L = 1"])
    assert again.offset.max() <= 1e-6
