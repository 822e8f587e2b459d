"""The last epoch is the result, the best one is apart, and epochs are means over pictures."""

import pytest

from moe_prompt.vision.training.evaluation import EvaluationResult
from moe_prompt.vision.training.result import Standing, TrainingResult
from moe_prompt.vision.training.steps import StepOutcome


def after(accuracies: list[float], choosing: bool, failure: str = "") -> TrainingResult:
    """A training of as many epochs, two batches each, tested after every one."""
    now = Standing()
    for accuracy in accuracies:
        now.count(StepOutcome(loss=3.0, accuracy=0.5, asked=False), 8, 0.5)
        now.count(StepOutcome(loss=1.0, accuracy=0.0, asked=False), 2, 0.25)
        now.close_epoch()
        now.tested(EvaluationResult(accuracy, accuracy / 2, 1 - accuracy, 29), choosing)
        now.turn()
    return now.result(2 * len(accuracies), 0.375, "resident", 17, False, failure)


def test_last_epoch_is_reported_and_the_best_is_apart():
    result = after([0.25, 0.75, 0.5], choosing=True)
    assert (result.last_test_accuracy, result.last_test_class_mean, result.last_test_loss) == (0.5, 0.25, 0.5)
    assert (result.best_test_epoch_accuracy, result.best_test_epoch) == (0.75, 2)
    other = after([0.25, 0.75, 0.5], choosing=False)
    assert (other.last_test_accuracy, other.best_test_epoch_accuracy, other.best_test_epoch) == (0.5, None, None)


def test_a_failed_training_has_no_accuracy():
    result = after([0.25, 0.75], choosing=False, failure="the loss was nan in step 5.")
    assert result.failed and result.message == "the loss was nan in step 5."
    assert (result.last_test_accuracy, result.last_test_class_mean, result.last_test_loss) == (None, None, None)


def test_epochs_are_means_over_pictures():
    result = after([0.25, 0.75], choosing=False)
    assert result.last_train_loss == pytest.approx((8 * 3.0 + 2 * 1.0) / 10)
    assert result.last_train_accuracy == pytest.approx(0.4)
    assert (result.epochs, result.steps, result.seconds) == (2, 4, 1.5)
    assert result.images_per_second == pytest.approx(20 / 1.5)
