"""What captions of over-specified studies and of any study say, on rows whose every number is planted."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.summaries import summarize
from moe_prompt.studies.loading import load
from moe_prompt.studies.running.archive import load_evidence
from tests.builders.planted_over import NOTES, PLAIN_NOTES, REPLICATES, SIZES, over, plain, planted_over, planted_plain

ROWS = planted_over()
RESULTS = Path(__file__).parents[3] / "experiments" / "results"
NUMBER = r"(-?\d+\.\d+)"


def said(rows=ROWS, notes=NOTES, study=over) -> str:
    return caption(study, summarize(study, rows, notes))


def slopes(column: str, cells, rows=ROWS) -> list[float]:
    """Of log mean on log n by NumPy, one per truth."""
    found = []
    for truth, _ in cells:
        own = rows[rows.truth == truth]
        means = [own[own.n == n][column].sum() / REPLICATES for n in SIZES]
        found.append(float(np.polyfit(np.log(SIZES), np.log(means), 1)[0]))
    return found


SMOOTH = [cell for cell in over.cells if cell[0] in over.smooth]
LEVEL = [cell for cell in over.cells if cell[0] not in over.smooth]


@pytest.mark.parametrize(
    "what, column, constant, power",
    [
        ("The Voronoi loss", "parameter_loss", 2.4, "-0.5"),
        ("The split error", "split_error", 2.5, "-0.25"),
    ],
)
def test_predicted_cells_and_the_others_have_a_sentence_each(what, column, constant, power):
    """Slopes, how many agree, the mean over the law: of smooth truths; the end of the 90 % quantile: of the other."""
    words = said()
    pattern = (
        f"{what} has slopes from {NUMBER} to {NUMBER}, 3 of 3 within three standard errors of {power}; "
        f"at n = 683 its mean is {NUMBER} to {NUMBER} times the predicted one. "
        f"In the other cells it has slopes of {NUMBER}, none predicted; its 90 % "
        f"quantile ends at {NUMBER} times where it began."
    )
    found = re.search(pattern, words)
    assert found, words
    low, high, least, most, other, ended = map(float, found.groups())
    own, (level,) = slopes(column, SMOOTH), slopes(column, LEVEL)
    assert (low, high) == pytest.approx((min(own), max(own)), abs=5e-4)
    assert other == pytest.approx(level, abs=5e-4)
    ratios = [
        ROWS[(ROWS.truth == t) & (ROWS.n == 683)][column].mean() / constant * 683 ** -float(power) for t, _ in SMOOTH
    ]
    assert (least, most) == pytest.approx((min(ratios), max(ratios)), abs=5e-3)
    quantiles = [np.quantile(ROWS[(ROWS.truth == LEVEL[0][0]) & (ROWS.n == n)][column], 0.9) for n in (67, 683)]
    assert ended == pytest.approx(quantiles[1] / quantiles[0], abs=5e-3)


def test_moments_and_functions_are_predicted_in_every_cell():
    words = said()
    assert re.search(
        f"The drift of masses and first moments has slopes from {NUMBER} to {NUMBER}, 4 of 4 within three "
        f"standard errors of -0.5; at n = 683 its mean is {NUMBER} to {NUMBER} times the predicted one",
        words,
    )
    assert re.search(
        f"The distance of functions has slopes from {NUMBER} to {NUMBER}, 4 of 4 within three standard errors "
        f"of -0.5; at n = 683 its mean is {NUMBER} to {NUMBER} times the predicted one",
        words,
    )


def test_fits_are_counted_once():
    """Every cell has four quantities and one set of fits."""
    cells = len(over.cells)
    fits, ended = cells * len(SIZES) * REPLICATES, cells * len(SIZES)
    assert said().endswith(
        f"{fits} fits: 0 did not converge, {ended} ended on the boundary of the parameter box; all that gave a number "
        "are counted. "
        f"In {cells} the truth fits the data better; others may be at a local minimum, which that does not tell."
    )
    rows = ROWS.copy()
    rows.loc[rows.replicate < 2, "converged"] = 0
    assert f"{2 * cells * len(SIZES)} did not converge" in said(rows)


def test_a_wrong_slope_is_not_within_three_errors():
    rows = ROWS.copy()
    wrong = rows.truth == "VPT, L = 1"
    rows.loc[wrong, "split_error"] *= rows.n[wrong] ** 0.1
    assert "2 of 3 within three standard errors of -0.25" in said(rows) and "3 of 3" in said(rows)


def test_where_splits_grow_the_quantile_says_so():
    found = re.findall(f"quantile ends at {NUMBER} times", said(planted_over(held=3.0)))
    assert len(found) == 2 and all(float(value) == pytest.approx(3.0, rel=0.1) for value in found)


def test_smooth_alone_and_level_alone_have_one_sentence_each():
    smooth, level = (said(ROWS[ROWS.truth.isin(over.smooth) == kept]) for kept in (True, False))
    assert "none predicted" not in smooth and "In the other cells" not in smooth
    assert level.startswith("The Voronoi loss has slopes") and level.count("none predicted") == 2


def test_no_slopes_without_sizes():
    words = said(ROWS[ROWS.n == 67])
    assert "slopes" not in words and "160 fits" in words
    assert "predicted one" not in said(notes={})


# ---------------------------------------------------------------------------------------- a study of no kind


def test_a_study_of_no_kind_has_a_sentence_per_quantity():
    cells = summarize(plain, planted_plain(), PLAIN_NOTES)
    miss, spread = cells
    words = caption(plain, cells)
    assert words == (
        f"average on data from coin, miss: mean ~ n^({miss.slope:.3f} +- {miss.stderr:.3f}) (predicted -0.5). "
        f"average on data from coin, spread: median ~ n^({spread.slope:.3f} +- {spread.stderr:.3f}). "
        "120 fits: 0 did not converge, 3 ended on the boundary of the parameter box; "
        "all that gave a number are counted."
    )
    assert miss.slope == pytest.approx(-0.5, abs=0.05) and spread.slope == pytest.approx(0, abs=1e-12)
    single = caption(
        plain, summarize(replace(plain, window=(211, 683)), planted_plain()[lambda r: r.n < 683], PLAIN_NOTES)
    )
    assert "miss: too few sizes or replicates in the window (211, 683) for a slope." in single


# --------------------------------------------------------------------------------------- the committed studies


@pytest.mark.parametrize("name, words", [("gates-top-k", ("boundary: median", "parameter: mean", "common_risk: mean"))])
def test_the_gate_that_chooses_tells_every_slope_it_has(name, words):
    """Three quantities, each with its own statistic, slope and prediction; fits are counted once."""
    study = load(name)
    rows, notes, _ = load_evidence(study, RESULTS, exported=True)
    cells = summarize(study, rows, notes)
    told = caption(study, cells)
    for cell, start in zip(cells, words, strict=True):
        assert f"{start} ~ n^({cell.slope:.3f} +- {cell.stderr:.3f}) (predicted {cell.predicted_slope:g})." in told
    assert f"{len(rows)} fits: " in told and f"In {int(rows.missed.sum())} the truth fits the data better." in told


def test_one_ratio_is_no_range():
    study = load("softmax-gaussian")
    rows, notes, _ = load_evidence(study, RESULTS, exported=True)
    told = caption(study, summarize(study, rows, notes))
    last = rows[(rows.estimator == "two") & (rows.n == 100_000)].voronoi_loss.median()
    constant = notes["limits two two"]["voronoi_loss_constant"]
    assert f"its median is {last / constant * 100_000**0.5:.2f} times the predicted one" in told


def test_titles_say_what_is_fitted_to_what():
    assert load("softmax-gaussian").title("two", "three") == "three experts fitted to two"
    assert load("contaminated").title("near", "ml") == "maximum likelihood, near"
    assert load("vpt-vs-vapt").title("vpt", "vapt") == "VAPT fitted to data from VPT"
    assert plain.title("coin", "average") == "average fitted to data from coin"
