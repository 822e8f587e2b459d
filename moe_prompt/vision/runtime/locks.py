"""A lock among the processes of one machine, which the system gives back when its holder dies, however it dies."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from moe_prompt.studies.running.row_store import storage_errors_told

_POLL = 0.2  # seconds between two looks at a lock that another process holds


class Busy(Exception):
    """Another process has the lock."""


@contextmanager
def exclusively(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of this name. It is SQLite's own lock of an empty database, which works the same on every system.

    Raises:
        Busy: another process holds it, and `wait` is False.
        InputError: the file cannot be written.
    """
    with storage_errors_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(path, timeout=0, isolation_level=None)
    with closing(lock):
        while not _taken(lock, path):
            if not wait:
                raise Busy(path)
            time.sleep(_POLL)
        try:
            yield
        finally:
            with suppress(sqlite3.Error):
                lock.execute("ROLLBACK")


def _taken(lock: sqlite3.Connection, path: Path) -> bool:
    """Whether the lock was free and is now ours."""
    with storage_errors_told(path):
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
    return True
