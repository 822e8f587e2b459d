"""Test pictures cannot choose; the key of a run is its content."""

from dataclasses import replace

import numpy as np
import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.data.preprocessing import VTAB
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.tuning.run_spec import FINAL, PROTOCOLS, SEARCH, Protocol, RunSpec, protocol_of, split_digest
from tests.builders.small_search import small_task


def spec(**changes) -> RunSpec:
    given = {
        "purpose": SEARCH,
        "task": "svhn",
        "label": "vapt",
        "backbone": "a.npz",
        "backbone_sha": "00",
        "method": method_named("vapt", num_prompts=5),
        "classes": 10,
        "training": "train800",
        "training_sha": "11",
        "evaluation": "val200",
        "evaluation_sha": "22",
        "preprocessing": VTAB(32),
        "recipe": TrainingRecipe(base_lr=1.0, epochs=3, warmup=1),
    }
    return RunSpec(**{**given, **changes})


def final(**changes) -> RunSpec:
    return spec(purpose=FINAL, training="train800val200", evaluation="test", **changes)


@pytest.mark.parametrize("evaluation", ["test", "train800", "test200", "TEST"])
def test_a_search_on_anything_but_validation_cannot_be_written_down(evaluation):
    with pytest.raises(InputError, match="never on another"):
        spec(evaluation=evaluation)
    with pytest.raises(InputError, match="never on another"):
        replace(spec(), evaluation=evaluation)
    with pytest.raises(InputError, match="never on another"):
        Protocol("mine", ("train", evaluation), ("train", "test"))


def test_a_final_run_cannot_be_called_a_search():
    with pytest.raises(InputError, match="never on another"):
        replace(final(), purpose=SEARCH)
    with pytest.raises(InputError, match="evaluated on 'test'"):
        replace(spec(), purpose=FINAL)
    with pytest.raises(InputError, match="for search or final"):
        spec(purpose="both")


def test_test_is_never_trained_on():
    with pytest.raises(InputError, match="other pictures than it is evaluated on"):
        spec(training="test")
    with pytest.raises(InputError, match="other pictures than it is evaluated on"):
        spec(training="val200")
    with pytest.raises(InputError, match="never trained on"):
        Protocol("mine", ("train", "val"), ("test", "test"))


def test_protocols():
    vtab = protocol_of(("test", "train800", "train800val200", "val200"), "here")
    assert vtab.splits(SEARCH) == ("train800", "val200") and vtab.splits(FINAL) == ("train800val200", "test")
    assert protocol_of(("train", "val", "test"), "here").splits(FINAL) == ("train", "test")
    with pytest.raises(InputError, match=r"my/folder needs train800.*got train, test.*make one out of"):
        protocol_of(("train", "test"), "my/folder")
    for protocol in PROTOCOLS:
        assert protocol.search[1] != "test" == protocol.final[1]


def test_two_normalisations_are_refused():
    with pytest.raises(InputError, match="two normalisations"):
        spec(preprocessing=VTAB(32, normalisation="half"))


CHANGES = {
    "backbone_sha": "01",
    "method": method_named("vapt", num_prompts=6),
    "classes": 11,
    "training_sha": "12",
    "evaluation_sha": "23",
    "evaluation": "val",
    "training": "train",
    "preprocessing": VTAB(32, antialias=False),
    "share": 0.5,
    "evaluation_share": 0.5,
}
RECIPE_CHANGES = {
    "base_lr": 2.0,
    "weight_decay": 0.1,
    "optimizer": "adamw",
    "epochs": 4,
    "warmup": 0,
    "seed": 44,
    "batch": 32,
    "precision": "bf16",
    "momentum": 0.8,
    "zero_first_epoch": True,
    "class_weights": "balanced",
}


@pytest.mark.parametrize("field", CHANGES)
def test_what_changes_the_result_changes_the_key(field):
    assert spec(**{field: CHANGES[field]}).key != spec().key


@pytest.mark.parametrize("field", RECIPE_CHANGES)
def test_so_does_the_recipe(field):
    changed = spec(recipe=replace(spec().recipe, **{field: RECIPE_CHANGES[field]}))
    assert changed.key != spec().key
    assert (changed.search_key == spec().search_key) == (field in ("base_lr", "weight_decay"))


def test_names_and_workers_change_no_key():
    same = spec(task="other", label="mine", backbone="/elsewhere/a.npz", recipe=replace(spec().recipe, workers=3))
    assert same.key == spec().key and same != spec()
    assert len(spec().key) == 20 and spec().key == spec().key


def test_digest_is_of_labels_and_pixels(tmp_path):
    task = small_task(tmp_path / "a")
    again = small_task(tmp_path / "b")
    digests = {name: split_digest(split) for name, split in task.splits.items()}
    assert digests == {name: split_digest(split) for name, split in again.splits.items()}
    assert len(set(digests.values())) == 4
    split = task.split("test")
    turned = np.roll(np.arange(len(split)), 1)
    assert split_digest(split.chosen(turned)) != digests["test"]
    assert split_digest(replace(split, labels=split.labels[turned])) != digests["test"]
