"""The result of a training, and how far an unfinished one has come."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from moe_prompt.vision.training.evaluation import EvaluationResult
from moe_prompt.vision.training.steps import StepOutcome


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training. Accuracies are shares in [0, 1], and None where there was no test or the run failed.

    Report `last_test_accuracy`, which belongs to the weights after the last epoch. `best_test_epoch_accuracy` chooses
    its epoch by the test set and therefore estimates nothing; it is kept only for comparison with work that reports
    it. `seconds` and `images_per_second` count the training steps, without tests and features, also where the training
    was interrupted and resumed.
    """

    last_test_accuracy: float | None
    last_test_class_mean: float | None
    last_test_loss: float | None
    best_test_epoch_accuracy: float | None
    best_test_epoch: int | None
    last_train_loss: float | None
    last_train_accuracy: float | None
    epochs: int
    steps: int
    seconds: float
    seconds_test: float
    seconds_features: float
    images_per_second: float
    median_seconds_step: float
    peak_memory_mb: float
    memory_kind: str
    learned_parameters: int
    features_computed_once: bool
    failed: bool = False
    message: str = ""


@dataclass
class Standing:
    """How far a training has come: everything that changes from step to step, apart from the weights."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    seen: int = 0
    images: int = 0
    seconds: float = 0.0
    seconds_test: float = 0.0
    seconds_features: float = 0.0
    peak_memory_mb: float = 0.0
    train_loss: float | None = None
    train_accuracy: float | None = None
    test: dict[str, Any] = field(default_factory=dict)
    best_accuracy: float | None = None
    best_epoch: int | None = None

    def count(self, outcome: StepOutcome, size: int, seconds: float) -> None:
        """A step was taken."""
        self.step += 1
        self.loss += outcome.loss * size
        self.right += outcome.accuracy * size
        self.seen += size
        self.images += size
        self.seconds += seconds

    def close_epoch(self) -> None:
        """Means over the pictures of the epoch, each as it was before its step."""
        self.train_loss, self.train_accuracy = self.loss / self.seen, self.right / self.seen

    def tested(self, found: EvaluationResult, choosing: bool) -> None:
        """The test set was looked at; `choosing` keeps the best epoch of all that were."""
        self.test = asdict(found)
        if choosing and (self.best_accuracy is None or found.accuracy > self.best_accuracy):
            self.best_accuracy, self.best_epoch = found.accuracy, self.epoch + 1

    def row(self, tested: bool) -> dict[str, Any]:
        """The epoch's line in the log."""
        test = self.test if tested else {}
        found = {f"test_{name}": test.get(name) for name in ("accuracy", "class_mean", "loss")}
        trained = {"train_loss": self.train_loss, "train_accuracy": self.train_accuracy}
        return {"epoch": self.epoch + 1, **trained, **found, "seconds": self.seconds}

    def turn(self) -> None:
        """The next epoch."""
        self.epoch, self.step, self.loss, self.right, self.seen = self.epoch + 1, 0, 0.0, 0.0, 0

    def result(
        self, steps: int, median_seconds: float, memory: str, learned: int, fixed: bool, failure: str
    ) -> TrainingResult:
        """The result of a training that ends here."""
        test = {} if failure else self.test
        return TrainingResult(
            last_test_accuracy=test.get("accuracy"),
            last_test_class_mean=test.get("class_mean"),
            last_test_loss=test.get("loss"),
            best_test_epoch_accuracy=self.best_accuracy,
            best_test_epoch=self.best_epoch,
            last_train_loss=self.train_loss,
            last_train_accuracy=self.train_accuracy,
            epochs=self.epoch,
            steps=steps,
            seconds=self.seconds,
            seconds_test=self.seconds_test,
            seconds_features=self.seconds_features,
            images_per_second=self.images / self.seconds if self.seconds else 0.0,
            median_seconds_step=median_seconds,
            peak_memory_mb=self.peak_memory_mb,
            memory_kind=memory,
            learned_parameters=learned,
            features_computed_once=fixed,
            failed=bool(failure),
            message=failure,
        )
