r"""Seeded parts of a split that keep its classes, such as 1, 10, 30 or 50 % of the training pictures.

All pictures are put into one order, and a share takes the first of them: the 1 % are part of the 10 %, those of the
30 %. The order is stratified: the n_c pictures of class c are shuffled, and the r-th of them has place
(r + u_c) / n_c, with u_c uniform on [0, 1). A share s therefore holds s n_c of them, up to one. The first picture of
each class comes before all others, so that no class is lost. A share with fewer pictures than classes is raised to one
picture of each class, and the result says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from moe_prompt.errors import require
from moe_prompt.vision.data.tasks import REST_SPLIT, TEST_SPLIT, Task, TaskSplit

VALIDATION_SHARE, VALIDATION_SEED = 0.2, 0  # of `train`, where a task comes without a validation split
TRAINING_SHARES = (0.01, 0.1, 0.3, 0.5, 1.0)
"""The shares of the papers' low-data curves."""


@dataclass(frozen=True, eq=False)
class FractionResult:
    """A part of a split, the rest of it, and the classes in the part; `missing` are the classes without a picture."""

    split: TaskSplit
    rest: TaskSplit
    kept: tuple[int, ...]
    missing: tuple[int, ...]
    asked: float

    @property
    def share(self) -> float:
        """The share that the part is in fact."""
        return len(self.split) / max(len(self.split) + len(self.rest), 1)

    def sentence(self) -> str:
        """How many pictures were taken, whether these are more than asked for, and which classes have none."""
        told = f"{len(self.split)} of {len(self.split) + len(self.rest)} pictures of {self.split.source}"
        if len(self.split) > self.asked * (len(self.split) + len(self.rest)) + 0.5:
            told += f", {self.share:.2%} instead of {self.asked:.2%} so that every class keeps a picture"
        if self.missing:
            told += f"; no picture of the class{'es' * (len(self.missing) > 1)} {', '.join(map(str, self.missing))}"
        return told + "."


def stratified_fraction(split: TaskSplit, share: float, seed: int, classes: int) -> FractionResult:
    """The first `share` of the split's stratified order, and at least one picture of every class that has any.

    Args:
        split: labels in 0 .. classes - 1.
        share: in (0, 1].
        seed: of the order. A class's own order depends on the seed, the class and its number of pictures alone.
        classes: number of classes of the task.
    """
    require(0 < share <= 1, f"a share of a split lies in (0, 1]: got {share}.")
    require(
        bool(len(split) > 0 and split.labels.min() >= 0 and split.labels.max() < classes),
        f"{split.source} needs pictures with labels from 0 to {classes - 1} to be divided.",
    )
    present = np.unique(split.labels)
    number = max(math.floor(share * len(split) + 0.5), len(present))
    order = np.argsort(_places(split.labels, seed), kind="stable")
    missing = np.setdiff1d(np.arange(classes), present)
    return FractionResult(
        split.chosen(np.sort(order[:number])),
        split.chosen(np.sort(order[number:])),
        tuple(present.tolist()),
        tuple(missing.tolist()),
        share,
    )


def with_validation(task: Task) -> Task:
    """A task that comes with `train` and `test` only, such as MNIST, gets a stratified fifth of `train` as `val`.

    A search trains on the rest, `train80`. The training that is tested uses `train` as a whole. Any other task is
    returned as it is.
    """
    if "train" not in task.splits or TEST_SPLIT not in task.splits or set(task.splits) & {"val", "val200", "train800"}:
        return task
    part = stratified_fraction(task.splits["train"], 1 - VALIDATION_SHARE, VALIDATION_SEED, len(task.classes))
    if len(part.rest) == 0:
        return task
    split = {REST_SPLIT: replace(part.split, name=REST_SPLIT), "val": replace(part.rest, name="val")}
    return replace(task, splits={**split, **task.splits})


def _places(labels: Int64[np.ndarray, " pictures"], seed: int) -> Float64[np.ndarray, " pictures"]:
    places = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(label),)))
        shuffled = generator.permutation(of_class)
        places[shuffled] = (np.arange(len(shuffled)) + generator.random()) / len(shuffled)
        places[shuffled[0]] = -1.0
    return places
