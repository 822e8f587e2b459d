"""Recipes: the published lengths, an honest provenance for everything else, and grids of the published sizes."""

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.data.benchmarks import KNOWN_TASKS
from moe_prompt.vision.methods.by_name import METHODS, method_named
from moe_prompt.vision.tuning.recipes import (
    ADAMW_GRID,
    DERIVED,
    GRIDS,
    OURS,
    PROVENANCES,
    PUBLISHED,
    RECIPES,
    SEEDS,
    SGD_GRID,
    Schedule,
    recipe_for,
)


def test_all_tasks_have_a_recipe_for_every_method():
    assert set(RECIPES) == set(KNOWN_TASKS) and len(RECIPES) == 24
    for recipe in RECIPES.values():
        assert set(METHODS) <= set(recipe.methods)
        assert recipe.preprocessing == KNOWN_TASKS[recipe.task].layout


@pytest.mark.parametrize("task", list(RECIPES))
def test_options_build_the_method(task):
    for name, recipe in RECIPES[task].methods.items():
        assert recipe.provenance in PROVENANCES and recipe.why
        built = method_named(name, **recipe.options).to_dict()
        assert recipe.options.items() <= built.items()


@pytest.mark.parametrize(
    ("task", "length"),
    [
        *[("svhn", 50), ("sun397", 5), ("oxford_iiit_pet", 1), ("clevr_dist", 200), ("kitti", 100), ("resisc45", 10)],
        *[("dogs", 100), ("cars", 200), ("flowers", 5), ("smallnorb_ele", 200), ("nabirds", 50)],
    ],
)
def test_published_lengths(task, length):
    recipe = RECIPES[task].of("vpt-deep")
    assert recipe.options == {"num_prompts": length} and recipe.provenance == PUBLISHED


def test_nothing_of_vapt_is_called_published():
    for task, recipe in RECIPES.items():
        assert recipe.of("vapt").provenance == DERIVED
        assert recipe.of("vapt").options == RECIPES[task].of("vpt-deep").options
        assert recipe.of("lora").provenance == OURS


def test_a_task_of_ones_own():
    recipe = recipe_for("mushrooms")
    assert recipe.provenance == OURS and {m.provenance for m in recipe.methods.values()} >= {OURS, DERIVED}
    assert recipe.of("vpt-deep").provenance == OURS
    with pytest.raises(InputError, match="did you mean 'vapt'"):
        recipe.of("vap")


def test_grids():
    assert len(SGD_GRID) == len(set(SGD_GRID.points())) == 40 and len(ADAMW_GRID) == 16
    assert {p.base_lr for p in SGD_GRID.points()} == {50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05}
    assert {p.weight_decay for p in SGD_GRID.points()} == {0.01, 0.001, 0.0001, 0}
    small = GRIDS["small"]
    assert len(small["sgd"]) == len(small["adamw"]) == 6
    for optimizer, grid in small.items():
        assert grid.optimizer == optimizer and set(grid.points()) <= set(GRIDS["paper"][optimizer].points())
        assert grid.provenance == OURS and GRIDS["paper"][optimizer].provenance == PUBLISHED


def test_seeds_and_schedule():
    schedule = Schedule()
    assert SEEDS == (42, 44, 82, 100, 800)
    assert (schedule.epochs, schedule.warmup, schedule.batch, schedule.momentum) == (100, 10, 64, 0.9)
