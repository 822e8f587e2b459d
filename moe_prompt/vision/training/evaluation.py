"""Accuracy and loss on a test set, read a batch at a time so that it never lies in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from moe_prompt.errors import require
from moe_prompt.vision.runtime.distributed import Ranks
from moe_prompt.vision.runtime.precision import autocast, device_of, parameter_dtype, widened
from moe_prompt.vision.training.batches import BatchSource, evaluation_keys, size_of, to_input

TrainingProgress = Callable[[str, int, int, str], None]
"""Called with a phase ("train", "test" or "features"), how much of it is done, how much there is, and a note."""


def silent(phase: str, done: int, total: int, note: str) -> None:
    """Ignores the progress."""


@dataclass(frozen=True)
class EvaluationResult:
    """Shares in [0, 1]. `class_mean` averages the share of right answers in each class over the classes present."""

    accuracy: float
    class_mean: float
    loss: float
    count: int


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    batch: int = 64,
    normalisation: str = "imagenet",
    precision: str = "float32",
    workers: int = 0,
    ranks: Ranks | None = None,
    progress: TrainingProgress = silent,
) -> EvaluationResult:
    """Top-1 accuracy, its mean over classes and the mean cross-entropy; the same whatever the size of the batches.

    The model is in evaluation mode while it is evaluated. With several processes each evaluates its share of the
    batches, and all of them get the result.

    Raises:
        InputError: no pictures, a picture that cannot be read, or a label that the model has no class for.
    """
    ranks, device, dtype, count = ranks or Ranks(), device_of(model), parameter_dtype(model), size_of(dataset)
    require(count > 0, "the test set has no pictures: give a split that has some.")
    tally = _Tally()
    was_training = model.training
    model.eval()
    try:
        with BatchSource(dataset, workers, pin=device.type == "cuda") as source:
            for part in source.read(evaluation_keys(count, batch, ranks.rank, ranks.world)):
                with torch.no_grad(), autocast(precision, device):
                    logits = model(to_input(part.images, normalisation, dtype, device))
                check_labels(part.labels, logits)
                tally.add(logits, part.labels.to(device))
                progress("test", min(tally.seen * ranks.world, count), count, "")
    finally:
        model.train(was_training)
    return tally.summed(ranks)


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """A sentence for a label outside of 0, ..., classes - 1."""
    classes = logits.shape[-1]
    wrong = [label for label in labels.tolist() if not 0 <= label < classes]
    require(
        not wrong,
        f"the model tells {classes} classes apart, labels 0 to {classes - 1}: got label {(wrong or [0])[0]}; "
        "make the model for the classes of the task.",
    )


class _Tally:
    """Sums over pictures in float64: count and right answers per class, and the loss. No batch size changes them."""

    def __init__(self) -> None:
        self.seen = 0
        self.sums: Tensor | None = None

    def add(self, logits: Tensor, labels: Tensor) -> None:
        classes = logits.shape[-1]
        losses = nn.functional.cross_entropy(widened(logits), labels, reduction="none").double()
        right = labels[logits.argmax(dim=-1) == labels]
        counts = [torch.bincount(which, minlength=classes).double() for which in (labels, right)]
        sums = torch.cat([*counts, losses.sum()[None]])
        self.sums = sums if self.sums is None else self.sums + sums
        self.seen += len(labels)

    def summed(self, ranks: Ranks) -> EvaluationResult:
        length = max(ranks.gather(0 if self.sums is None else len(self.sums)))
        own = torch.zeros(length, dtype=torch.float64) if self.sums is None else self.sums.cpu()
        there, right, loss = ranks.sum(own).tensor_split([length // 2, length - 1])
        present = there > 0
        count = int(there.sum())
        return EvaluationResult(
            accuracy=float(right.sum()) / count,
            class_mean=float((right[present] / there[present]).mean()),
            loss=float(loss) / count,
            count=count,
        )
