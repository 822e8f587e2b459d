"""Cells of planted rows, against plain loops."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from moe_prompt.studies.analysis.captions import caption, counts
from moe_prompt.studies.analysis.cells import Ends, all_summaries, cells_of
from moe_prompt.studies.analysis.rate_fit import fit_rate
from moe_prompt.studies.analysis.tables import cells_table
from tests.builders.planted_over import over, planted_over
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study

ROWS, OVER = planted_rows(study), planted_over()


def summarize(of, rows, notes):
    return all_summaries(cells_of(of, rows, notes))


def summary(truth, estimator, loss, rows=ROWS, notes=NOTES):
    (cell,) = [c for c in cells_of(study, rows, notes) if (c.truth, c.estimator) == (truth, estimator)]
    return cell[loss]


def changed(where: pd.Series, **values) -> pd.DataFrame:
    rows = ROWS.copy()
    for name, value in values.items():
        rows.loc[where, name] = value(rows.loc[where, name]) if callable(value) else value
    return rows


def test_a_summary_for_every_loss_of_every_cell():
    found = [(s.cell.truth, s.cell.estimator, s.name, s.quantity.slope) for s in summarize(study, ROWS, NOTES)]
    assert sorted(found, key=lambda f: f[:3]) == [
        ("vapt", "vapt", "excess_risk", -1.0),
        ("vapt", "vapt", "parameter", -0.5),
        ("vapt", "vpt", "excess_risk", None),
        ("vpt", "vapt", "excess_risk", None),
        ("vpt", "vpt", "excess_risk", -1.0),
        ("vpt", "vpt", "parameter", -0.5),
    ]
    assert cells_of(study, ROWS[:0], NOTES) == ()
    with pytest.raises(KeyError):
        summary("vpt", "vapt", "parameter")


def test_cells_know_their_kind_their_limits_and_their_rows():
    for cell in cells_of(study, ROWS, NOTES):
        assert cell.relation.exact == (cell.truth == cell.estimator) != cell.relation.misspecified
        assert cell.limits == NOTES[f"limits {cell.truth} {cell.estimator}"] and len(cell.rows) == 15
        assert cell.title == f"{cell.estimator} fitted to {cell.truth} data"
    extras = [(c.relation.true_atoms, c.relation.fitted_atoms, c.relation.extra) for c in cells_of(over, OVER, {})]
    assert extras == [(1, 2, 1), (2, 3, 1), (1, 2, 1), (1, 2, 1)]


@pytest.mark.parametrize("loss, column", [("parameter", "parameter_loss"), ("excess_risk", "excess_risk")])
def test_numbers_of_a_matched_cell(loss, column):
    found = summary("vapt", "vapt", loss)
    own = [row for _, row in ROWS.iterrows() if row.truth == row.estimator == "vapt"]
    errors = {n: np.array([row[column] for row in own if row.n == n]) for n in study.sizes}
    for statistic, ours in (("mean", found.mean_fit), ("median", found.median_fit)):
        fit = fit_rate(errors, study.window, statistic)
        assert (ours.slope, ours.stderr) == pytest.approx((fit.slope, fit.stderr), rel=1e-9)
    assert (found.slope, found.stderr) == (found.mean_fit.slope, found.mean_fit.stderr)
    last = [row for row in own if row.n == 157]
    assert found.last.efficiency == pytest.approx(sum(row.efficiency for row in last) / 5, rel=1e-12)
    assert found.last.efficiency_stderr == pytest.approx(math.sqrt(2 / (5 * 5)), rel=1e-12)
    constant = {"parameter": 11.0 * 157**-0.5, "excess_risk": 7.0 / 157}[loss]
    assert found.over_prediction == pytest.approx(sum(row[column] for row in last) / 5 / constant, rel=1e-12)
    assert (found.cell.floor, found.over_floor, found.cell.projection) == (None, None, None)
    assert found.cell.ends == Ends(fits=15, failed=0, at_boundary=0, missed=0)
    for entry, n in zip(found.by_size, study.sizes, strict=True):
        ordered = sorted(errors[n])
        assert (entry.n, entry.fits) == (n, 5) and entry.median == pytest.approx(ordered[2], rel=1e-12)
        assert entry.mean == pytest.approx(sum(ordered) / 5, rel=1e-12)
        assert entry.quantile_10 == pytest.approx(ordered[0] + 0.4 * (ordered[1] - ordered[0]), rel=1e-12)
        assert entry.quantile_90 == pytest.approx(ordered[4] - 0.4 * (ordered[4] - ordered[3]), rel=1e-12)
        assert entry.mse_over_bound is None


def test_mean_squared_error_over_its_bound():
    notes = NOTES | {"limits vpt vpt": NOTES["limits vpt vpt"] | {"squared_error_constant": 0.25}}
    found = summary("vpt", "vpt", "parameter", notes=notes).by_size[1]
    own = ROWS[(ROWS.truth == "vpt") & (ROWS.estimator == "vpt") & (ROWS.n == 61)].squared_error
    assert found.mse_over_bound == pytest.approx(61 * sum(own) / 5 / 0.25, rel=1e-12)


def test_numbers_of_a_mismatched_cell():
    found = summary("vpt", "vapt", "excess_risk")
    projection = found.cell.projection
    assert found.cell.floor == 0.23 and found.over_floor == pytest.approx(1.01, rel=1e-9)
    assert abs(found.slope) < 1e-9 and abs(projection.slope + 1) < 5 * projection.stderr
    assert all(entry.efficiency is entry.efficiency_stderr is None for entry in found.by_size)


def test_failures_are_counted_where_they_are():
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vpt")
    rows = changed(own & (ROWS.replicate == 0), converged=0)
    rows.loc[own & (ROWS.replicate == 1) & (ROWS.n == 61), ["objective", "excess_risk", "parameter_loss"]] = np.inf
    rows.loc[own & (ROWS.replicate > 2), "at_boundary"] = 1
    rows.loc[own & (ROWS.n == 23), "missed"] = 1
    rows.loc[(ROWS.truth == "vapt") & (ROWS.estimator == "vpt") & (ROWS.n == 23), "at_boundary"] = 1
    assert summary("vpt", "vpt", "parameter", rows).cell.ends == Ends(fits=15, failed=4, at_boundary=6, missed=5)
    assert summary("vapt", "vpt", "excess_risk", rows).cell.ends == Ends(15, 0, 5, None)
    numbers = [int(word) for word in re.findall(r"[\d]+", counts(cells_of(study, rows, NOTES)))]
    assert numbers[:4] == [60, 4, 11, 5]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_json_is_strict_whatever_failed(bad):
    """A whole size, and a whole cell, without a number."""
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vpt")
    names = ["excess_risk", "parameter_loss", "efficiency", "squared_error", "start_excess_risk", "objective"]
    for where in (own & (ROWS.n == 157), own, ROWS.n > 0):
        rows = ROWS.copy()
        rows.loc[where, names] = bad
        cells = cells_of(study, rows, NOTES)
        told = [found.to_dict() for found in all_summaries(cells)]
        assert json.loads(json.dumps(told, allow_nan=False))[0]["by_size"][-1]["mean"] is None
        assert cells_table(cells) and isinstance(caption(study, cells), str)
