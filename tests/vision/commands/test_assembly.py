"""Words to what runs: options of their kind, warm-up of short trainings, devices, preprocessing by the task."""

from dataclasses import replace

import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.commands.assembly import (
    UNSEARCHED,
    ProblemOptions,
    chosen_method,
    chosen_recipe,
    open_problem,
    preprocessing_of,
    published_name,
    usable_device,
)
from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.data.preprocessing import FGVC, VTAB
from moe_prompt.vision.tuning.recipes import GRIDS
from tests.builders.small_files import bars, vit_file

# ------------------------------------------------------------------------------------------------ methods


def test_options_of_the_recipe_unless_given():
    assert chosen_method("svhn", "vapt", []).to_dict()["num_prompts"] == 50
    given = chosen_method("svhn", "vapt", ["num-prompts=3", "activation=gelu", "residual=False", "scale=2"]).to_dict()
    assert (given["num_prompts"], given["activation"], given["residual"]) == (3, "gelu", False)
    assert given["scale"] == 2.0 and isinstance(given["scale"], float)
    paper = chosen_method("svhn", "vapt-paper", ["rank=5"]).to_dict()
    assert (paper["rank"], paper["residual"], paper["num_prompts"]) == (5, False, 50)
    assert chosen_method("mushrooms", "lora", ["maps=qkv"]).to_dict()["maps"] == "qkv"


WRONG = {
    "num_prompts=many": "the option num_prompts is a whole number: got 'many'",
    "num_prompts=2.5": "num_prompts is a whole number: got 2.5",
    "num_prompts=true": "num_prompts is a whole number: got True",
    "num_prompts=0": "at least 1: got 0",
    "residual=1": "residual is true or false: got 1",
    "scale=large": "scale is a number: got 'large'",
    "activation=3": "activation is a word: got 3",
    "num_prompt=3": "unknown option of vapt 'num_prompt'.*did you mean 'num_prompts'",
    "num_prompts": "is NAME=VALUE, as in num_prompts=50: got 'num_prompts'",
    "=3": "is NAME=VALUE",
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_options(option):
    with pytest.raises(InputError, match=WRONG[option]):
        chosen_method("svhn", "vapt", [option])


def test_unknown_methods_and_options_of_a_file(tmp_path):
    with pytest.raises(InputError, match=r"unknown method 'vpat'.*did you mean 'vapt'"):
        chosen_method("svhn", "vpat", [])
    with pytest.raises(InputError, match=r"own.py sets its own options: got rank=3"):
        chosen_method("svhn", "own.py", ["rank=3"])


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("epochs", "warmup"), [(1, 1), (2, 1), (9, 1), (10, 1), (11, 2), (95, 10), (100, 10), (300, 10)]
)
def test_warmup_of_other_numbers_of_epochs(epochs, warmup):
    """A tenth, rounded up: never none, never more than the recipe's, and the first epoch is below the peak."""
    recipe = chosen_recipe("svhn", "sgd", {"epochs": epochs, "batch": None})
    assert (recipe.epochs, recipe.warmup) == (epochs, warmup)
    assert 0 < recipe.rate(0, 0, 7) <= recipe.learning_rate / 2


def test_what_is_given_is_taken():
    assert chosen_recipe("svhn", "sgd", {}).warmup == 10
    given = {"epochs": 4, "warmup": 0, "base_lr": 7.0, "weight_decay": 0.0, "batch": 3, "precision": "bf16", "seed": 5}
    recipe = chosen_recipe("svhn", "sgd", given)
    assert {name: getattr(recipe, name) for name in given} == given
    for bad in ({"epochs": 0}, {"epochs": -3}, {"epochs": 2, "warmup": 3}, {"precision": "int8"}, {"base_lr": -1.0}):
        with pytest.raises(InputError):
            chosen_recipe("svhn", "sgd", bad)


def test_rates_where_nobody_searched():
    """By the optimizer, also where the method's is overruled; AdamW's is published, SGD's below the grid."""
    assert chosen_recipe("svhn", "sgd", {}).base_lr == UNSEARCHED["sgd"].base_lr
    assert chosen_recipe("svhn", "adamw", {}).base_lr == UNSEARCHED["adamw"].base_lr
    assert chosen_recipe("svhn", "sgd", {"optimizer": "adamw"}).base_lr == UNSEARCHED["adamw"].base_lr
    assert UNSEARCHED["adamw"] in GRIDS["paper"]["adamw"].points()
    assert UNSEARCHED["sgd"].base_lr < min(GRIDS["paper"]["sgd"].base_lrs)


# ------------------------------------------------------------------------------------------------ problems


def test_a_problem_of_files(tmp_path):
    vit, task = vit_file(tmp_path / "vit.safetensors"), open_task(bars(tmp_path / "bars"))
    problem, report = open_problem(
        task, ProblemOptions(str(vit), image=24, normalisation="half", share=0.5, device="cpu")
    )
    assert problem.backbone.config.image == (24, 24) and problem.backbone_name == "vit.safetensors"
    assert problem.preprocessing == VTAB((24, 24), "half") and "4 x 4 to 6 x 6" in report.sentence()
    assert len(problem.split("train800", problem.share)) == 16 and problem.evaluation_share == 1
    assert open_problem(task, ProblemOptions(str(vit)))[0].preprocessing == VTAB((16, 16), "imagenet")


def test_preprocessing_is_that_of_the_task(tmp_path):
    task = open_task(bars(tmp_path / "bars"))
    assert preprocessing_of(task, (16, 16)) == VTAB((16, 16)) and published_name(task) == "bars"
    birds = replace(task, name="CUB_200_2011", layout="fgvc")
    assert birds.known is not None and published_name(birds) == birds.known.name
    assert preprocessing_of(birds, (16, 16), "none") == FGVC((16, 16), "none")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"share": 0.0}, r"--share is a share in \(0, 1\]: got 0"),
        ({"share": 1.5}, "--share"),
        ({"test_share": -0.1}, r"--test-share is a share in \(0, 1\]: got -0.1"),
        ({"image": 0}, "--image is a number of pixels: got 0"),
    ],
)
def test_settings_that_cannot_be(words, says):
    with pytest.raises(InputError, match=says):
        ProblemOptions("vit", **words)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("cpu") == usable_device("auto") == torch.device("cpu")
    for name in ("gpu", "cuda", "cuda:7", "meta"):
        with pytest.raises(InputError, match=f"--device {name} cannot be used .*take auto or cpu"):
            usable_device(name)


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert usable_device("auto") == usable_device("cuda") == torch.device("cuda", 3)
