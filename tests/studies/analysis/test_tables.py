"""Tables as text: a line for every quantity of a cell, and one on the meaning of every column."""

from moe_prompt.basics.tables import explained
from moe_prompt.studies.analysis.cells import all_summaries, cells_of
from moe_prompt.studies.analysis.planning import SLOPES
from moe_prompt.studies.analysis.sample_complexity import SIZES
from moe_prompt.studies.analysis.tables import COLUMNS, cells_table
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study


def test_every_quantity_has_its_line():
    cells = cells_of(study, planted_rows(study), NOTES)
    lines = cells_table(cells).split("\n\n")[0].splitlines()
    assert len(lines) == 7
    for found, line in zip(all_summaries(cells), lines[1:], strict=True):
        words = line.split()
        assert words[:4] == [found.cell.truth, found.cell.estimator, found.name, "mean"]
        assert f"{found.slope:.3f} ± {found.stderr:.3f}" in line and words[-1] == "0/15"
        assert ("1.010" in words) == found.cell.relation.misspecified


def test_every_column_is_explained():
    for columns in (COLUMNS, SIZES, SLOPES):
        table, meanings = explained(columns, [["x"] * len(columns)]).split("\n\n")
        head = table.splitlines()[0]
        assert all(name in head for name in columns)
        told = dict(zip(columns, meanings.splitlines(), strict=True))
        assert all(line.startswith(name) and columns[name] in line for name, line in told.items())
        assert all(len(meaning) > 8 for meaning in columns.values())
