"""Tables between markers: what a line of planted rows says, and what stays of the page around it."""

import numpy as np
import pandas as pd
import pytest

from moe_prompt.basics.tables import markdown
from moe_prompt.errors import InputError
from moe_prompt.studies.analysis.blocks import fill_blocks, study_block
from moe_prompt.studies.analysis.cells import Cell, cells_of
from moe_prompt.studies.base import Quantity, Relation
from tests.builders.pages import tables
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study

SIZES = (100, 1000, 10_000)


def cell(name, relation, laws, limits, replicates=3):
    """A cell whose errors are constant * n^power without scatter, for every (quantity, constant, power)."""
    rows = [
        {"n": n, "replicate": r, "objective": 1.0, "converged": 1, "at_boundary": r == 0}
        | {q.column: constant * n**power for q, constant, power in laws}
        for n in SIZES
        for r in range(replicates)
    ]
    return Cell(
        truth=name,
        estimator="fit",
        title=name,
        relation=relation,
        quantities=tuple(q for q, _, _ in laws),
        window=(100, 10_000),
        limits=limits,
        rows=pd.DataFrame(rows),
    )


def planted():
    split = Quantity("t", "split", -0.25, "c", short="split")
    free = Quantity("t", "split", short="split")
    over = Relation(2, 3, True)
    return [
        cell("first", over, [(split, 3.0, -0.25)], {"c": 2.0}),
        cell("second", over, [(split, 5.0, -0.125)], {"c": 2.0}),
        cell("third", over, [(free, 1.0, -0.5)], {}),
    ]


def test_a_line_for_each_quantity_with_and_without_a_prediction():
    ((predicted, free),) = tables(study_block(planted()))
    ratios = sorted((1.5, 5.0 * 10_000**-0.125 / (2.0 * 10_000**-0.25)))
    near = "{:.2f} to {:.2f}".format(*ratios)
    assert predicted == ["split", "2", "-0.25", "-0.250 to -0.125", "1 of 2", near, "-"]
    assert free == ["split", "1", "-", "-0.500", "-", "-", f"{0.1:.2f}"]


def test_fits_are_counted_once():
    counted = study_block(planted()).split("\n\n")[1]
    assert counted.startswith("27 fits") and " 9 " in counted and "n = 100 to 10,000" in counted


def test_a_line_for_each_cell_where_a_model_is_fitted_to_anothers_data():
    """Efficiencies and floors are those of plain means over the planted rows."""
    rows = planted_rows(study)
    cells = cells_of(study, rows, NOTES)
    (lines,) = tables(study_block(cells))
    last = rows[rows.n == rows.n.max()]
    for line, (truth, estimator) in zip(lines, study.cells, strict=True):
        own = last[(last.truth == truth) & (last.estimator == estimator)]
        assert line[:2] == [truth, estimator]
        if truth == estimator:
            assert line[4].startswith(f"{own.efficiency.mean():.2f} ±") and line[5:] == ["-", "-"]
        else:
            floor = NOTES[f"limits {truth} {estimator}"]["floor"]
            assert line[2:5] == ["-"] * 3 and line[5:] == [f"{own.excess_risk.mean() / floor:.3f}", f"{floor:.3g}"]


def test_two_blocks_are_filled_and_the_rest_stays():
    page = "# a\n<!-- begin x -->\nold\n\nold\n<!-- end x -->\nb\n<!-- begin y-z -->\n<!-- end y-z -->\n"
    filled = fill_blocks(page, lambda name: f"{name}\nnew")
    assert filled == page.replace("old\n\nold", "x\nnew").replace("y-z -->\n<", "y-z -->\ny-z\nnew\n<")
    assert fill_blocks(filled, lambda name: f"{name}\nnew") == filled
    assert fill_blocks("<!-- begin x -->\n", str.upper) == "<!-- begin x -->\n"


def test_no_rows_no_table():
    with pytest.raises(InputError, match="needs rows"):
        study_block([])


def test_tables_are_read_back():
    rows = [("a", "|x|"), ("1", "b | c")]
    assert tables(markdown(rows)) == [[["1", "b | c"]]] and np.shape(markdown(rows).splitlines()) == (3,)
