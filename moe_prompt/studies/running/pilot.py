"""The rows that a plan rests on: those that are there, or those of a pilot that takes about a minute.

A pilot runs a few replicates of the study itself, so that its rows are among those the study needs and stay in the
database: nothing computed is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from moe_prompt.basics import provenance
from moe_prompt.errors import InputError
from moe_prompt.studies.base import Study
from moe_prompt.studies.running import archive, runner
from moe_prompt.studies.running.database import KEY, Results

LEAST = 4  # replicates at two sizes of the window, for a scatter to be told from
FIRST, MOST = 6, 25  # replicates of a pilot
SECONDS = 40.0
Progress = Callable[[int, float, float], None]


class Basis(NamedTuple):
    """Rows to plan by, the coordinates that a run need not compute, and in words where the rows are from."""

    rows: pd.DataFrame
    done: set[tuple[str, str, int, int]]
    source: str


def sufficient(study: Study, rows: pd.DataFrame) -> bool:
    """Whether every cell has replicates enough at two sizes of the window."""
    counts = rows[rows.n.between(*study.window)].groupby(["truth", "estimator", "n"]).size()
    enough = counts[counts >= min(LEAST, study.replicates)].groupby(["truth", "estimator"]).size()
    return all(enough.get(cell, 0) >= 2 for cell in study.cells)


def known_basis(study: Study, folder: Path) -> Basis | None:
    """The rows in a folder, database or export, if they suffice."""
    try:
        rows, _, source = archive.load_rows(study, folder)
    except InputError:
        return None
    if not sufficient(study, rows):
        return None
    path = archive.database(folder, study.name)
    done: set[tuple[str, str, int, int]] = set()
    if path.exists():
        results = Results(path, study.columns)
        done = results.done(study.key)
        results.close()
    done = done or set(rows[list(KEY[1:])].itertuples(index=False, name=None))  # exported: a run takes them over
    return Basis(rows, done, f"{len(rows)} rows of {source}: cost and scatter as measured there")


def pilot_basis(study: Study, folder: Path, progress: Progress = lambda fits, cost, total: None) -> Basis:
    """The rows of a pilot that is run now, and kept in the database: the study needs them anyway."""
    results = Results(archive.database(folder, study.name), study.columns)
    try:
        archive.restore(study, folder, results)  # which does nothing once the pilot's rows are there
        results.note(study.key, "environment", provenance.environment())
        sizes = pilot(study, results, progress=progress)
        rows, _, source = archive.load_rows(study, folder)
        words = f"{len(rows)} rows of {source}, after a pilot at n = {', '.join(map(str, sizes))}: costs beyond follow "
        return Basis(rows, results.done(study.key), words + "the study's own estimate")
    finally:
        results.close()


def pilot(
    study: Study,
    results: Results,
    seconds: float = SECONDS,
    progress: Progress = lambda fits, cost, total: None,
) -> tuple[int, ...]:
    """A few replicates at two sizes of the window, more while there is time; returns the sizes.

    The sizes are the smallest and the one a quarter of the way up, whose cost is still small.
    """
    inside = [n for n in sorted(study.sizes) if study.window[0] <= n <= study.window[1]]
    sizes = (inside[0], inside[max(1, len(inside) // 4)])

    def run(replicates: int) -> float:
        began = time.monotonic()
        few = replace(study, sizes=sizes, quick_sizes=sizes, quick_replicates=replicates).quick()
        runner.run(few, results, progress=progress)
        return time.monotonic() - began

    before = float(results.frame(study.key).cpu_seconds.sum())
    took = run(FIRST)
    rows = results.frame(study.key)
    spent = float(rows.cpu_seconds.sum()) - before  # the rest of what it took were limits, which a second run repeats
    fits = float(rows[rows.n.isin(sizes) & (rows.replicate < FIRST)].cpu_seconds.sum())
    more = int(FIRST * (seconds - 2 * took + spent) / max(fits, 1e-3))
    if more > 0:
        run(min(FIRST + more, MOST))
    return sizes
