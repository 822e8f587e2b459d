"""One row per training in an SQLite database, written as soon as the training ends and exported as CSV.

The key of a row is a hash of everything that the training depends on, so the same training is never run twice. A
training that failed is a row too. Several processes of one machine may read and write the same file.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moe_prompt.errors import InputError, require
from moe_prompt.studies.running.row_store import RowStore, connect, explained

SEARCH, FINAL = "search", "final"
PURPOSES = (SEARCH, FINAL)


@dataclass(frozen=True)
class RunRow:
    """One training: its settings, its result, its cost, and the software and machine that computed it."""

    key: str
    """Content hash of everything that the result depends on."""
    purpose: str
    """"search": evaluated on the validation split. "final": evaluated once, at the last epoch, on test."""
    task: str
    label: str
    """The method's name in tables."""
    method: str
    """Name and options, JSON."""
    backbone: str
    backbone_sha: str
    height: int
    width: int
    training: str
    evaluation: str
    """Names of the splits."""
    share: float
    """Of the training split that was used."""
    optimizer: str
    base_lr: float
    weight_decay: float
    seed: int
    epochs: int
    batch: int
    precision: str
    classes: int
    training_images: int
    evaluation_images: int
    accuracy: float | None
    """Top-1 in percent on `evaluation` at the last epoch; None where the training failed."""
    train_loss: float | None
    failed: bool
    message: str
    seconds: float
    """Of training. It includes computing features, also where another run computed them, and excludes tests."""
    seconds_test: float
    peak_memory_mb: float
    memory_kind: str
    """What was measured: see :class:`moe_prompt.vision.runtime.memory.PeakMemory`."""
    tuned_parameters: int
    """Without the head."""
    head_parameters: int
    backbone_parameters: int
    flops_forward: float | None
    """Of one picture, evaluation mode."""
    flops_step: float | None
    """Of one picture, forward and backward."""
    finished_utc: str
    spec: str
    """The content of which the key is the hash, JSON."""
    made_with: str
    """Versions, machine and commit, JSON."""


_KINDS = {"int": "INTEGER", "bool": "INTEGER", "float": "REAL", "float | None": "REAL", "str": "TEXT"}
_TYPES = {field.name: str(field.type) for field in fields(RunRow)}
_STORE = RowStore("runs", {name: _KINDS[kind] for name, kind in _TYPES.items()}, ("key",))


class RunTable:
    """The rows in one SQLite file.

    Raises:
        InputError: the file cannot be written, is broken, or has the columns of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as db:
            db.execute("PRAGMA journal_mode = WAL")
            _STORE.create(db, path)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A new connection each time, so that a table can be used after a fork and leaves no file open."""
        with explained(self.path), closing(connect(self.path)) as db, db:
            yield db

    def add(self, row: RunRow) -> RunRow:
        """Write a row and return it, or the row that is there already under its key."""
        with self._open() as db:
            _STORE.insert(db, [asdict(row)])
        found = self.get(row.key)
        assert found is not None
        return found

    def get(self, key: str) -> RunRow | None:
        """The row under a key."""
        found = self._rows("WHERE key = ?", key)
        return found[0] if found else None

    def rows(self) -> tuple[RunRow, ...]:
        """All rows, by task, method, purpose and time."""
        return self._rows("ORDER BY task, label, purpose, finished_utc, seed, key")

    def _rows(self, rest: str, *values: str) -> tuple[RunRow, ...]:
        with self._open() as db:
            found = _STORE.select(db, rest, values)
        return tuple(RunRow(**row | {"failed": bool(row["failed"])}) for row in found)


def write_rows(path: Path, rows: Iterable[RunRow]) -> Path:
    """The rows as CSV: the same rows give the same bytes."""
    try:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(_TYPES), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}): name a file that you may write.") from None
    return path


def read_rows(path: str | Path) -> tuple[RunRow, ...]:
    """Rows of a database, of a CSV that was exported from one, or of a folder with `runs.sqlite` or `runs.csv`.

    Raises:
        InputError: naming the file: missing, or not of this form.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in ("runs.sqlite", "runs.csv") if (path / name).exists()), path)
    require(path.is_file(), f"{path} has no runs: name a folder or file that a tuning wrote.")
    if path.suffix != ".csv":
        return RunTable(path).rows()
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            require(reader.fieldnames == list(_TYPES), f"{path} needs the columns of an export of runs.")
            return tuple(RunRow(**{name: _value(name, text) for name, text in line.items()}) for line in reader)
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as rows of runs ({error}): export them again.") from None


def _value(name: str, text: str) -> Any:
    kind = _TYPES[name]
    if kind == "str":
        return text
    if kind == "bool":
        return {"True": True, "False": False}[text] if text in ("True", "False") else bool(int(text))
    if kind.endswith("None") and text == "":
        return None
    return int(text) if kind == "int" else float(text)
