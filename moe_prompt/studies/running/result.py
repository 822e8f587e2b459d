"""Run a study and look at what it found: rows, cells, a table, a figure, an export.

result = run_study(study)                     # in memory, one process
result = run_study(study, "results", jobs=2)  # rows reach results/NAME.sqlite at once; what is there is not repeated
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from moe_prompt.basics import provenance
from moe_prompt.errors import require
from moe_prompt.studies.analysis.captions import caption, figure_note
from moe_prompt.studies.analysis.cells import Cell, cells_of
from moe_prompt.studies.analysis.tables import cells_table
from moe_prompt.studies.base import Study
from moe_prompt.studies.loading import load
from moe_prompt.studies.running import archive, runner
from moe_prompt.studies.running.database import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class StudyResult:
    """The rows of a study, (cells * sizes * replicates, columns), and what was noted beside them.

    `computed` and `restored` count the fits that this run computed and those that it took over from exported rows.
    """

    study: Study
    rows: pd.DataFrame
    notes: Mapping[str, Any]
    computed: int = 0
    restored: int = 0

    @classmethod
    def load(cls, study: Study | str, folder: str | Path) -> StudyResult:
        """The rows that a folder has of a study, from its database or from an export; InputError if it has none."""
        study = load(study) if isinstance(study, str) else study
        rows, notes, _ = archive.load_rows(study, Path(folder))
        return cls(study, rows, notes)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell that has rows: slopes with standard errors, and what was measured over what was predicted."""
        return cells_of(self.study, self.rows, self.notes)

    def table(self) -> str:
        """The cells as aligned text, with a line on every column."""
        return cells_table(self.cells)

    def caption(self) -> str:
        """What the rows say, in sentences."""
        return caption(self.study, self.cells)

    def note(self) -> str:
        """The small line under the caption: how the fits ended, and how to read the panels."""
        return figure_note(self.cells)

    def plot(self) -> Figure:
        """Error against n with the lines that theory draws, as a matplotlib figure."""
        from moe_prompt.plotting.study_figure import draw_study  # drawing is loaded when asked for, and not before

        return draw_study(self.study, self.cells)

    def export(self, folder: str | Path, format: str = "csv") -> list[Path]:
        """Write the rows as CSV or Parquet and their provenance as JSON; the paths of both."""
        return archive.write_export(self.study, self.rows, self.notes, Path(folder), format)


def run_study(
    study: Study | str,
    folder: str | Path | None = None,
    jobs: int = 1,
    dask: str | None = None,
    progress: Callable[[int, float, float], None] = lambda fits, done, total: None,
) -> StudyResult:
    """Compute the rows of a study that are not there yet, (cells * sizes * replicates, columns) in all.

    Args:
        study: a study, the name of one, or the path of a Python file that defines `study`.
        folder: where the database is, and exported rows to go on from; None keeps the rows in memory alone.
        jobs: worker processes. `dask`: the address of a Dask scheduler, or "local".
        progress: is told the fits so far, their cost and the total cost after every batch.

    Raises:
        InputError: an unknown study, a folder that cannot be written, a database of other columns.
    """
    require(jobs >= 1, f"a study needs at least one worker process: got jobs={jobs}.")
    study = load(study) if isinstance(study, str) else study
    results = Results(Path(":memory:") if folder is None else archive.database(Path(folder), study.name), study.columns)
    try:
        restored = 0 if folder is None else archive.restore(study, Path(folder), results)
        results.note(study.key, "environment", provenance.environment())
        computed = runner.run(study, results, jobs, dask, progress)
        rows = archive.of_study(study, results.frame(study.key))
        return StudyResult(study, rows, results.notes(study.key), computed, restored)
    finally:
        results.close()


def plot_study(result: StudyResult) -> Figure:
    """The figure of a study's rows: error against n on log axes, with theory's lines constant * n^slope."""
    return result.plot()
