"""A step in pieces is the step of the whole batch, class weights included."""

import math

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.runtime.distributed import Ranks
from moe_prompt.vision.training.steps import Stepper, class_weights
from tests.builders.small_training import CLASSES, Network, Pictures, batch_of, learned, recipe

GIVEN = (0.3, 2.0, 0.0, 1.7, 0.9)


def after(steps: int, weights: str | tuple | None = None, double: bool = True, **changes) -> dict[str, torch.Tensor]:
    """Weights after some steps on batches of 23 pictures."""
    model = Network(dropout=0.0)
    model = model.double() if double else model
    dataset = Pictures()
    options = recipe(class_weights=weights, batch=23, **changes)
    stepper = Stepper(model, options, class_weights(weights, dataset.labels), Ranks())
    for step in range(steps):
        stepper(batch_of(dataset, list(range(23 * step, 23 * (step + 1)))), 0.1)
    return learned(model)


@pytest.mark.parametrize("weights", [None, "balanced", GIVEN])
@pytest.mark.parametrize("accumulate", [2, 5, 23])
def test_pieces_are_the_large_batch(accumulate, weights):
    whole, pieces = after(2, weights), after(2, weights, accumulate=accumulate)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weights", [None, "balanced", GIVEN])
def test_a_step_descends_the_weighted_mean(weights):
    """Against torch's own weighted cross-entropy and a plain gradient step; no momentum yet in a first step."""
    dataset, model = Pictures(), Network(dropout=0.0).double()
    counts = np.array([(dataset.labels == c).sum() for c in range(CLASSES)])
    table = {None: np.ones(CLASSES), "balanced": len(dataset) / (CLASSES * counts), GIVEN: np.array(GIVEN)}[weights]
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pictures = (dataset.images[:23].double() / 255 - mean.double()) / std.double()
    labels = torch.from_numpy(dataset.labels[:23])
    loss = torch.nn.functional.cross_entropy(model(pictures), labels, weight=torch.from_numpy(table))
    loss.backward()
    found = after(1, weights, weight_decay=0.0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            torch.testing.assert_close(found[name], (parameter - 0.1 * parameter.grad).detach(), rtol=1e-6, atol=1e-8)


def test_weights_change_the_step():
    assert not torch.allclose(after(1, GIVEN)["head.weight"], after(1)["head.weight"])


def test_balanced_weights():
    labels = np.array([0, 0, 0, 3, 3, 1])
    assert class_weights("balanced", labels).tolist() == pytest.approx([6 / 9, 2.0, 0.0, 1.0])
    assert class_weights(None, labels) is None
    with pytest.raises(InputError, match="one number per class: got 2, and a label 3"):
        class_weights((1.0, 2.0), labels)


def test_a_batch_of_weight_zero_moves_nothing():
    dataset, model = Pictures(), Network(dropout=0.0)
    before = learned(model)
    only = [index for index in range(53) if dataset.labels[index] == 2][:5]
    stepper = Stepper(model, recipe(weight_decay=0.0), class_weights(GIVEN, dataset.labels), Ranks())
    outcome = stepper(batch_of(dataset, only), 0.1)
    assert outcome.loss == 0.0 and all(torch.equal(learned(model)[name], before[name]) for name in before)


def test_what_no_picture_reaches_stays_where_it_is():
    assert torch.equal(after(1, weight_decay=0.5)["idle"], torch.ones(2, 3, dtype=torch.float64))


def test_outcome_tells_loss_and_accuracy_before_the_step():
    dataset, model = Pictures(), Network(dropout=0.0)
    batch = batch_of(dataset, list(range(11)))
    from moe_prompt.vision.data.preprocessing import normalise

    logits = model(normalise(batch.images, "imagenet")).detach().numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(11), batch.labels]
    outcome = Stepper(model, recipe(accumulate=3), None, Ranks())(batch, 0.1)
    assert outcome.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert outcome.accuracy == pytest.approx((logits.argmax(axis=1) == batch.labels.numpy()).mean())
    assert not outcome.asked


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 2e-3)])
def test_half_precision_is_near_and_not_the_same(precision, tolerance):
    exact, half = after(2, double=False), after(2, double=False, precision=precision)
    for name in exact:
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], exact[name], rtol=tolerance, atol=tolerance)
    assert not torch.equal(half["head.weight"], exact["head.weight"])


def test_a_loss_that_is_not_finite_moves_nothing():
    model = Network(dropout=0.0)
    with torch.no_grad():
        model.prompt.fill_(math.inf)
    before = learned(model)
    outcome = Stepper(model, recipe(), None, Ranks())(batch_of(Pictures(), [1, 2, 3]), 0.1)
    assert not math.isfinite(outcome.loss)
    assert all(torch.equal(learned(model)[name], before[name]) for name in before)


def test_label_without_a_class_is_told():
    batch = batch_of(Pictures(), [1, 2, 3])
    wrong = batch._replace(labels=torch.tensor([0, CLASSES, 1]))
    with pytest.raises(InputError, match=f"tells {CLASSES} classes apart, labels 0 to 4: got label {CLASSES}"):
        Stepper(Network(), recipe(), None, Ranks())(wrong, 0.1)
