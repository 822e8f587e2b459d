"""Figures of over-specified studies: a row per family, the law's line as its constants say, equal bytes."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from moe_prompt.cli.output import save_figure
from moe_prompt.plotting.over_specified import draw_over_specified, family_of
from moe_prompt.plotting.study_figure import draw
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.summaries import summarize
from tests.builders import planted_rows, small_study
from tests.builders.planted_over import NOTES, PLAIN_NOTES, SIZES, over, plain, planted_over, planted_plain

ROWS = planted_over()
FAMILIES = {"VPT": ("L = 1", "L = 2"), "VAPT": ("L = 1",), "prefix": ("L = 1",)}
COLUMNS = {
    "Voronoi loss D": ("parameter_loss", 2.4, -0.5),
    "split error  $t$": ("split_error", 2.5, -0.25),
    "masses and first moments": ("first_moment_error", 4.0, -0.5),
    r"$|\hat f-f_*|_{L_2}$": ("function_error", 0.7, -0.5),
}
LAW = "law of the split"


@pytest.fixture(scope="module")
def figure():
    return draw_over_specified(over, ROWS, NOTES)


def panel(figure, family: str, title: str):
    return figure.axes[4 * list(FAMILIES).index(family) + list(COLUMNS).index(title)]


def lines(axis, label: str):
    return [drawn for drawn in axis.get_lines() if drawn.get_label().startswith(label)]


def test_a_row_per_family_and_a_column_per_quantity(figure):
    assert len(figure.axes) == 12
    assert [axis.get_title() for axis in figure.axes[:4]] == list(COLUMNS)
    assert [axis.get_ylabel() for axis in figure.axes[::4]] == list(FAMILIES)
    assert all(axis.get_xscale() == axis.get_yscale() == "log" for axis in figure.axes)
    assert [axis.get_xlabel() for axis in figure.axes] == [""] * 8 + ["sample size n"] * 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("title", COLUMNS)
def test_points_are_the_rows(figure, family, title):
    axis, column = panel(figure, family, title), COLUMNS[title][0]
    colours = set()
    for atoms in FAMILIES[family]:
        own = ROWS[ROWS.truth == f"{family}, {atoms}"]
        groups = [np.array([v for v, m in zip(own[column], own.n, strict=True) if m == n]) for n in SIZES]
        (mean,), (median,) = lines(axis, f"{atoms}: mean"), lines(axis, f"{atoms}: median")
        assert mean.get_xdata().tolist() == median.get_xdata().tolist() == list(SIZES)
        assert mean.get_ydata() == pytest.approx([g.sum() / 40 for g in groups], rel=1e-12)
        assert median.get_ydata() == pytest.approx([(np.sort(g)[19] + np.sort(g)[20]) / 2 for g in groups], rel=1e-12)
        assert mean.get_color() == median.get_color()
        colours.add(to_hex(mean.get_color()))
    assert len(colours) == len(axis.collections) == len(FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("title", COLUMNS)
def test_the_law_is_drawn_from_its_constant_where_there_is_one(figure, family, title):
    """And no line is fitted."""
    _, constant, power = COLUMNS[title]
    axis, atoms = panel(figure, family, title), FAMILIES[family]
    drawn = lines(axis, LAW)
    predicted = constant is not None and family != "prefix"
    assert len(drawn) == (len(atoms) if predicted else 0)
    for line in drawn:
        assert line.get_ydata() == pytest.approx([constant * n**power for n in SIZES], rel=1e-12)
    assert len(axis.get_lines()) == 2 * len(atoms) + len(drawn)


def test_slopes_are_written_in_their_panels(figure):
    for cell in summarize(over, ROWS, NOTES):
        family, atoms = cell.truth.rsplit(", ", 1)
        (words,) = [text.get_text() for text in panel(figure, family, cell.label).texts]
        assert words.startswith("slope\n") and f"{atoms}: {cell.slope:.3f} ± {cell.stderr:.3f}" in words.splitlines()
        assert len(words.splitlines()) == 1 + len(FAMILIES[family])


def test_caption_is_below_and_every_label_once_above(figure):
    assert " ".join(figure._supxlabel.get_text().split()) == caption(over, summarize(over, ROWS, NOTES))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    parts = ("10 % to 90 % of replicates", "median", "mean")
    assert sorted(labels) == sorted(
        [f"L = {k}: {part}" for k in (1, 2) for part in parts] + [over.quantities(*over.cells[0])[0].prediction]
    )


def test_equal_rows_equal_bytes(tmp_path):
    own = ROWS[ROWS.truth == "VAPT, L = 1"]
    again = planted_over()
    pairs = ((own, NOTES), (again[again.truth == "VAPT, L = 1"], dict(NOTES)), (own.assign(split_error=1.1), NOTES))
    one, other, moved = (
        save_figure(draw_over_specified(over, rows, notes), tmp_path / f"{k}.pdf").read_bytes()
        for k, (rows, notes) in enumerate(pairs)
    )
    assert one == other != moved and len(one) > 10_000


def test_part_of_a_study_is_drawn():
    """One family; one size; no limits; a cell without a number."""
    assert len(draw_over_specified(over, ROWS[ROWS.truth == "VAPT, L = 1"], NOTES).axes) == 4
    single = draw_over_specified(over, ROWS[ROWS.n == 67], NOTES)
    assert {text.get_text() for axis in single.axes for text in axis.texts} == {"slope"}
    assert not [line for axis in draw_over_specified(over, ROWS, {}).axes for line in lines(axis, LAW)]
    failed = ROWS.copy()
    failed.loc[failed.truth == "VAPT, L = 1", [name for name, *_ in COLUMNS.values()]] = np.nan
    broken = draw_over_specified(over, failed, NOTES)
    broken.canvas.draw()
    assert len(broken.axes) == 12


def test_truths_by_any_name_and_any_number_of_atoms():
    """A user's truths need not be called after families; a fourth number of atoms is drawn too."""
    own = replace(over, truths={"mine": over.truths["VPT, L = 1"]}, smooth=("mine",))
    drawn = draw_over_specified(own, planted_over(own), {})
    assert drawn.axes[0].get_ylabel() == "mine" and len(lines(drawn.axes[0], "L' = 2: mean")) == 1
    names = [f"VPT, L = {k}" for k in range(1, 6)]
    many = replace(over, truths=dict.fromkeys(names, over.truths["VPT, L = 1"]), smooth=())
    assert len(lines(draw_over_specified(many, planted_over(many), {}).axes[0], "L = ")) == 2 * 5
    assert family_of("VAPT, linear, r = 1, L = 2") == "VAPT, linear, r = 1" and family_of("mine") == "mine"


# ------------------------------------------------------------------------------------------- which layout


def test_every_kind_of_study_has_its_layout():
    """Families by quantities for over-specified studies; a panel per cell and quantity for all others."""
    assert [axis.get_ylabel() for axis in draw(over, ROWS, NOTES).axes[::4]] == list(FAMILIES)
    rows = planted_rows.planted_rows(small_study.study)
    rates = draw(small_study.study, rows, planted_rows.NOTES)
    assert {axis.get_title(loc="left") for axis in rates.axes} >= {"VPT fitted to data from VPT"}
    figure = draw(plain, planted_plain(), PLAIN_NOTES)
    assert [axis.get_ylabel() for axis in figure.axes if axis.axison] == ["distance", "range"]
    (law,) = lines(figure.axes[0], "law of the coin")
    assert law.get_ydata() == pytest.approx([4 * n**-0.5 for n in SIZES])
    assert not lines(figure.axes[1], "law") and len(lines(figure.axes[1], "fitted slope of the median")) == 1
