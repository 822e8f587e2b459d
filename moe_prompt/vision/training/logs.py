"""The logs of a training: a row per step, a row per epoch, and TensorBoard's events."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_prompt.errors import InputError

STEP_COLUMNS = ("step", "epoch", "lr", "loss", "accuracy", "seconds", "images_per_second")
EPOCH_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "test_accuracy",
    "test_class_mean",
    "test_loss",
    "seconds",
)


class ResumableTable:
    """A CSV file that grows row by row and can continue from an earlier `position()`.

    What was written after that position is cut off, as those steps are taken once more.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], position: int = 0) -> None:
        self._path = path
        with self._told():
            held = path.stat().st_size if path.exists() else 0
            self._file = path.open("r+" if held else "w+", newline="", encoding="utf-8")
            self._file.truncate(min(position, held))  # someone may have shortened the log
            self._file.seek(0, 2)
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        if not self._file.tell():
            self._writer.writeheader()

    def add(self, row: Mapping[str, Any]) -> None:
        with self._told():
            self._writer.writerow({name: f"{v:.7g}" if isinstance(v, float) else v for name, v in row.items()})
            self._file.flush()

    def position(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the log {self._path} cannot be written ({error}): make room there, or name another folder; the same "
                "command continues from the last saved state."
            ) from error


class RunLogs:
    """`steps.csv`, `epochs.csv` and, if asked for, TensorBoard's events in `folder`; nothing without a folder.

    Steps and epochs are counted from 1 in what is written.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path | None, tensorboard: bool = False, positions: Sequence[int] = (0, 0), step: int = 0
    ) -> None:
        self._tables: list[ResumableTable] = []
        self._board = _board(folder, step) if tensorboard and folder is not None else None
        if folder is not None:
            names = ((folder / "steps.csv", STEP_COLUMNS), (folder / "epochs.csv", EPOCH_COLUMNS))
            self._tables = [ResumableTable(*name, at) for name, at in zip(names, positions, strict=True)]

    def step(self, row: Mapping[str, Any]) -> None:
        if self._tables:
            self._tables[0].add(row)
        self._draw("step", row, ("lr", "loss", "accuracy", "images_per_second"), row["step"])

    def epoch(self, row: Mapping[str, Any]) -> None:
        if self._tables:
            self._tables[1].add(row)
        self._draw("epoch", row, EPOCH_COLUMNS[1:-1], row["epoch"])

    def positions(self) -> list[int]:
        return [table.position() for table in self._tables] or [0, 0]

    def close(self) -> None:
        for table in self._tables:
            table.close()
        if self._board is not None:
            self._board.close()

    def _draw(self, group: str, row: Mapping[str, Any], names: Sequence[str], at: int) -> None:
        if self._board is not None:
            for name in names:
                if row[name] is not None:
                    self._board.add_scalar(f"{group}/{name}", row[name], at)


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard is not installed: pip install 'moe-prompt[vision]', or leave it out.") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
