"""Which layout belongs to which kind of study, and the committed studies as they are printed."""

from pathlib import Path

import numpy as np
import pytest

from moe_prompt.errors import InputError
from moe_prompt.plotting.study_figure import draw_study
from moe_prompt.studies.analysis.captions import figure_note
from moe_prompt.studies.analysis.cells import cells_of
from moe_prompt.studies.loading import load
from moe_prompt.studies.running.archive import load_rows
from tests.builders import planted_rows, small_study
from tests.builders.planted_over import NOTES, PLAIN_NOTES, SIZES, over, plain, planted_over, planted_plain
from tests.builders.read_figures import check_print, line, lines, panels, title

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_every_kind_of_study_has_its_layout():
    """Families by quantities for over-specified studies; a panel per cell and quantity for all others."""
    families = draw_study(over, cells_of(over, planted_over(), NOTES))
    assert [axis.get_ylabel() for axis in families.axes[::4]] == ["VPT", "VAPT", "prefix"]
    rows = planted_rows.planted_rows(small_study.study)
    cells = cells_of(small_study.study, rows, planted_rows.NOTES)
    rates = draw_study(small_study.study, cells)
    assert title(panels(rates)[0]).startswith("vpt fitted to vpt data") and "Starts at" in figure_note(cells)
    figure = draw_study(plain, cells_of(plain, planted_plain(), PLAIN_NOTES))
    first, second = panels(figure)
    assert [axis.get_ylabel() for axis in (first, second)] == ["distance", "range"]
    assert line(first, "law of the coin").get_ydata() == pytest.approx([4 * n**-0.5 for n in SIZES])
    assert not lines(second, "law") and line(second, "line fitted to the medians")
    assert "no rate predicted" in title(second)


def test_a_study_without_rows_is_not_drawn():
    with pytest.raises(InputError, match="no rows"):
        draw_study(plain, ())


@pytest.mark.parametrize(
    "name", ["contaminated", "softmax-gaussian", "gates", "gates-top-k", "vpt-vs-vapt", "norga", "over-specified-relu"]
)
def test_committed_studies_fit_the_page_and_rows_are_cells(name):
    """Where cells have as many quantities, two to four, each cell, or family, has a row."""
    study = load(name)
    found = load_rows(study, RESULTS, exported=True)
    figure = draw_study(study, cells_of(study, found.rows, found.notes))
    check_print(figure)
    counts = [len(study.quantities(*cell)) for cell in study.cells]
    columns = len(np.unique([round(axis.get_position().x0, 3) for axis in figure.axes]))
    assert columns == (counts[0] if len(set(counts)) == 1 else 3)
