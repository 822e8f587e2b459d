"""Figures: axes, panels, predicted lines with the numbers they claim, and equal bytes for equal rows."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from moe_prompt.cli.output import save_figure
from moe_prompt.errors import InputError
from moe_prompt.plotting.rates import draw_rates, write
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.cells import all_summaries, cells_of
from moe_prompt.studies.loading import load
from moe_prompt.studies.running.archive import load_rows
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study

ROWS = planted_rows(study)
PANELS = {
    "vpt fitted to data from vpt": ("vpt", "vpt", ["parameter loss", "excess risk"]),
    "vapt fitted to data from vapt": ("vapt", "vapt", ["parameter loss", "excess risk"]),
    "vpt fitted to data from vapt": ("vapt", "vpt", ["excess risk"]),
    "vapt fitted to data from vpt": ("vpt", "vapt", ["excess risk"]),
}
SIZES = np.array(study.sizes, float)


@pytest.fixture(scope="module")
def figure():
    return draw_rates(study, ROWS, NOTES)


def panel(figure, title: str, label: str):
    (found,) = [a for a in figure.axes if a.get_title(loc="left") == title and label in a.get_ylabel()]
    return found


def line(axis, label: str):
    (found,) = [drawn for drawn in axis.get_lines() if drawn.get_label().startswith(label)]
    return found


def test_a_panel_per_cell_and_loss_with_labelled_logarithmic_axes(figure):
    drawn = [axis for axis in figure.axes if axis.axison]
    assert len(drawn) == 6 == sum(len(labels) for *_, labels in PANELS.values())
    for title, (*_, labels) in PANELS.items():
        for label in labels:
            axis = panel(figure, title, label)
            assert axis.get_xscale() == axis.get_yscale() == "log" and axis.get_xlabel() == "sample size n"


@pytest.mark.parametrize("title", PANELS)
def test_points_are_the_rows(figure, title):
    truth, estimator, labels = PANELS[title]
    own = ROWS[(ROWS.truth == truth) & (ROWS.estimator == estimator)]
    for label in labels:
        axis, column = panel(figure, title, label), "parameter_loss" if "parameter" in label else "excess_risk"
        groups = [np.array([r[column] for _, r in own.iterrows() if r.n == n], float) for n in study.sizes]
        assert line(axis, "median").get_ydata() == pytest.approx([np.sort(g)[2] for g in groups], rel=1e-12)
        (bars,) = axis.containers
        assert bars.lines[0].get_ydata() == pytest.approx([g.sum() / 5 for g in groups], rel=1e-12)
        drawn = [(segment[0, 1], segment[1, 1]) for segment in bars.lines[2][0].get_segments()]
        for (bottom, top), group in zip(drawn, groups, strict=True):
            means = group[np.array(list(product(range(5), repeat=5)))].mean(1)  # every resample there is
            low, high = np.quantile(means, [0.025, 0.975])
            slack = 0.15 * (means.max() - means.min())  # percentiles of 1000 draws; six of their standard errors
            assert (bottom, top) == pytest.approx((low, high), abs=slack + 1e-12) and bottom > 0
            assert (bottom < group.mean() < top) == (np.ptp(group) > 0)
        start = {"vpt": 4.0, "vapt": 4.0}[truth] if "parameter" in label else 5.0 if truth == estimator else 6.0
        assert set(line(axis, "where the fits start").get_ydata()) == {start}


@pytest.mark.parametrize("name", ["vpt", "vapt"])
def test_predictions_of_matched_cells_are_drawn_from_their_constants(figure, name):
    title, limits = f"{name.upper()} fitted to data from {name.upper()}", NOTES[f"limits {name} {name}"]
    loss = line(panel(figure, title, "parameter loss"), "Cramér-Rao")
    risk = line(panel(figure, title, "excess risk"), "Cramér-Rao")
    assert loss.get_xdata() == pytest.approx(SIZES) and loss.get_ydata() == pytest.approx(
        limits["loss_constant"] / SIZES**0.5
    )
    assert risk.get_ydata() == pytest.approx(limits["risk_constant"] / SIZES)


@pytest.mark.parametrize("truth, estimator", [("vpt", "vapt"), ("vapt", "vpt")])
def test_floors_of_the_others(figure, truth, estimator):
    axis = panel(figure, f"{estimator.upper()} fitted to data from {truth.upper()}", "excess risk")
    floor = NOTES[f"limits {truth} {estimator}"]["floor"]
    assert set(line(axis, "floor").get_ydata()) == {floor} and axis.get_ylim()[0] < floor
    assert not [drawn for drawn in axis.get_lines() if "slope" in drawn.get_label() or "Cram" in drawn.get_label()]


def test_fitted_line_and_its_words(figure):
    cells = summarize(study, ROWS, NOTES)
    for cell in cells:
        if not cell.matched:
            continue
        label = "parameter loss" if cell.loss == "parameter" else "excess risk"
        axis = panel(figure, f"{cell.estimator.upper()} fitted to data from {cell.truth.upper()}", label)
        drawn = line(axis, "fitted slope")
        slopes = np.diff(np.log(drawn.get_ydata())) / np.diff(np.log(drawn.get_xdata()))
        assert slopes == pytest.approx([cell.slope] * 2, rel=1e-9)
        assert f"slope {cell.slope:.3f} ± {cell.stderr:.3f}\npredicted {cell.predicted_slope:g}" in [
            text.get_text() for text in axis.texts
        ]


def test_the_fit_stays_on_its_window():
    narrow = draw_rates(replace(study, window=(61, 157)), ROWS, NOTES)
    axis = panel(narrow, "vpt fitted to data from vpt", "parameter loss")
    assert line(axis, "fitted slope").get_xdata().tolist() == [61, 157]
    assert line(axis, "median").get_xdata().tolist() == [23, 61, 157]


def test_caption_and_legend_are_below_and_above(figure):
    words = caption(study, summarize(study, ROWS, NOTES))
    assert " ".join(figure._supxlabel.get_text().split()) == words
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == len(set(labels)) == 7


def test_equal_rows_equal_bytes(figure, tmp_path):
    again = draw_rates(study, planted_rows(study), dict(NOTES))
    for suffix in (".png", ".pdf", ".svg"):
        one, other = (save_figure(drawn, tmp_path / str(k) / f"a{suffix}") for k, drawn in enumerate((figure, again)))
        assert one.read_bytes() == other.read_bytes()
    moved = draw_rates(study, ROWS.assign(excess_risk=ROWS.excess_risk * 1.5), NOTES)
    assert save_figure(moved, tmp_path / "b.pdf").read_bytes() != (tmp_path / "0" / "a.pdf").read_bytes()


def test_part_of_a_study_is_drawn():
    """One cell; no limits; one size; a cell without a number."""
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vpt")
    assert len([a for a in draw_rates(study, ROWS[own], NOTES).axes if a.axison]) == 2
    bare = draw_rates(study, ROWS, {})
    assert not [drawn for axis in bare.axes for drawn in axis.get_lines() if "Cram" in drawn.get_label()]
    assert len([a for a in draw_rates(study, ROWS[ROWS.n == 23], NOTES).axes if a.axison]) == 6
    failed = ROWS.copy()
    failed.loc[own, ["excess_risk", "parameter_loss", "efficiency", "squared_error"]] = np.nan
    figure = draw_rates(study, failed, NOTES)
    figure.canvas.draw()
    assert len([a for a in figure.axes if a.axison]) == 6


def test_drawing_leaves_the_users_settings_alone(figure):
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
    assert matplotlib.rcParams["svg.hashsalt"] is None


def test_a_figure_that_cannot_be_written(figure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_figure(figure, tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match=r"figures are written as \.png, \.pdf, \.svg: got a\.xyz"):
        save_figure(figure, tmp_path / "a.xyz")


@pytest.mark.parametrize("name", ["contaminated", "softmax-gaussian", "gates", "gates-top-k", "vpt-vs-vapt"])
def test_the_legend_is_inside_the_figure_and_rows_are_cells(name, tmp_path):
    """Whatever the number of columns; and where cells have as many quantities, two to four, each has a row."""
    named = load(name)
    rows, notes, _ = load_rows(named, Path(__file__).parents[2] / "experiments" / "results", exported=True)
    figure = draw_rates(named, rows, notes)
    write(figure, tmp_path / "a.png", {"Software": None})
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
    counts = [len(named.quantities(*cell)) for cell in named.cells]
    columns = len({round(axis.get_position().x0, 3) for axis in figure.axes})
    assert columns == (counts[0] if len(set(counts)) == 1 else 3)
