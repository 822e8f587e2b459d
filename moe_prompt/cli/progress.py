"""Progress of a run on the terminal, or a line every ten seconds where output is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Called with the fits so far, their cost and the total cost."""

    def __init__(self, name: str, every: float = 10.0) -> None:
        self.name, self.every = name, every
        self.began = self.spoke = time.monotonic()
        console = Console(stderr=True)
        self.live = console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self.bar = Bar(*columns, TimeRemainingColumn(), TextColumn("left"), console=console)
        self.task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self.live:
            self.bar.start()
            self.task = self.bar.add_task(f"{self.name}: limits", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:  # stopped without a start, it would print an empty line
            self.bar.stop()

    def __call__(self, fits: int, cost: float, total: float) -> None:
        if not fits:
            self.began = time.monotonic()  # what came before were the limits, not batches
            return
        if self.live and self.task is not None:
            self.bar.update(self.task, completed=cost, total=total, description=f"{self.name}: {fits} fits")
            return
        now = time.monotonic()
        if now - self.spoke >= self.every or cost == total:
            self.spoke, took = now, now - self.began
            left = took * (total - cost) / cost
            print(f"{self.name}: {fits} fits, {cost / total:.0%}, {took:.0f} s, {left:.0f} s left", file=sys.stderr)
