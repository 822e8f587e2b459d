"""What every table of rows in SQLite has in common: how a file is opened, its columns checked, and a row kept once.

Whatever goes wrong with a file is told in one sentence that names the file and says what to do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_prompt.errors import InputError, require

PATIENCE = 120.0  # seconds that a statement waits for another process to finish writing


@dataclass(frozen=True)
class RowStore:
    """A table `name` with `columns` (name -> SQLite type), at most one row for each value of the columns `key`."""

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]

    def create(self, db: sqlite3.Connection, path: Path) -> None:
        """Make the table unless it is there; one that is there needs these columns.

        Raises:
            InputError: the table has other columns; it stays as it is.
        """
        columns = ", ".join(f'"{name}" {kind}' for name, kind in self.columns.items())
        db.execute(f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}, PRIMARY KEY ({', '.join(self.key)}))")
        found = {row[1] for row in db.execute(f"PRAGMA table_info({self.name})")}
        require(
            found == set(self.columns),
            f"{path} has other columns than this version writes: move the file away, or name another folder with "
            "--out.",
        )

    def insert(self, db: sqlite3.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows; a row that is there already stays as it is."""
        names, holes = (", ".join(form.format(name) for name in self.columns) for form in ('"{}"', ":{}"))
        conflict = f"ON CONFLICT ({', '.join(self.key)}) DO NOTHING"
        db.executemany(f"INSERT INTO {self.name} ({names}) VALUES ({holes}) {conflict}", rows)

    def select(self, db: sqlite3.Connection, rest: str = "", values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        """Rows as mappings of the columns; `rest` is what follows the table's name in the query."""
        names = ", ".join(f'"{name}"' for name in self.columns)
        found = db.execute(f"SELECT {names} FROM {self.name} {rest}", tuple(values))
        return [dict(zip(self.columns, row, strict=True)) for row in found]


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a file that is a database, or a new one; its folder is made where it is missing.

    Raises:
        InputError: the file cannot be written, or it is no database.
    """
    with storage_errors_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=PATIENCE)
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return db


@contextmanager
def storage_errors_told(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the file meanwhile into an :class:`InputError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:  # pandas wraps what SQLite says in an OSError
        raise InputError(_advice(path, error.__cause__ or error)) from None


def _advice(path: Path, error: BaseException) -> str:
    if "locked" in str(error):
        return f"{path} is in use by another program ({error}): wait for that to end and run again."
    if isinstance(error, OSError) or "unable to open" in str(error) or "readonly" in str(error):
        return f"cannot write {path} ({error}): name a folder you may write to with --out."
    return f"{path} is not a usable database of rows ({error}): move it away and run again; nothing in it was changed."
