"""Progress of a training with the time left: on the terminal, or a line every ten seconds where there is none."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PHASES = {"train": "training", "test": "testing", "features": "features"}


class TrainingProgress:
    """Called as `training.evaluation.Progress`: phase, how much of it is done, of how much, a note."""

    def __init__(self, name: str, every: float = 10.0) -> None:
        self.name, self.every = name, every
        console = Console(stderr=True)
        self.live = console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self.bar = Bar(*columns, TimeRemainingColumn(), TextColumn("left"), console=console)
        self.tasks: dict[str, TaskID] = {}
        self.spoke = time.monotonic()
        self.began: dict[str, tuple[float, int]] = {}
        self.before: dict[str, int] = {}

    def __enter__(self) -> TrainingProgress:
        if self.live:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:  # stopped without a start, it would print an empty line
            self.bar.stop()

    def __call__(self, phase: str, done: int, total: int, note: str) -> None:
        words = f"{self.name}: {PHASES.get(phase, phase)}" + (f", {note}" if note else "")
        if self.live:
            self._draw(phase, done, total, words)
        else:
            self._say(phase, done, total, words)

    def _draw(self, phase: str, done: int, total: int, words: str) -> None:
        if phase not in self.tasks:
            self.tasks[phase] = self.bar.add_task(words, total=total)
        self.bar.update(self.tasks[phase], completed=done, total=total, description=words, visible=done < total)

    def _say(self, phase: str, done: int, total: int, words: str) -> None:
        now = time.monotonic()
        if done < self.before.get(phase, math.inf):  # the phase begins: a first time, or once more as tests do
            self.began[phase] = (now, done)
        self.before[phase] = done
        since, at = self.began[phase]  # a resumed training does not begin at 0
        if now - self.spoke >= self.every or (phase == "train" and done == total):
            self.spoke = now
            left = f", {(now - since) * (total - done) / (done - at):.0f} s left" if done > at else ""
            print(f"{words}, {done / total:.0%}{left}", file=sys.stderr)
