"""What captions say on rows whose every number is planted: the numbers, and when the verdict is there."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moe_prompt.studies.analysis.captions import caption, counts
from moe_prompt.studies.analysis.cells import all_summaries, cells_of
from tests.builders import planted_rows, small_study
from tests.builders.planted_over import NOTES, PLAIN_NOTES, REPLICATES, SIZES, over, plain, planted_over, planted_plain

OVER = planted_over()
RATES = planted_rows.planted_rows(small_study.study)
VERDICT = "expressiveness"


def said(rows: pd.DataFrame = RATES, notes=planted_rows.NOTES, study=small_study.study) -> str:
    return caption(study, cells_of(study, rows, notes))


def numbers(words: str) -> list[float]:
    return [float(word.replace(",", "")) for word in re.findall(r"-?\d[\d,]*(?:\.\d+)?", words)]


def changed(where: pd.Series, **values) -> pd.DataFrame:
    rows = RATES.copy()
    for name, value in values.items():
        rows.loc[where, name] = value(rows.loc[where, name]) if callable(value) else value
    return rows


def sentences(words: str) -> list[str]:
    return [part for part in re.split(r"(?<=[a-z\d)])\. ", words) if part]


# ------------------------------------------------------------------------------------------------ agreement


def off_by(column: str, truth: str, errors: float) -> pd.DataFrame:
    """One slope moved to so many errors from its prediction: scaling by n^x moves the slope and no error."""
    (cell,) = [c for c in cells_of(small_study.study, RATES, planted_rows.NOTES) if c.truth == c.estimator == truth]
    (found,) = [s for s in cell.summaries if s.quantity.column == column]
    own = (RATES.truth == truth) & (RATES.estimator == truth)
    shift = found.quantity.slope + errors * found.stderr - found.slope
    return changed(own, **{column: RATES[column][own] * RATES.n[own] ** shift})


@pytest.mark.parametrize("errors, met", [(2.9, True), (3.1, False), (-2.9, True), (-3.1, False)])
def test_three_standard_errors_decide(errors, met):
    words = said(off_by("parameter_loss", "vpt", errors))
    assert numbers(words)[0] == (4 if met else 3)
    assert (VERDICT in words) == met
    assert ("parameter of vpt fitted to vpt data" in words) != met  # a slope that is off is named


def test_slopes_errors_and_constants_are_those_of_the_rows():
    summaries = [s for s in all_summaries(cells_of(small_study.study, RATES, planted_rows.NOTES)) if s.quantity.slope]
    first, *_ = sentences(said())
    errors = [round(s.stderr, 3) for s in summaries]
    last = RATES[(RATES.n == 157) & (RATES.truth == RATES.estimator)].groupby("truth")[
        ["parameter_loss", "excess_risk"]
    ]
    mean = last.mean()
    ratios = [
        *(mean.parameter_loss["vpt"] / 3 * 157**0.5, mean.parameter_loss["vapt"] / 11 * 157**0.5),
        *(mean.excess_risk["vpt"] / 2 * 157, mean.excess_risk["vapt"] / 7 * 157),
    ]
    expected = [4, min(errors), max(errors), 157, min(ratios), max(ratios)]
    assert numbers(first) == pytest.approx(expected, abs=5.1e-3)


def test_law_of_splits_and_the_truths_without_one():
    """14 slopes are predicted: four of three truths, two of the fourth, whose other two quantities stay."""
    first, second = sentences(said(OVER, NOTES, over))
    assert numbers(first)[0] == 14 and numbers(second)[1] == 683
    level = OVER[OVER.truth == "prefix, L = 1"]
    ends = [
        np.quantile(level[level.n == 683][name], 0.9) / np.quantile(level[level.n == 67][name], 0.9)
        for name in ("parameter_loss", "split_error")
    ]
    assert numbers(second)[2:4] == pytest.approx([min(ends), max(ends)], abs=5.1e-3)
    grown = sentences(said(planted_over(held=3.0), NOTES, over))[1]
    assert numbers(grown)[2:4] == pytest.approx([3.0, 3.0], rel=0.1)
    assert len(sentences(said(OVER[OVER.truth.isin(over.smooth)], NOTES, over))) == 1


def test_a_wrong_slope_is_counted():
    rows = OVER.copy()
    wrong = rows.truth == "VPT, L = 1"
    rows.loc[wrong, "split_error"] *= rows.n[wrong] ** 0.1
    assert numbers(said(rows, NOTES, over))[:2] == [13, 14]


def test_a_study_of_no_kind():
    words = said(planted_plain(), PLAIN_NOTES, plain)
    miss, _ = cells_of(plain, planted_plain(), PLAIN_NOTES)[0].summaries
    assert numbers(words)[:3] == pytest.approx([miss.slope, miss.stderr, -0.5], abs=5.1e-4)
    assert miss.slope == pytest.approx(-0.5, abs=0.05)
    few = said(planted_plain()[lambda r: r.n < 683], PLAIN_NOTES, replace(plain, window=(211, 683)))
    assert "too few sizes" in few


# ------------------------------------------------------------------------------------------- floors and verdict


def test_floors_are_those_of_the_notes():
    assert numbers(sentences(said())[1]) == [157, 1.01]
    other = said(notes=planted_rows.NOTES | {"limits vpt vapt": {"floor": 0.2}})
    assert numbers(sentences(other)[1]) == pytest.approx([157, 1.01, 0.23 * 1.01 / 0.2], abs=5.1e-4)


def test_verdict_when_rates_and_floors_are_reached():
    assert VERDICT in said()
    assert VERDICT in said(planted_rows.planted_rows(small_study.study, over_floor=1.049))


@pytest.mark.parametrize("over_floor", [1.051, 0.949, 2.0])
def test_no_verdict_away_from_the_floor(over_floor):
    assert VERDICT not in said(planted_rows.planted_rows(small_study.study, over_floor=over_floor))


@pytest.mark.parametrize("slope", [-0.25, -0.7])
def test_no_verdict_where_no_slope_is_as_predicted(slope):
    words = said(planted_rows.planted_rows(small_study.study, slope=slope))
    assert VERDICT not in words and numbers(words)[:2] == [0, 4]


@pytest.mark.parametrize("missing", [("vpt", "vpt"), ("vapt", "vapt"), ("vpt", "vapt"), "matched", "others"])
def test_no_verdict_before_every_cell_is_there(missing):
    same = RATES.truth == RATES.estimator
    gone = {"matched": same, "others": ~same}
    where = gone[missing] if isinstance(missing, str) else (RATES.truth == missing[0]) & (RATES.estimator == missing[1])
    assert VERDICT not in said(RATES[~where])


def test_no_verdict_without_a_standard_error_a_floor_or_numbers():
    single = replace(small_study.study, replicates=1)
    assert VERDICT not in said(RATES[RATES.replicate == 0], study=single)
    assert VERDICT not in said(notes={})
    own = (RATES.truth == "vpt") & (RATES.estimator == "vpt")
    assert VERDICT not in said(changed(own, parameter_loss=np.nan, excess_risk=np.nan))


def test_few_sizes_have_no_slope():
    words = said(RATES[RATES.n == 23])
    assert "too few sizes" in words and VERDICT not in words


# --------------------------------------------------------------------------------------------------- counts


def test_fits_are_counted_once():
    """Every cell has four quantities and one set of fits."""
    cells = len(over.cells)
    expected = [cells * len(SIZES) * REPLICATES, 0, cells * len(SIZES), cells, 67, 683]
    assert numbers(counts(cells_of(over, OVER, NOTES))) == expected
    rows = OVER.copy()
    rows.loc[rows.replicate < 2, "converged"] = 0
    assert numbers(counts(cells_of(over, rows, NOTES)))[1] == 2 * cells * len(SIZES)


def test_at_most_three_sentences():
    for words in (said(), said(OVER, NOTES, over), said(notes={}), said(planted_plain(), PLAIN_NOTES, plain)):
        assert 1 <= len(sentences(words)) <= 3
