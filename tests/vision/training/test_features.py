"""Features computed once give the training that computes them in every epoch."""

import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.data.preprocessing import normalise
from moe_prompt.vision.training.features import can_be_fixed, fixed_features
from moe_prompt.vision.training.train import train
from tests.builders.small_training import COUNT, DIM, Network, Pictures, learned, recipe


def test_features_are_those_of_the_model_in_the_datasets_order():
    model, dataset = Network(fixed=True), Pictures()
    found = fixed_features(model, dataset, batch=8)
    model.eval()
    assert found.features.shape == (COUNT, DIM) and not found.features.requires_grad
    assert found.labels.tolist() == dataset.labels.tolist()
    for index in (0, 7, 8, 52):
        expected = model.features(normalise(dataset.images[index : index + 1], "imagenet"))[0].detach()
        torch.testing.assert_close(found[index][0], expected)


class Counted(Network):
    """Fixed features, without dropout; counts the pictures that they are computed of."""

    computed = 0

    def __init__(self, tell: bool, seed: int = 0) -> None:
        super().__init__(seed, dropout=0.0, fixed=True)
        self.features_are_fixed = tell

    def features(self, images):
        self.computed += len(images)
        return super().features(images)


@pytest.mark.parametrize("changes", [{}, {"class_weights": "balanced", "accumulate": 3, "optimizer": "adamw"}])
def test_the_training_is_the_same(changes):
    once, always = Counted(True), Counted(False)
    results = [train(model, Pictures(), Pictures(29, seed=4), recipe(**changes)) for model in (once, always)]
    for name, weight in learned(once).items():
        torch.testing.assert_close(weight, learned(always)[name], rtol=1e-4, atol=1e-6)
    assert [result.features_computed_once for result in results] == [True, False]
    assert results[0].last_test_accuracy == results[1].last_test_accuracy
    assert (once.computed, always.computed) == (COUNT + 29, 4 * COUNT + 29)


def test_test_features_are_computed_once_where_they_are_looked_at_often():
    model = Counted(True)
    result = train(model, Pictures(), Pictures(29, seed=4), recipe(), test_every=1)
    assert model.computed == COUNT + 29 and result.best_test_epoch is not None


def test_features_given_instead_of_pictures():
    """As a search over learning rates shares them."""
    from_pictures, from_features = Counted(True), Counted(True)
    features = fixed_features(from_features, Pictures())
    test = fixed_features(from_features, Pictures(29, seed=4))
    computed = from_features.computed
    a = train(from_pictures, Pictures(), Pictures(29, seed=4), recipe())
    b = train(from_features, features, test, recipe())
    assert from_features.computed == computed and a.last_test_accuracy == b.last_test_accuracy
    torch.testing.assert_close(learned(from_pictures)["head.weight"], learned(from_features)["head.weight"])


def test_pictures_with_chance_are_not_fixed():
    model = Counted(True)
    assert not can_be_fixed(model, Pictures(random=True))
    assert not can_be_fixed(Network(), Pictures())
    assert not train(model, Pictures(random=True), None, recipe(epochs=1)).features_computed_once
    with pytest.raises(InputError, match="frozen model and fixed pictures"):
        fixed_features(model, Pictures(random=True))
    with pytest.raises(InputError, match="no features without pictures"):
        fixed_features(model, Pictures(count=0))


def test_precision_is_that_of_the_recipe():
    exact = fixed_features(Network(fixed=True), Pictures())
    half = fixed_features(Network(fixed=True), Pictures(), precision="bf16")
    torch.testing.assert_close(half.features.float(), exact.features, rtol=0.05, atol=0.05)
    assert not torch.equal(half.features.float(), exact.features)
