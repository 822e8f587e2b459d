"""One row per fit in an embedded database: written at once, keyed by the study's content and the fit's coordinates."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from moe_prompt.studies.running.row_store import RowStore, connect, storage_errors_told

KEY = ("study", "truth", "estimator", "n", "replicate")
PLACE = {
    "study": "TEXT NOT NULL",
    "truth": "TEXT NOT NULL",
    "estimator": "TEXT NOT NULL",
    "n": "INTEGER NOT NULL",
    "replicate": "INTEGER NOT NULL",
}
FIT = {
    "objective": "REAL",
    "converged": "INTEGER",
    "at_boundary": "INTEGER",
    "steps": "INTEGER",
    "gradient_norm": "REAL",
    "offset": "REAL",
    "cpu_seconds": "REAL",
    "message": "TEXT",
}
Row = dict[str, Any]


def columns_of(judged: Mapping[str, str]) -> dict[str, str]:
    """Name -> SQLite type of all columns of a study: coordinates, the numbers it judges by, how a fit ended."""
    return {**PLACE, **judged, **FIT}


def limits_note(truth: str, estimator: str) -> str:
    """The name under which the limits of a cell are noted, in databases and in exports."""
    return f"limits {truth} {estimator}"


class Results:
    """The rows of studies in one SQLite file, a transaction per batch: a kill loses at most the batch in flight.

    `judged` are the columns beside the common ones, name -> SQLite type.
    """

    def __init__(self, path: Path, judged: Mapping[str, str]) -> None:
        self.path, self.store = path, RowStore("fits", columns_of(judged), KEY)
        self.connection = connect(path)
        with self._transaction() as db:
            self.store.create(db, path)
            db.execute(
                "CREATE TABLE IF NOT EXISTS notes (study TEXT, name TEXT, value TEXT, PRIMARY KEY (study, name))"
            )
            verdict = db.execute("PRAGMA quick_check").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict.splitlines()[-1])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Whole or not at all, and a sentence where the file is locked or broken."""
        with storage_errors_told(self.path), self.connection as db:
            yield db

    def add(self, rows: Iterable[Row]) -> None:
        """Write the rows of one batch; a row that is there already stays as it is."""
        with self._transaction() as db:
            self.store.insert(db, rows)

    def done(self, study: str) -> set[tuple[str, str, int, int]]:
        """Coordinates (truth, estimator, n, replicate) of the rows that a study has."""
        query = "SELECT truth, estimator, n, replicate FROM fits WHERE study = ?"
        with self._transaction() as db:
            return set(db.execute(query, (study,)))

    def frame(self, study: str) -> pd.DataFrame:
        """All rows of a study, in the order of their coordinates."""
        order = ", ".join(KEY)
        query = f"SELECT * FROM fits WHERE study = ? ORDER BY {order}"
        numbers = [
            name for name, kind in self.store.columns.items() if kind == "REAL"
        ]  # a column of NULLs is none to pandas
        with self._transaction() as db:
            return pd.read_sql_query(query, db, params=(study,)).astype(dict.fromkeys(numbers, float))

    def note(self, study: str, name: str, value: Any) -> None:
        """Keep something about a study that is not a fit: its limits, its runs."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (study, name, json.dumps(value)))

    def notes(self, study: str) -> dict[str, Any]:
        """Everything noted about a study."""
        with self._transaction() as db:
            found = db.execute("SELECT name, value FROM notes WHERE study = ?", (study,))
            return {name: json.loads(value) for name, value in found}

    def close(self) -> None:
        self.connection.close()
