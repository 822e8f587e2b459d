"""The runner on linear least squares, whose every number is known; rows the same whoever computes them, and when."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from moe_prompt.attention.prompts import PromptExpert, PromptTokens
from moe_prompt.errors import InputError
from moe_prompt.estimation.base import Estimator
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.analysis.cells import cells_of
from moe_prompt.studies.analysis.rate_fit import errors_by_size, fit_rate
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.running import runner
from moe_prompt.studies.running.database import KEY, Results
from tests.builders.small_study import study

COORDINATES = list(KEY[1:])


def compute(study: RateStudy, folder, **options) -> pd.DataFrame:
    results = Results(folder / "rows.sqlite", RateStudy.columns)
    runner.run(study, results, **options)
    frame = results.frame(study.key)
    results.close()
    return frame


def assert_same_rows(some: pd.DataFrame, whole: pd.DataFrame) -> None:
    """Every row of `some` is in `whole`, to 1e-8, whatever the order and the time that it took."""
    ours, theirs = (f.set_index(COORDINATES).drop(columns="cpu_seconds").sort_index() for f in (some, whole))
    assert ours.index.is_unique and theirs.index.is_unique
    pd.testing.assert_frame_equal(ours, theirs.loc[ours.index], check_dtype=False, rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return compute(study, tmp_path_factory.mktemp("undisturbed"))


# --------------------------------------------------------------------------------- linear least squares


class FixedKey(PromptExpert):
    """A prompt whose key is known: with the gating bias off, f is linear in what is left, the value."""

    def __init__(self):
        super().__init__()
        self.register_buffer("key", torch.tensor([[0.7, -0.4]], dtype=torch.float64))
        self.value = nn.Parameter(torch.zeros(1, 2))

    def forward(self, tokens):
        batch = tokens.shape[:-2]
        return PromptTokens(self.key.expand(*batch, 1, 2), self.value.expand(*batch, 1, 2))


LOW, HIGH, NOISE, OUTPUTS, TRUE = -1.0, 2.0, 0.3, 3, (0.9, -1.7)


@pytest.fixture(scope="module")
def linear():
    rng = np.random.default_rng(11)
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape))  # noqa: E731
    frozen = FrozenExperts.random(2, 2, OUTPUTS, rng)
    model = RegressionModel(frozen, FixedKey(), draw(2, 2), draw(OUTPUTS, 2), gating_bias=False)
    truth = Population(model, torch.tensor(TRUE, dtype=torch.float64), Uniform(LOW, HIGH, 2), NOISE)
    return RateStudy(
        name="linear",
        claim="least squares as Gauss knew it",
        truths={"ols": truth},
        contenders={"ols": model},
        sizes=(31, 101, 307, 907),
        replicates=101,
        window=(31, 907),
        estimator=LeastSquares(tolerance=1e-11),
        starts=Random(count=2),
        nodes=31**2,
    )


def design(model: RegressionModel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f = offset + Z value at every x, by loops over samples: offset (n, o), Z (n, o, 2)."""
    f, key = model.frozen, model.expert.key.numpy()[0]
    offsets, slopes = [], []
    for point in x:
        scores = [float(point @ a.numpy() @ point + c) for a, c in zip(f.quadratic, f.constant, strict=True)]
        masses = [math.exp(s) for s in scores]
        prompt = math.exp(float((model.key_map.numpy() @ key) @ point))
        total = sum(masses) + prompt
        offsets.append(sum(m / total * (eta.numpy() @ point) for m, eta in zip(masses, f.values, strict=True)))
        slopes.append(prompt / total * model.value_map.numpy())
    return np.array(offsets), np.array(slopes)


@pytest.fixture(scope="module")
def linear_rows(linear, tmp_path_factory):
    return compute(linear, tmp_path_factory.mktemp("linear"))


def test_rows_of_a_linear_model_are_those_of_the_normal_equations(linear, linear_rows):
    model, true = linear.contenders["ols"], np.array(TRUE)
    side = LOW + (HIGH - LOW) * (np.arange(60) + 0.5) / 60  # midpoints: an error of 1e-4, not Gauss's rule
    _, grid = design(model, np.array([(a, b) for a in side for b in side]))
    gram = np.einsum("nov,now->vw", grid, grid) / len(grid)  # E J'J
    for n, replicate in ((31, 0), (101, 97), (307, 5)):
        rng = linear.rng("ols", n, replicate, 0)
        x = rng.uniform(LOW, HIGH, (n, 2))
        offset, z = design(model, x)
        y = offset + z @ true + NOISE * rng.standard_normal((n, OUTPUTS))
        flat, left = z.reshape(-1, 2), (y - offset).ravel()
        value = np.linalg.lstsq(flat, left, rcond=None)[0]
        error = value - true
        row = linear_rows[(linear_rows.n == n) & (linear_rows.replicate == replicate)].iloc[0]
        assert row.squared_error == pytest.approx(error @ error, rel=1e-8)
        assert row.parameter_loss == pytest.approx(math.sqrt(error @ error), rel=1e-8)  # the only atom has mass one
        assert row.objective == pytest.approx(0.5 * np.sum((left - flat @ value) ** 2), rel=1e-10)
        assert row.objective_at_truth == pytest.approx(0.5 * np.sum((left - flat @ true) ** 2), rel=1e-10)
        assert row.excess_risk == pytest.approx(error @ gram @ error, rel=1e-3)
        assert row.efficiency == pytest.approx(n * error @ gram @ error / (2 * NOISE**2), rel=1e-3)
        start = linear.rng("ols", n, replicate, 1).standard_normal((2, 2))[0] - true
        assert row.start_parameter_loss == pytest.approx(math.sqrt(start @ start), rel=1e-12)
        assert row.start_excess_risk == pytest.approx(start @ gram @ start, rel=1e-3)
        assert (row.converged, row.missed, row.at_boundary, row.message) == (1, 0, 0, "converged")


def test_linear_least_squares_has_its_rate_and_is_efficient(linear, linear_rows):
    """Four standard errors, 6e-5 each; n J'J scatters about n I, which costs less than 1 % at n = 907."""
    assert len(linear_rows) == 404 and linear_rows.missed.sum() == 0
    for column, rate in (("parameter_loss", -0.5), ("excess_risk", -1.0)):
        fit = fit_rate(errors_by_size(linear_rows, column), linear.window)
        assert abs(fit.slope - rate) < 4 * fit.stderr and fit.stderr < 0.06
    parameter = cells_of(linear, linear_rows, {"limits ols ols": {"parameters": 2}})[0].summaries[0].last
    error = math.sqrt(2 / (2 * 101))  # n e'Ie / s^2 is chi-squared with two degrees of freedom
    assert parameter.efficiency_stderr == pytest.approx(error, rel=1e-12)
    assert abs(parameter.efficiency - 1) < 4 * error + 0.01
    assert np.var(linear_rows[linear_rows.n == 907].efficiency) == pytest.approx(1, abs=4 * math.sqrt(8 / 101))


# ------------------------------------------------------------------------------- rows that do not move


def test_every_coordinate_is_there_once(rows):
    expected = [(t, e, n, r) for t in study.truths for e in study.contenders for n in study.sizes for r in range(5)]
    assert sorted(map(tuple, rows[COORDINATES].to_numpy().tolist())) == sorted(expected)
    matched = rows.truth == rows.estimator
    for name in ("parameter_loss", "efficiency", "squared_error", "start_parameter_loss", "missed"):
        assert rows[name].notna().equals(matched)
    assert rows.projection_risk.notna().equals(~matched)
    assert (rows.excess_risk > 0).all() and rows.excess_risk[matched].max() < rows.excess_risk[~matched].max()


def test_processes_change_nothing(rows, tmp_path):
    assert_same_rows(compute(study, tmp_path, jobs=2), rows)


def test_dask_changes_nothing(rows, tmp_path):
    pytest.importorskip("distributed")
    assert_same_rows(compute(study, tmp_path, dask="local"), rows)


@pytest.mark.parametrize("samples", [1, 100])
def test_batches_change_nothing(rows, tmp_path, monkeypatch, samples):
    """A fit a batch; and batches of four, one and one, which are cut at the same replicates after a restart."""
    monkeypatch.setattr(runner, "BATCH_SAMPLES", samples)
    sizes = {len(batch.replicates) for batch in runner.missing_batches(study, set())}
    assert sizes == ({1} if samples == 1 else {4, 1})
    assert_same_rows(compute(study, tmp_path), rows)


def test_another_size_and_replicate_change_nothing(rows, tmp_path):
    more = replace(study, sizes=(23, 61, 89, 157), replicates=7)
    whole = compute(more, tmp_path)
    assert len(whole) == 4 * 4 * 7
    assert_same_rows(rows, whole)


def test_order_of_truths_and_estimators_changes_nothing(rows, tmp_path):
    backwards = [dict(reversed(part.items())) for part in (study.truths, study.contenders)]
    turned = replace(study, truths=backwards[0], contenders=backwards[1])
    assert turned.key == study.key
    assert_same_rows(compute(turned, tmp_path), rows)


def test_quick_rows_are_among_the_rows(rows, tmp_path):
    quick = compute(study.quick(), tmp_path)
    assert len(quick) == 4 * 2 * 3
    assert_same_rows(quick, rows)


def test_estimators_see_the_same_data(rows):
    """Cells of one truth share their samples: the truth's own misfit is the same in all of them."""
    at_truth = rows.set_index(COORDINATES).objective_at_truth.unstack("estimator")
    assert at_truth.nunique(axis=1).eq(1).all() and at_truth.vpt.nunique() == len(at_truth)


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch):
    results = Results(tmp_path / "rows.sqlite", RateStudy.columns)
    assert runner.run(study.quick(), results) == 24
    before = results.connection.execute("SELECT rowid, * FROM fits ORDER BY rowid").fetchall()
    asked = []
    fit_batch = runner.fit_batch
    monkeypatch.setattr(
        runner, "fit_batch", lambda s, limits, batch: asked.append(batch) or fit_batch(s, limits, batch)
    )
    assert runner.run(study, results) == 60 - 24
    assert sum(len(batch.replicates) for batch in asked) == 36
    assert results.connection.execute("SELECT rowid, * FROM fits ORDER BY rowid").fetchall()[:24] == before
    assert runner.run(study, results) == 0
    results.close()


def test_missing_batches_are_what_is_missing(monkeypatch):
    monkeypatch.setattr(runner, "BATCH_SAMPLES", 2 * 61)
    every = {(t, e, n, r) for t in study.truths for e in study.contenders for n in study.sizes for r in range(5)}
    done = {place for k, place in enumerate(sorted(every)) if k % 3 == 0}
    batches = runner.missing_batches(study, done)
    found = [(b.truth, b.estimator, b.n, r) for b in batches for r in b.replicates]
    assert len(found) == len(set(found)) and set(found) == every - done
    assert [b.cost for b in batches] == sorted((b.cost for b in batches), reverse=True)
    assert all(len({r // 2 for r in b.replicates}) == 1 for b in batches if b.n == 61)
    assert runner.missing_batches(study, every) == []


def test_progress_ends_at_the_whole(tmp_path):
    heard = []
    compute(study.quick(), tmp_path, progress=lambda *numbers: heard.append(numbers))
    fits, cost, total = (list(column) for column in zip(*heard, strict=True))
    assert fits[0] == 0 and fits[-1] == 24 and cost[-1] == pytest.approx(total[0])
    assert fits == sorted(fits) and cost == sorted(cost) and len(set(total)) == 1


def test_progress_is_heard_before_limits_and_after(tmp_path, monkeypatch):
    """Those may take minutes; the time that is left counts from their end."""
    heard, limits, told = [], RateStudy.limits, []
    monkeypatch.setattr(RateStudy, "limits", lambda *cell: told.append(len(heard)) or limits(*cell))
    compute(study.quick(), tmp_path, progress=lambda *numbers: heard.append(numbers))
    assert told == [1] * 4 and heard[0] == heard[1] == (0, 0.0, heard[-1][2]) and heard[2][0] > 0


def test_limits_and_runs_are_noted(tmp_path):
    results = Results(tmp_path / "rows.sqlite", RateStudy.columns)
    runner.run(study.quick(), results)
    notes = results.notes(study.key)
    results.close()
    assert {f"limits {t} {e}" for t in study.truths for e in study.contenders} < set(notes)
    assert notes["limits vpt vpt"]["parameters"] == 3 and notes["limits vpt vapt"]["floor"] > 0
    (log,) = [value for name, value in notes.items() if name.startswith("run ")]
    assert log["fits"] == 24 and log["jobs"] == 1


# ---------------------------------------------------------------------------------------- fits that fail


@dataclass(frozen=True)
class Lame(Estimator):
    """Gives up on the second replicate of every batch, and returns the start of the third."""

    def fit(self, model, data, starts):
        fit = LeastSquares().fit(model, data, starts)
        theta, objective, converged = fit.theta.clone(), fit.objective.clone(), fit.converged.clone()
        theta[1], objective[1], converged[1] = torch.nan, torch.inf, False
        theta[2], objective[2] = starts[2, 0], 1e6
        return replace(fit, theta=theta, objective=objective, converged=converged)


def test_failed_and_missed_fits_are_rows(tmp_path):
    lame = replace(study.quick(), estimator=Lame())
    found = compute(lame, tmp_path)
    assert len(found) == 24
    failed = found.replicate == 1
    assert (found.converged == 0).equals(failed) and found.excess_risk.isna().equals(failed)
    assert np.isinf(found.objective[failed]).all()
    matched = found[found.truth == found.estimator]
    assert matched[matched.replicate == 2].missed.eq(1).all() and matched[matched.replicate == 0].missed.eq(0).all()
    cells = cells_of(lame, found, {})
    assert [cell.ends.failed for cell in cells] == [2] * len(cells)
    assert [cell.ends.missed for cell in cells if cell.relation.exact] == [4] * 2  # a failed fit is no minimum either


def test_no_scheduler_is_a_sentence(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="no Dask scheduler at 'nowhere:x'"):
        compute(study, tmp_path, dask="nowhere:x")
