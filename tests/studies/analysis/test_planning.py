"""Plans of planted rows against plain sums, and of a pilot against the run that it foretells."""

import json
import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest

from moe_prompt.errors import InputError
from moe_prompt.studies.analysis.cells import cells_of
from moe_prompt.studies.analysis.planning import plan_study, plan_text, seconds_per_fit
from moe_prompt.studies.analysis.rate_fit import errors_by_size, fit_rate
from moe_prompt.studies.base import Quantity
from moe_prompt.studies.running import runner
from moe_prompt.studies.running.database import Results
from moe_prompt.studies.running.pilot import pilot
from tests.builders.planted_rows import planted_rows
from tests.builders.small_study import study

MANY = replace(study, replicates=40)
ROWS = planted_rows(MANY)


def plan(of, rows, *words, **options):
    return plan_study(of, cells_of(of, rows, {}), *words, **options)


def test_every_slope_has_its_bootstrap_error():
    """40 replicates: 11 % for the formula's scatter and 5 % for the bootstrap, so 40 % is off once in a thousand."""
    found = plan(MANY, ROWS, set()).slopes
    assert len(found) == 6 and [s.width for s in found] == pytest.approx([3.92 * s.stderr for s in found])
    for slope in found:
        own = ROWS[(ROWS.truth == slope.truth) & (ROWS.estimator == slope.estimator)]
        column = {"parameter": "parameter_loss"}.get(slope.loss, slope.loss)
        actual = fit_rate(errors_by_size(own, column), study.window).stderr
        assert slope.stderr == pytest.approx(actual, rel=0.4, abs=1e-12)
        assert (slope.scatter > 0.05) == (slope.predicted_slope is not None) == (slope.truth == slope.estimator)


def test_fewer_replicates_are_planned_from_the_rows_of_many():
    """The standard error grows by sqrt(40 / 5), and 5 replicates have about that."""
    few, many = plan(study, ROWS, set()).slopes, plan(MANY, ROWS, set()).slopes
    assert [f.stderr for f in few] == pytest.approx([m.stderr * math.sqrt(8) for m in many], rel=1e-12)


def test_cost_is_measured_where_it_was_and_scaled_where_not():
    rows = ROWS[ROWS.n < 157].copy()
    places = zip(rows.truth, rows.estimator, rows.n, strict=True)
    rows["cpu_seconds"] = [2e-6 * study.cost(*place) for place in places]
    rows.loc[(rows.n == 23) & (rows.replicate >= 20), "cpu_seconds"] *= 3
    rows.loc[(rows.n == 23) & (rows.replicate < 4), "cpu_seconds"] *= 100  # a small batch, as of a pilot
    seconds = seconds_per_fit(study, cells_of(study, rows, {}))
    for truth, estimator in study.cells:
        unit = {n: 2e-6 * study.cost(truth, estimator, n) for n in study.sizes}
        small = unit[23] * (16 + 3 * 20) / 36
        assert seconds(truth, estimator, 23) == pytest.approx(small, rel=1e-9)
        rate = (36 * small + 40 * unit[61]) / (36 * unit[23] + 40 * unit[61])
        assert seconds(truth, estimator, 157) == pytest.approx(rate * unit[157], rel=1e-9)


def test_fits_that_are_there_cost_nothing():
    """Planted fits take 0.01 s each."""
    done = {(t, e, n, r) for t, e in study.cells for n in (23, 61) for r in range(40)}
    whole, rest = plan(MANY, ROWS, set()), plan(MANY, ROWS, done, jobs=2)
    assert (whole.fits, whole.left, rest.fits, rest.left) == (480, 480, 480, 160)
    assert whole.core_hours == pytest.approx(4.8 / 3600) and rest.core_hours == pytest.approx(1.6 / 3600)
    assert whole.wall_hours == whole.core_hours and rest.wall_hours == pytest.approx(0.8 / 3600)
    assert plan(MANY, ROWS, set(), jobs=100).wall_hours == pytest.approx(0.4 / 3600)  # a batch is not shared
    assert plan(MANY, ROWS, done | {(t, e, 157, r) for t, e in study.cells for r in range(40)}).core_hours == 0


def test_a_width_names_its_replicates():
    """The study's own sizes: the least number that reaches the width; their cost by hand."""
    own = plan(MANY, ROWS, set(), width=0.01).wanted[0]
    judged = [s for s in plan(MANY, ROWS, set()).slopes if s.predicted_slope is not None]
    reached = [max(s.width for s in judged) * math.sqrt(40 / r) for r in (own.replicates, own.replicates - 1)]
    assert reached[0] <= 0.01 < reached[1] and own.width == pytest.approx(reached[0], rel=1e-9)
    assert (own.sizes, own.window) == (study.sizes, study.window)
    assert own.core_hours == pytest.approx(own.replicates * 4 * 3 * 0.01 / 3600, rel=1e-9)


def test_replicates_are_those_of_the_predicted_slopes():
    """However much the risk scatters about a floor; it decides where nothing else does."""
    other, rng = ROWS.truth != ROWS.estimator, np.random.default_rng(0)
    wild = ROWS.assign(excess_risk=ROWS.excess_risk * np.where(other, np.exp(2 * rng.standard_normal(len(ROWS))), 1))
    assert plan(MANY, wild, set(), width=0.01).wanted == plan(MANY, ROWS, set(), width=0.01).wanted

    class Unpredicted(type(study)):
        def quantities(self, truth, estimator):
            return (Quantity("excess_risk", "risk"),)

    bare = Unpredicted(**{f.name: getattr(MANY, f.name) for f in fields(MANY)})
    calm, stormy = (plan(bare, rows, set(), width=0.01).wanted[0] for rows in (ROWS, wild))
    assert stormy.replicates > 5 * calm.replicates


def test_more_sizes_are_named_only_where_they_are_cheaper():
    """Equal cost for every n: a longer window is cheaper. Cost as n^3: it is not."""
    flat = plan(MANY, ROWS, set(), width=0.01).wanted
    assert len(flat) == 2 and flat[1].core_hours < flat[0].core_hours and flat[1].width <= 0.01
    assert flat[1].sizes[:3] == study.sizes and flat[1].window == (23, flat[1].sizes[-1])
    assert flat[1].sizes[3] == round(157 * 157 / 61)
    steep = ROWS.assign(cpu_seconds=1e-6 * ROWS.n.astype(float) ** 3)

    class Steep(type(study)):
        def cost(self, truth, estimator, n):
            return float(n) ** 3

    dear = Steep(**{f.name: getattr(MANY, f.name) for f in fields(MANY)})
    assert len(plan(dear, steep, set(), width=0.01).wanted) == 1


def test_a_pilot_foretells_the_cost_of_the_run(tmp_path):
    """Twice as much or half at most, the time of a fit being what it is on a machine with others on it."""
    many, results = replace(study, replicates=30), Results(tmp_path / "a.sqlite", study.columns)
    pilot(many, results)
    foretold = plan(many, results.frame(study.key), results.done(study.key))
    there = results.frame(study.key).cpu_seconds.sum()
    assert foretold.left == 4 * (3 * 30 - 2 * 25)
    runner.run(many, results)
    rows = results.frame(study.key)
    results.close()
    took = rows.cpu_seconds.sum() - there
    assert 0.5 < foretold.core_hours * 3600 / took < 2, (foretold.core_hours * 3600, took)
    for slope in foretold.slopes:
        own = rows[(rows.truth == slope.truth) & (rows.estimator == slope.estimator)]
        column = {"parameter": "parameter_loss"}.get(slope.loss, slope.loss)
        if slope.predicted_slope is not None:  # 25 at two sizes: the scatter errs by 10 to 15 %
            assert slope.stderr == pytest.approx(fit_rate(errors_by_size(own, column), study.window).stderr, rel=0.6)


def test_words_and_json():
    forecast = plan(MANY, ROWS, set(), jobs=2, width=0.01)
    words = plan_text(forecast, MANY, "480 rows of here")
    assert "small: 480 fits, 480 of them" in words and "480 rows of here" in words
    assert re.search("5 s on one core, 2 s with 2 workers", words)
    own, longer = forecast.wanted
    assert f"  {own.replicates} replicates: " in words
    assert (
        f"  {longer.replicates} replicates, with the sizes n = {', '.join(map(str, longer.sizes[3:]))} added" in words
    )
    assert "95 % intervals" not in plan_text(plan(MANY, ROWS, set()), MANY, "")
    told = json.loads(json.dumps(forecast.to_dict(), allow_nan=False))
    assert told["left"] == 480 and len(told["slopes"]) == 6 and len(told["wanted"]) == 2


@pytest.mark.parametrize("width", [0.0, -0.1, math.inf, math.nan])
def test_widths_are_positive(width):
    with pytest.raises(InputError, match="a width is that of a 95 % interval, positive and finite: got"):
        plan(MANY, ROWS, set(), width=width)


def test_workers_are_at_least_one():
    with pytest.raises(InputError, match="at least one worker: got 0"):
        plan(MANY, ROWS, set(), jobs=0)
