"""What a recipe refuses, its learning rate, and that it survives JSON."""

import json

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.training.train import TrainingRecipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_lr": -0.1}, "base_lr needs a finite number that is not negative: got -0.1"),
        ({"base_lr": float("nan")}, "base_lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"momentum": 1.0}, "momentum needs to be below 1"),
        ({"epochs": 0}, "epochs needs a whole number of at least 1: got 0"),
        ({"epochs": 5, "warmup": 6}, "6 epochs of warm-up in 5"),
        ({"batch": 0}, "batch"),
        ({"batch": 4, "accumulate": 5}, "5 pieces"),
        ({"seed": -1}, "seed"),
        ({"workers": -1}, "workers"),
        ({"precision": "bf61"}, "unknown precision 'bf61'.*did you mean 'bf16'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'.*did you mean 'adamw'"),
        ({"normalisation": "imagenett"}, "unknown normalisation"),
        ({"decay": "some"}, "unknown rule of weight decay|unknown decay"),
        ({"class_weights": "balance"}, "unknown class_weights 'balance'.*did you mean 'balanced'"),
        ({"class_weights": (1.0, -2.0)}, "class_weights need finite numbers"),
        ({"class_weights": (0.0, 0.0)}, "one positive"),
        ({"zero_first_epoch": True, "lr_per_step": True}, "leave out lr_per_step"),
    ],
)
def test_unusable_fields_are_named(changes, says):
    with pytest.raises(InputError, match=says):
        TrainingRecipe(**({"base_lr": 0.1} | changes))


def test_rate_is_of_a_batch_of_256():
    assert TrainingRecipe(base_lr=5.0, batch=64).learning_rate == 1.25


def test_rate_moves_once_an_epoch_or_once_a_step():
    by_epoch = TrainingRecipe(base_lr=256.0, batch=1, epochs=7, warmup=2)
    by_step = TrainingRecipe(base_lr=256.0, batch=1, epochs=7, warmup=2, lr_per_step=True)
    assert [by_epoch.rate(0, step, 3) for step in range(3)] == pytest.approx([1 / 3] * 3)
    assert [by_step.rate(0, step, 3) for step in range(3)] == pytest.approx([1 / 7, 2 / 7, 3 / 7])
    assert by_step.rate(2, 0, 3) == by_epoch.rate(2, 2, 3) == 1.0
    assert 0 < by_step.rate(6, 2, 3) < by_step.rate(6, 1, 3)


@pytest.mark.parametrize("weights", [None, "balanced", (1.0, 2.5)])
def test_survives_json(weights):
    recipe = TrainingRecipe(base_lr=0.3, optimizer="adamw", class_weights=weights, precision="bf16")
    assert TrainingRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_unknown_fields_are_refused():
    with pytest.raises(InputError, match="did you mean 'base_lr'"):
        TrainingRecipe.from_dict({"base_lrr": 1.0})
    with pytest.raises(InputError, match="needs base_lr"):
        TrainingRecipe.from_dict({})
