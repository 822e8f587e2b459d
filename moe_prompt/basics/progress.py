"""The progress of a long computation with the time left: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from moe_prompt.basics.tables import duration

_WORDS = {"train": "training", "test": "testing", "fits": ""}
_BRIEF = ("test", "features")  # phases whose end is not worth a line
Amount = int | float


class ProgressBar:
    """Called with a phase, how much of it is done, how much it is (None: unknown) and a few words on it.

    Everything goes to standard error.
    """

    def __init__(self, name: str, every: float = 10.0) -> None:
        self.name, self.every = name, every
        console = Console(stderr=True)
        self.live = console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=console)
        self.tasks: dict[str, TaskID] = {}
        self.spoke = time.monotonic()
        self.began: dict[str, tuple[float, Amount]] = {}
        self.before: dict[str, Amount] = {}

    def __enter__(self) -> ProgressBar:
        if self.live:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:  # stopped without a start, it would print an empty line
            self.bar.stop()

    def __call__(self, phase: str, done: Amount, total: Amount | None, note: str = "") -> None:
        words = f"{self.name}: " + ", ".join(filter(None, (_WORDS.get(phase, phase), note)))
        if self.live:
            self._draw(phase, done, total, words)
        elif total is not None:
            self._say(phase, done, total, words)

    def of_fits(self, fits: int, cost: float, total: float) -> None:
        """The progress of a study: its cells' limits first, with no fit done, then the fits, by their cost."""
        if self.live:
            self("limits", *((1, 1) if fits else (0, None)))
        self("fits", cost, total, f"{fits} fits")

    def _draw(self, phase: str, done: Amount, total: Amount | None, words: str) -> None:
        if phase not in self.tasks:
            self.tasks[phase] = self.bar.add_task(words, total=total)
        going_on = total is None or done < total
        self.bar.update(self.tasks[phase], completed=done, total=total, description=words, visible=going_on)

    def _say(self, phase: str, done: Amount, total: Amount, words: str) -> None:
        now = time.monotonic()
        if done == 0 or done < self.before.get(phase, math.inf):  # the phase begins: a first time, or once more
            self.began[phase] = (now, done)
        self.before[phase] = done
        since, at = self.began[phase]  # a resumed training does not begin at 0
        ended = done >= total and phase not in _BRIEF
        if now - self.spoke >= self.every or ended:
            self.spoke = now
            left = f", {duration((now - since) * (total - done) / (done - at))} left" if done > at else ""
            print(f"{words}, {done / total:.0%}{left}", file=sys.stderr)
