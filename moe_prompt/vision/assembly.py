"""From what a user types to what runs: a backbone, a task, a method with its options, a training recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_prompt.errors import require
from moe_prompt.vision.checkpoints import LoadReport, load_backbone
from moe_prompt.vision.layouts import open_task
from moe_prompt.vision.method import Method
from moe_prompt.vision.methods import method_named
from moe_prompt.vision.preprocessing import FGVC, VTAB, Preprocessing
from moe_prompt.vision.problems import Problem
from moe_prompt.vision.recipes import recipe_for
from moe_prompt.vision.training_recipe import TrainingRecipe
from moe_prompt.vision.tuning import method_for, recipe_from
from moe_prompt.vision.user_methods import method_from_file


def open_problem(
    data: Path,
    backbone: str,
    image: int | None,
    normalisation: str | None,
    share: float,
    evaluation_share: float,
    device: str,
    pooling: str = "cls",
) -> tuple[Problem, LoadReport]:
    """The task in a folder and a backbone at the picture size, preprocessed as the task's recipe says."""
    task = open_task(data)
    vit, report = load_backbone(backbone, image, pooling)
    recipe = recipe_for(task.known.name if task.known else task.name)
    named = normalisation or recipe.schedule.normalisation
    problem = Problem(
        vit,
        backbone if not Path(backbone).exists() else Path(backbone).name,
        task,
        _preprocessing(recipe.preprocessing, vit.config.image, named),
        share,
        evaluation_share,
        usable_device(device),
    )
    return problem, report


def _preprocessing(name: str, size: tuple[int, int], normalisation: str) -> Preprocessing:
    return (FGVC if name == "fgvc" else VTAB)(size, normalisation)


def usable_device(name: str) -> torch.device:
    """A device by name; "auto" is the first GPU where there is one.

    Raises:
        InputError: a device that torch does not know or that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        require(False, f"--device {name} cannot be used ({reason}): take auto or cpu.")
    return device


def chosen_method(task: str, name: str, options: Sequence[str]) -> Method:
    """A method by its name, with the options of the task's recipe unless `options` (NAME=VALUE) say otherwise.

    A name that ends in .py is a file of the user's own.

    >>> chosen_method("svhn", "vpt-deep", ["dropout=0.2"]).to_dict()
    {'name': 'vpt-deep', 'num_prompts': 50, 'dropout': 0.2}
    """
    if name.endswith(".py"):
        require(not options, f"{name} sets its own options: got {', '.join(options)}; change them in the file.")
        return method_from_file(name)
    method_named(name)  # an unknown name is told before its recipe is looked for
    return method_for(task, name, **dict(_option(text) for text in options))


def chosen_recipe(task: str, method: str, changes: Mapping[str, Any]) -> TrainingRecipe:
    """The training recipe of a task for a method, with what is not None in `changes` put in its place."""
    schedule = recipe_for(task).schedule
    given = {name: value for name, value in changes.items() if value is not None}
    if "epochs" in given and "warmup" not in given:
        given["warmup"] = min(schedule.warmup, given["epochs"] // 10)
    return recipe_from(schedule, method, **given)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    require(bool(equals) and bool(name), f"an option of a method is NAME=VALUE, as in num_prompts=50: got {text!r}.")
    try:
        return name.replace("-", "_"), json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError:
        return name.replace("-", "_"), value
