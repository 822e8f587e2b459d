"""The learning rate over a training: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_prompt.errors import require


@dataclass(frozen=True)
class WarmupCosine:
    r"""The share of the learning rate at unit t = 0, ..., length - 1; a unit is an epoch or a step.

    factor(t) = (t + 1) / (warmup + 1)                                        while t < warmup,
    factor(t) = (1 + cos(pi (t - warmup) / (length - warmup))) / 2            from then on.

    The peak, 1, comes at t = warmup, where the released recipe of VPT and VAPT has it (arXiv 2203.12119, 2501.18936).
    That recipe warms up by t / warmup, so that its first epoch has rate 0 and learns nothing: `from_zero` does so too.

    >>> [round(WarmupCosine(5, 2).factor(t), 3) for t in range(5)]
    [0.333, 0.667, 1.0, 0.75, 0.25]
    >>> [round(WarmupCosine(5, 2, from_zero=True).factor(t), 3) for t in range(5)]
    [0.0, 0.5, 1.0, 0.75, 0.25]
    """

    length: int
    warmup: int
    from_zero: bool = False

    def __post_init__(self) -> None:
        require(
            0 <= self.warmup <= self.length and self.length > 0,
            f"the warm-up is a part of the training: needs 0 <= warmup <= length, got {self.warmup} and {self.length}.",
        )

    def factor(self, t: int) -> float:
        if t >= self.warmup:
            return (1 + math.cos(math.pi * (t - self.warmup) / (self.length - self.warmup))) / 2
        return t / self.warmup if self.from_zero else (t + 1) / (self.warmup + 1)
