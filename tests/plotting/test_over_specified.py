"""Figures of over-specified studies: a row per family, the law's line as its constants say, equal bytes."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from moe_prompt.cli.output import save_figure
from moe_prompt.plotting.over_specified import draw_over_specified
from moe_prompt.plotting.style import power
from moe_prompt.studies.analysis.cells import cells_of
from tests.builders.planted_over import NOTES, SIZES, over, planted_over
from tests.builders.read_figures import check_print, line, lines, title, words

ROWS = planted_over()
FAMILIES = {"VPT": (1, 2), "VAPT": (1,), "prefix": (1,)}
COLUMNS = {  # name -> column of the rows, constant and power of the law
    "D": ("parameter_loss", 2.4, -0.5),
    "split": ("split_error", 2.5, -0.25),
    "moments": ("first_moment_error", 4.0, -0.5),
    "function": ("function_error", 0.7, -0.5),
}
LAW = over.quantities(*over.cells[0])[0].prediction
NAMES = {1: "1 true prompt, 2 fitted", 2: "2 true prompts, 3 fitted"}


def draw(rows=ROWS, notes=NOTES, of=over):
    return draw_over_specified(cells_of(of, rows, notes))


@pytest.fixture(scope="module")
def figure():
    return draw()


def panel(figure, family: str, loss: str):
    return figure.axes[4 * list(FAMILIES).index(family) + list(COLUMNS).index(loss)]


def test_a_row_per_family_and_a_column_per_quantity(figure):
    assert len(figure.axes) == 12
    check_print(figure)
    labels = [quantity.label for quantity in over.quantities(*over.cells[0])]
    assert [axis.texts[0].get_text() for axis in figure.axes[:4]] == labels
    assert [axis.get_ylabel() for axis in figure.axes[::4]] == list(FAMILIES)
    assert all(axis.get_xscale() == axis.get_yscale() == "log" for axis in figure.axes)
    assert [axis.get_xlabel() for axis in figure.axes] == [""] * 8 + ["sample size n"] * 4
    assert all(len({axis.get_ylim() for axis in figure.axes[k::4]}) == 1 for k in range(4))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", COLUMNS)
def test_points_are_the_rows(figure, family, loss):
    axis, column = panel(figure, family, loss), COLUMNS[loss][0]
    colours = set()
    for atoms in FAMILIES[family]:
        own = ROWS[ROWS.truth == f"{family}, L = {atoms}"]
        groups = [np.array([v for v, m in zip(own[column], own.n, strict=True) if m == n]) for n in SIZES]
        mean, median = line(axis, f"{NAMES[atoms]}: mean"), line(axis, f"{NAMES[atoms]}: median")
        assert mean.get_xdata().tolist() == median.get_xdata().tolist() == list(SIZES)
        assert mean.get_ydata() == pytest.approx([g.sum() / 40 for g in groups], rel=1e-12)
        assert median.get_ydata() == pytest.approx([(np.sort(g)[19] + np.sort(g)[20]) / 2 for g in groups], rel=1e-12)
        assert mean.get_color() == median.get_color()
        colours.add(to_hex(mean.get_color()))
    assert len(colours) == len(axis.collections) == len(FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", COLUMNS)
def test_the_law_is_drawn_from_its_constant_where_there_is_one(figure, family, loss):
    """And no line is fitted. Where there is none the panel says why."""
    _, constant, exponent = COLUMNS[loss]
    axis, atoms = panel(figure, family, loss), FAMILIES[family]
    drawn = lines(axis, LAW)
    assert len(drawn) == (len(atoms) if family != "prefix" else 0)
    for law in drawn:
        assert law.get_ydata() == pytest.approx([constant * n**exponent for n in SIZES], rel=1e-12)
    assert len(axis.get_lines()) == 2 * len(atoms) + len(drawn)
    if drawn:
        assert title(axis).endswith({-0.5: "1/2", -0.25: "1/4"}[exponent])
    elif loss in ("D", "split"):
        assert "σ₂ = 0" in title(axis)
    else:
        assert "constant unknown" in words(axis)


def test_slopes_are_written_in_their_panels(figure):
    for cell in cells_of(over, ROWS, NOTES):
        family = cell.relation.family
        for summary in cell.summaries:
            told = words(panel(figure, family, summary.name))
            assert power(summary.fit) in told and len([word for word in told if "n^" in word]) == len(FAMILIES[family])


def test_the_legend_names_colours_lines_and_the_law(figure):
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [*NAMES.values(), "mean", "median", "10 % to 90 % of replicates", LAW]
    bare = [text.get_text() for text in draw(notes={}).legends[0].get_texts()]
    assert bare == labels[:-1]  # a line that is not drawn is not named


def test_equal_rows_equal_bytes(tmp_path):
    own = ROWS[ROWS.truth == "VAPT, L = 1"]
    again = planted_over()
    pairs = ((own, NOTES), (again[again.truth == "VAPT, L = 1"], dict(NOTES)), (own.assign(split_error=1.1), NOTES))
    one, other, moved = (
        save_figure(draw(rows, notes), tmp_path / f"{k}.pdf").read_bytes() for k, (rows, notes) in enumerate(pairs)
    )
    assert one == other != moved and len(one) > 10_000


def test_part_of_a_study_is_drawn():
    """One family; one size; no limits; a cell without a number."""
    assert len(draw(ROWS[ROWS.truth == "VAPT, L = 1"]).axes) == 4
    single = draw(ROWS[ROWS.n == 67])
    assert not [word for axis in single.axes for word in words(axis) if "n^" in word]
    assert not [law for axis in draw(notes={}).axes for law in lines(axis, LAW)]
    failed = ROWS.copy()
    failed.loc[failed.truth == "VAPT, L = 1", [name for name, *_ in COLUMNS.values()]] = np.nan
    broken = draw(failed)
    broken.canvas.draw()
    assert len(broken.axes) == 12


def test_truths_by_any_name():
    """A user's truth need not be of a known family: it then has a row of its own, under its own name."""
    population = replace(over.truths["VPT, L = 1"], family=None)
    own = replace(over, truths={"mine": population}, smooth=("mine",))
    drawn = draw(planted_over(own), {}, own)
    assert drawn.axes[0].get_ylabel() == "mine" and len(lines(drawn.axes[0], f"{NAMES[1]}: mean")) == 1
