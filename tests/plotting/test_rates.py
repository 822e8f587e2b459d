"""Figures of rate studies: panels, predicted lines with the numbers they claim, and equal bytes for equal rows."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from moe_prompt.cli.output import save_captioned, save_figure
from moe_prompt.errors import InputError
from moe_prompt.plotting.rates import draw_rates
from moe_prompt.plotting.style import power
from moe_prompt.studies.analysis.cells import cells_of
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.read_figures import check_print, line, lines, panels, slopes, title, words
from tests.builders.small_study import study

ROWS = planted_rows(study)
CELLS = cells_of(study, ROWS, NOTES)
PANELS = {  # by truth, its own model first
    ("vpt", "vpt", "parameter"): 0,
    ("vpt", "vpt", "excess_risk"): 1,
    ("vpt", "vapt", "excess_risk"): 2,
    ("vapt", "vapt", "parameter"): 3,
    ("vapt", "vapt", "excess_risk"): 4,
    ("vapt", "vpt", "excess_risk"): 5,
}
SIZES = np.array(study.sizes, float)


def draw(rows=ROWS, notes=NOTES, of=study):
    return draw_rates(cells_of(of, rows, notes))


@pytest.fixture(scope="module")
def figure():
    return draw()


def panel(figure, *place: str):
    return panels(figure)[PANELS[place]]


def test_a_lettered_panel_per_cell_and_loss(figure):
    assert len(panels(figure)) == 6
    check_print(figure)
    for (truth, estimator, loss), place in PANELS.items():
        axis = panels(figure)[place]
        assert axis.get_xscale() == axis.get_yscale() == "log"
        if loss == "parameter" or truth != estimator:  # the first of its cell
            assert title(axis).startswith(f"{estimator} fitted to {truth} data")
    assert [axis.get_xlabel() for axis in panels(figure)] == [""] * 3 + ["sample size n"] * 3


def test_axes_of_a_quantity_are_shared_and_starts_do_not_widen_them(figure):
    """Planted losses lie below 1, starts at 4."""
    limits = {place: axis.get_ylim() for axis, place in zip(panels(figure), PANELS, strict=True)}
    for loss in ("parameter", "excess_risk"):
        own = {limit for place, limit in limits.items() if place[2] == loss}
        assert len(own) == 1
    assert limits["vpt", "vpt", "parameter"][1] < 4
    assert all(f"starts at {4 if loss == 'parameter' else 5 if t == e else 6}" in words(panel(figure, t, e, loss))
               for t, e, loss in PANELS)  # fmt: skip


@pytest.mark.parametrize("place", PANELS)
def test_points_are_the_rows(figure, place):
    truth, estimator, loss = place
    own = ROWS[(ROWS.truth == truth) & (ROWS.estimator == estimator)]
    axis, column = panel(figure, *place), {"parameter": "parameter_loss"}.get(loss, loss)
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


@pytest.mark.parametrize("name", ["vpt", "vapt"])
def test_predictions_of_matched_cells_are_drawn_from_their_constants(figure, name):
    limits = NOTES[f"limits {name} {name}"]
    loss, risk = (line(panel(figure, name, name, loss), "Cramér-Rao") for loss in ("parameter", "excess_risk"))
    assert loss.get_xdata() == pytest.approx(SIZES) and loss.get_ydata() == pytest.approx(
        limits["loss_constant"] / SIZES**0.5
    )
    assert risk.get_ydata() == pytest.approx(limits["risk_constant"] / SIZES)


@pytest.mark.parametrize("truth, estimator", [("vpt", "vapt"), ("vapt", "vpt")])
def test_floors_of_the_others(figure, truth, estimator):
    axis = panel(figure, truth, estimator, "excess_risk")
    floor = NOTES[f"limits {truth} {estimator}"]["floor"]
    assert set(line(axis, "floor").get_ydata()) == {floor} and axis.get_ylim()[0] < floor
    assert f"floor {floor:.3g}" in title(axis)
    assert not [
        drawn for drawn in axis.get_lines() if "line fitted" in drawn.get_label() or "Cram" in drawn.get_label()
    ]


def test_fitted_line_and_its_slope(figure):
    for cell in CELLS:
        for summary in cell.summaries if cell.relation.exact else ():
            axis = panel(figure, cell.truth, cell.estimator, summary.name)
            assert slopes(line(axis, "line fitted")) == pytest.approx([summary.slope] * 2, rel=1e-9)
            assert power(summary.fit) in words(axis)
            assert title(axis).endswith({"parameter": "1/2", "excess_risk": "1"}[summary.name])


def test_the_fit_stays_on_its_window():
    axis = panel(draw(of=replace(study, window=(61, 157))), "vpt", "vpt", "parameter")
    assert line(axis, "line fitted").get_xdata().tolist() == [61, 157]
    assert line(axis, "median").get_xdata().tolist() == [23, 61, 157]


def test_where_a_law_is_missing_the_panel_says_why():
    bare = draw(notes={})
    assert not [drawn for axis in panels(bare) for drawn in lines(axis, "Cram")]
    assert "constant unknown" in words(panel(bare, "vpt", "vpt", "parameter"))
    assert "another model" in title(panel(bare, "vpt", "vapt", "excess_risk"))


def test_every_line_is_in_the_legend(figure):
    (legend,) = figure.legends
    told = {text.get_text() for text in legend.get_texts()}
    drawn = {found.get_label() for axis in panels(figure) for found in axis.get_lines()}
    assert {label for label in drawn if not label.startswith("_")} < told and len(told) == 6


def test_equal_rows_equal_bytes(tmp_path):
    figure, again = draw(), draw(planted_rows(study), dict(NOTES))
    for suffix in (".png", ".pdf", ".svg"):
        one, other = (save_figure(drawn, tmp_path / str(k) / f"a{suffix}") for k, drawn in enumerate((figure, again)))
        assert one.read_bytes() == other.read_bytes()
    moved = draw(ROWS.assign(excess_risk=ROWS.excess_risk * 1.5))
    assert save_figure(moved, tmp_path / "b.pdf").read_bytes() != (tmp_path / "0" / "a.pdf").read_bytes()


def test_captions_lie_beside_the_figure(figure, tmp_path):
    paths = save_captioned(figure, tmp_path / "a.b", "Words.", "12 fits.", (".png", ".pdf"))
    assert [path.name for path in paths] == ["a.b.png", "a.b.pdf", "a.b.md"] and all(p.is_file() for p in paths)
    assert paths[-1].read_text() == "Words.\n\n<sub>12 fits.</sub>\n"


def test_part_of_a_study_is_drawn():
    """One cell; one size; a cell without a number."""
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vpt")
    assert len(panels(draw(ROWS[own]))) == 2
    assert len(panels(draw(ROWS[ROWS.n == 23]))) == 6
    failed = ROWS.copy()
    failed.loc[own, ["excess_risk", "parameter_loss", "efficiency", "squared_error"]] = np.nan
    figure = draw(failed)
    figure.canvas.draw()
    assert len(panels(figure)) == 6


def test_drawing_leaves_the_users_settings_alone(figure):
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
    assert matplotlib.rcParams["svg.hashsalt"] is None


def test_a_figure_that_cannot_be_written(figure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_figure(figure, tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match=r"a\.xyz"):
        save_figure(figure, tmp_path / "a.xyz")
    (Path(tmp_path) / "a.md").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save_captioned(figure, tmp_path / "a", "Words.", "", ())
