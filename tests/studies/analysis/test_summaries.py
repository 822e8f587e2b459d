"""Findings from planted rows, against plain loops; sentences that say what the rows say and nothing more."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.rate_fit import fit_rate
from moe_prompt.studies.analysis.summaries import summarize, table
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study

ROWS = planted_rows(study)
VERDICT = "Each method learns at the parametric rate in its own model"


def cell(cells, truth, estimator, loss):
    (found,) = [c for c in cells if (c.truth, c.estimator, c.loss) == (truth, estimator, loss)]
    return found


def changed(where: pd.Series, **values) -> pd.DataFrame:
    rows = ROWS.copy()
    for name, value in values.items():
        rows.loc[where, name] = value(rows.loc[where, name]) if callable(value) else value
    return rows


def said(rows: pd.DataFrame, notes=NOTES) -> str:
    return caption(study, summarize(study, rows, notes))


def test_a_cell_for_every_loss_that_it_has():
    found = [(c.truth, c.estimator, c.loss, c.predicted_slope) for c in summarize(study, ROWS, NOTES)]
    assert sorted(found, key=lambda f: f[:3]) == [
        ("vapt", "vapt", "excess_risk", -1.0),
        ("vapt", "vapt", "parameter", -0.5),
        ("vapt", "vpt", "excess_risk", None),
        ("vpt", "vapt", "excess_risk", None),
        ("vpt", "vpt", "excess_risk", -1.0),
        ("vpt", "vpt", "parameter", -0.5),
    ]
    assert summarize(study, ROWS[:0], NOTES) == []
    assert all(c.matched == (c.truth == c.estimator) for c in summarize(study, ROWS, {}))


@pytest.mark.parametrize("loss, column", [("parameter", "parameter_loss"), ("excess_risk", "excess_risk")])
def test_numbers_of_a_matched_cell(loss, column):
    found = cell(summarize(study, ROWS, NOTES), "vapt", "vapt", loss)
    own = [row for _, row in ROWS.iterrows() if row.truth == row.estimator == "vapt"]
    errors = {n: np.array([row[column] for row in own if row.n == n]) for n in study.sizes}
    for statistic, slope, error in (
        ("mean", found.slope, found.stderr),
        ("median", found.median_slope, found.median_stderr),
    ):
        fit = fit_rate(errors, study.window, statistic)
        assert (slope, error) == pytest.approx((fit.slope, fit.stderr), rel=1e-9)
    last = [row for row in own if row.n == 157]
    assert found.efficiency == pytest.approx(sum(row.efficiency for row in last) / 5, rel=1e-12)
    assert found.efficiency_stderr == pytest.approx(math.sqrt(2 / (5 * 5)), rel=1e-12)
    assert (found.leverage, found.floor, found.risk_over_floor, found.projection_slope) == (13.0, None, None, None)
    assert (found.fits, found.failed, found.at_boundary, found.missed) == (15, 0, 0, 0)
    for entry, n in zip(found.by_size, study.sizes, strict=True):
        ordered = sorted(errors[n])
        assert (entry["n"], entry["fits"]) == (n, 5) and entry["median"] == pytest.approx(ordered[2], rel=1e-12)
        assert entry["mean"] == pytest.approx(sum(ordered) / 5, rel=1e-12)
        assert entry["quantile_10"] == pytest.approx(ordered[0] + 0.4 * (ordered[1] - ordered[0]), rel=1e-12)
        assert entry["quantile_90"] == pytest.approx(ordered[4] - 0.4 * (ordered[4] - ordered[3]), rel=1e-12)
        assert entry["mse_over_bound"] is None


def test_mean_squared_error_over_its_bound():
    notes = NOTES | {"limits vpt vpt": NOTES["limits vpt vpt"] | {"squared_error_constant": 0.25}}
    found = cell(summarize(study, ROWS, notes), "vpt", "vpt", "parameter").by_size[1]
    own = ROWS[(ROWS.truth == "vpt") & (ROWS.estimator == "vpt") & (ROWS.n == 61)].squared_error
    assert found["mse_over_bound"] == pytest.approx(61 * sum(own) / 5 / 0.25, rel=1e-12)


def test_numbers_of_a_mismatched_cell():
    found = cell(summarize(study, ROWS, NOTES), "vpt", "vapt", "excess_risk")
    assert found.floor == 0.23 and found.risk_over_floor == pytest.approx(1.01, rel=1e-9)
    assert abs(found.slope) < 1e-9 and abs(found.projection_slope + 1) < 5 * found.projection_stderr
    assert found.efficiency is found.efficiency_stderr is None
    assert all(entry["efficiency"] is None for entry in found.by_size)


def test_failures_are_counted_where_they_are():
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vpt")
    rows = changed(own & (ROWS.replicate == 0), converged=0)
    rows.loc[own & (ROWS.replicate == 1) & (ROWS.n == 61), ["objective", "excess_risk", "parameter_loss"]] = np.inf
    rows.loc[own & (ROWS.replicate > 2), "at_boundary"] = 1
    rows.loc[own & (ROWS.n == 23), "missed"] = 1
    rows.loc[(ROWS.truth == "vapt") & (ROWS.estimator == "vpt") & (ROWS.n == 23), "at_boundary"] = 1
    cells = summarize(study, rows, NOTES)
    for loss in ("parameter", "excess_risk"):
        found = cell(cells, "vpt", "vpt", loss)
        assert (found.fits, found.failed, found.at_boundary, found.missed) == (15, 4, 6, 5)
    other = cell(cells, "vapt", "vpt", "excess_risk")
    assert (other.failed, other.at_boundary, other.missed) == (0, 5, None)
    missed = "of the 30 whose family holds the truth missed"
    assert f"60 fits: 4 did not converge, 11 ended on the boundary of the parameter box, 5 {missed}" in said(rows)
    assert f"60 fits: 0 did not converge, 0 ended on the boundary of the parameter box, 0 {missed}" in said(ROWS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_json_is_strict_whatever_failed(bad):
    """A whole size, and a whole cell, without a number."""
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vpt")
    names = ["excess_risk", "parameter_loss", "efficiency", "squared_error", "start_excess_risk", "objective"]
    for where in (own & (ROWS.n == 157), own, ROWS.n > 0):
        rows = ROWS.copy()
        rows.loc[where, names] = bad
        cells = [found.to_dict() for found in summarize(study, rows, NOTES)]
        assert json.loads(json.dumps(cells, allow_nan=False))[0]["by_size"][-1]["mean"] is None
        assert caption(study, summarize(study, rows, NOTES)) and table(summarize(study, rows, NOTES))
    assert VERDICT not in said(changed(own, **dict.fromkeys(names, bad)))


# ---------------------------------------------------------------------------------------------- sentences


def test_caption_is_made_of_the_rows():
    cells = summarize(study, ROWS, NOTES)
    vapt, words = cell(cells, "vapt", "vapt", "parameter"), caption(study, cells)
    assert f"VAPT on data from VAPT: error ~ n^({vapt.slope:.3f} +- {vapt.stderr:.3f}), at n = 157" in words
    assert f"{vapt.efficiency:.2f} +- 0.28 times the Cramer-Rao bound." in words
    assert "VAPT on data from VPT: the excess risk is 1.010 times its floor of 0.23 at n = 157." in words
    own = (ROWS.truth == "vapt") & (ROWS.estimator == "vapt")
    moved = said(changed(own & (ROWS.n == 157), parameter_loss=lambda e: e / 2, efficiency=lambda e: 3 * e))
    assert f"{3 * vapt.efficiency:.2f} +- 0.28 times" in moved and f"n^({vapt.slope:.3f}" not in moved
    assert said(ROWS, NOTES | {"limits vpt vapt": {"floor": 0.2}}) != words


def test_verdict_when_rates_and_floors_are_reached():
    assert VERDICT in said(ROWS) and "difference of expressiveness, not of rate" in said(ROWS)
    assert VERDICT in said(planted_rows(study, over_floor=1.049))


@pytest.mark.parametrize("over", [1.051, 0.949, 2.0])
def test_no_verdict_away_from_the_floor(over):
    assert VERDICT not in said(planted_rows(study, over_floor=over))


@pytest.mark.parametrize("slope", [-0.25, -0.7])
def test_a_slope_off_the_prediction_is_said(slope):
    words = said(planted_rows(study, slope=slope))
    assert VERDICT not in words and "The slope of VPT and VAPT is more than three standard errors" in words


def test_three_standard_errors_decide():
    """One slope moved to 2.9 and 3.1 errors of the prediction: scaling errors by n^x moves the slope and no error."""
    found = cell(summarize(study, ROWS, NOTES), "vpt", "vpt", "parameter")
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vpt")
    for errors, expected in ((2.9, True), (3.1, False), (-2.9, True), (-3.1, False)):
        shift = -0.5 + errors * found.stderr - found.slope
        rows = changed(own, parameter_loss=ROWS.parameter_loss[own] * ROWS.n[own] ** shift)
        assert (VERDICT in said(rows)) == expected
        assert ("The slope of VPT is more than three standard errors" in said(rows)) != expected


@pytest.mark.parametrize("missing", [("vpt", "vpt"), ("vapt", "vapt"), ("vpt", "vapt"), "matched", "others"])
def test_no_verdict_before_every_cell_is_there(missing):
    same = ROWS.truth == ROWS.estimator
    gone = {"matched": same, "others": ~same}
    where = gone[missing] if isinstance(missing, str) else (ROWS.truth == missing[0]) & (ROWS.estimator == missing[1])
    assert VERDICT not in said(ROWS[~where])


def test_no_verdict_without_a_standard_error_or_a_floor():
    single = replace(study, replicates=1)
    rows = ROWS[ROWS.replicate == 0]
    cells = summarize(single, rows, NOTES)
    assert all(c.stderr is None and c.slope is not None for c in cells)
    assert VERDICT not in caption(single, cells) and "more than three" not in caption(single, cells)
    assert VERDICT not in said(ROWS, {})


def test_few_sizes_have_no_slope():
    words = said(ROWS[ROWS.n == 23])
    assert (
        "VPT on data from VPT: too few sizes in the window (23, 157), or too few replicates, for a slope." in words
        and VERDICT not in words
    )


def test_table_has_a_line_for_every_cell():
    cells = summarize(study, ROWS, NOTES)
    lines = table(cells).splitlines()
    assert len(lines) == 7 and len({len(line) for line in lines}) == 1
    for found, line in zip(cells, lines[1:], strict=True):
        assert f"{found.slope:.3f} +- {found.stderr:.3f}" in line and line.split()[:3] == [
            found.truth,
            found.estimator,
            found.loss,
        ]
        assert line.rstrip().endswith("0/15")
