"""One row per training in an embedded database: written at once, shared by processes, exported as CSV.

A row is kept under the content hash of what was run, so the same training is never run twice; a training that failed
is a row too. SQLite in write-ahead mode lets several processes of one machine read and write the same file.
"""

from __future__ import annotations

import csv
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moe_prompt.errors import InputError, require

SEARCH, FINAL = "search", "final"
PURPOSES = (SEARCH, FINAL)
PATIENCE = 120.0  # seconds that a statement waits for another process to finish writing
_POLL = 0.2  # seconds between two looks at a lock that another process holds


@dataclass(frozen=True)
class RunRow:
    """One training: what it was, what it gave, what it cost, and with what it was made."""

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
    """Of training, features that were computed once included, tests not."""
    seconds_test: float
    peak_memory_mb: float
    memory_kind: str
    """Of what that is the peak: see :class:`moe_prompt.vision.runtime.memory.PeakMemory`."""
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
    """What the key is the hash of, JSON."""
    made_with: str
    """Versions, machine and commit, JSON."""


_KINDS = {"int": "INTEGER", "bool": "INTEGER", "float": "REAL", "float | None": "REAL", "str": "TEXT"}
_TYPES = {field.name: str(field.type) for field in fields(RunRow)}


class RunTable:
    """The rows in one SQLite file.

    Raises:
        InputError: the file cannot be written, is broken, or has the columns of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        columns = ", ".join(
            f'"{name}" {_KINDS[kind]}' + " PRIMARY KEY" * (name == "key") for name, kind in _TYPES.items()
        )
        check_database(path)
        with self._open() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"CREATE TABLE IF NOT EXISTS runs ({columns})")
            found = [row[1] for row in db.execute("PRAGMA table_info(runs)")]
        require(
            found == list(_TYPES),
            f"{path} has other columns than this version writes: export it with the version that wrote it, or name "
            "another folder.",
        )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection of this moment, so that a table can be used after a fork and leaves nothing open."""
        try:
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as db, db:
                yield db
        except sqlite3.Error as error:
            raise InputError(_advice(self.path, error)) from None

    def add(self, row: RunRow) -> RunRow:
        """Write a row and return it, or the row that is there already under its key."""
        names, holes = ", ".join(f'"{name}"' for name in _TYPES), ", ".join("?" for _ in _TYPES)
        with self._open() as db:
            db.execute(
                f"INSERT INTO runs ({names}) VALUES ({holes}) ON CONFLICT (key) DO NOTHING", tuple(asdict(row).values())
            )
        found = self.get(row.key)
        assert found is not None
        return found

    def get(self, key: str) -> RunRow | None:
        """The row under a key."""
        with self._open() as db:
            found = db.execute("SELECT * FROM runs WHERE key = ?", (key,)).fetchone()
        return None if found is None else _row(found)

    def rows(self) -> tuple[RunRow, ...]:
        """All rows, by task, method, purpose and time."""
        with self._open() as db:
            found = db.execute("SELECT * FROM runs ORDER BY task, label, purpose, finished_utc, seed, key").fetchall()
        return tuple(_row(values) for values in found)


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


def check_database(path: Path) -> None:
    """A sentence where a file that should be a database of SQLite is none; a new one may be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=PATIENCE)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}): name a folder you may write to.") from None
    except sqlite3.Error as error:
        raise InputError(_advice(path, error)) from None


class Busy(Exception):
    """Another process has the lock."""


@contextmanager
def exclusively(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock among the processes of a machine; the system gives it back when its holder dies, however it dies.

    It is SQLite's own lock of an empty database, the one that works the same on every system.

    Raises:
        Busy: another holds it, and `wait` is False.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = sqlite3.connect(path, timeout=0, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"cannot lock {path} ({error}): name a folder you may write to.") from None
    with closing(opened) as lock:
        while True:
            try:
                lock.execute("BEGIN EXCLUSIVE")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise InputError(f"cannot lock {path} ({error}): name a folder you may write to.") from None
            if not wait:
                raise Busy(path)
            time.sleep(_POLL)
        try:
            yield
        finally:
            with suppress(sqlite3.Error):
                lock.execute("ROLLBACK")


def _row(values: tuple[Any, ...]) -> RunRow:
    named = dict(zip(_TYPES, values, strict=True))
    return RunRow(**named | {"failed": bool(named["failed"])})


def _value(name: str, text: str) -> Any:
    kind = _TYPES[name]
    if kind == "str":
        return text
    if kind == "bool":
        return {"True": True, "False": False}[text] if text in ("True", "False") else bool(int(text))
    if kind.endswith("None") and text == "":
        return None
    return int(text) if kind == "int" else float(text)


def _advice(path: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"{path} is in use by another program ({error}): wait for that to end and run again."
    if "unable to open" in str(error) or "readonly" in str(error):
        return f"cannot write {path} ({error}): name a folder you may write to."
    return f"{path} is not a usable database of runs ({error}): move it away and run again; nothing in it was changed."
