"""From the words of a command to objects: a task, a method with its options, a training recipe, a backbone.

Options are checked before a backbone is loaded, and the backbone is loaded before a picture is decoded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from moe_prompt.errors import InputError, require
from moe_prompt.vision.checkpoints.loading import LoadReport, load_backbone
from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.data.preprocessing import FGVC, VTAB, Preprocessing
from moe_prompt.vision.data.subsets import with_validation
from moe_prompt.vision.data.tasks import Task
from moe_prompt.vision.downloads.registries import Teller
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.methods.user_file import method_from_file
from moe_prompt.vision.runtime.distributed import local_device
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.tuning.problem import TuningProblem
from moe_prompt.vision.tuning.recipes import Point, recipe_for
from moe_prompt.vision.tuning.tune import method_for, recipe_from

UNSEARCHED: Mapping[str, Point] = {"sgd": Point(0.02, 0.0001), "adamw": Point(0.001, 0.0001)}
"""Base learning rate and weight decay by optimizer, where nobody searched; both are our choice.

AdamW's are a point of the grid of arXiv 2203.12119. SGD's rate lies below that grid (0.05 to 50, for ViT-B/16), for the
default backbone: the mean square of its features is 1,725, and along their mean the head settles under heavy-ball SGD
only below 4 * 2 (1 + 0.9) / (1,725 / 2) = 0.018. Validation accuracy in percent after 3 epochs of 42 x 42 pixels, on
chest X-rays (of which 54.5 are of one class), Fashion-MNIST (10) and textile (50); VAPT's on X-rays over three seeds:

| rate | VAPT               | VPT-deep           | LoRA | linear             |
|------|--------------------|--------------------|------|--------------------|
| 0.1  | 81.5 / 76.0 / 25.0 | 54.5 / 10.0 / 25.0 | 54.5 | 79.0 / 61.0 / 33.0 |
| 0.05 | 73.7 / 68.0 / 25.0 | 77.0 / 64.5 / 50.0 | 84.0 | 83.5 / 64.5 / 59.0 |
| 0.02 | 85.7 / 63.0 / 72.5 | 77.0 / 67.0 / 72.0 | 79.5 | 76.0 / 59.5 / 43.0 |

At 0.02 no prompts are at chance. After 100 epochs a linear probe is within 6 points at any rate from 0.02 to 25.
"""


@dataclass(frozen=True)
class ProblemOptions:
    """Backbone, picture size and shares of the data, as given on the command line; None: as the file or recipe says."""

    backbone: str
    image: int | None = None
    pooling: str = "cls"
    normalisation: str | None = None
    share: float = 1.0
    test_share: float = 1.0
    device: str = "auto"

    def __post_init__(self) -> None:
        for option, share in (("--share", self.share), ("--test-share", self.test_share)):
            require(0 < share <= 1, f"{option} is a share in (0, 1]: got {share:g}.")
        require(self.image is None or self.image >= 1, f"--image is a number of pixels: got {self.image}.")


def open_problem(
    task: Task, setting: ProblemOptions, progress: Teller | None = None
) -> tuple[TuningProblem, LoadReport]:
    """The task with a backbone at the picture size, preprocessed as the task's recipe says."""
    device = usable_device(setting.device)
    vit, report = load_backbone(setting.backbone, setting.image, setting.pooling, progress=progress)
    problem = TuningProblem(
        vit,
        Path(setting.backbone).name if Path(setting.backbone).exists() else setting.backbone,
        task,
        preprocessing_of(task, vit.config.image, setting.normalisation),
        setting.share,
        setting.test_share,
        device,
    )
    return problem, report


def open_training_task(path: Path) -> Task:
    """The task at a path, with a validation split made of training pictures where it comes without one."""
    return with_validation(open_task(path))


def preprocessing_of(task: Task, size: tuple[int, int], normalisation: str | None = None) -> Preprocessing:
    """Preprocessing by the task's recipe, at this size."""
    recipe = recipe_for(published_name(task))
    make = FGVC if recipe.preprocessing == "fgvc" else VTAB
    return make(size, normalisation or recipe.schedule.normalisation)


def published_name(task: Task) -> str:
    """The name under which recipes know the task if it is one of the 24, else its own name."""
    return task.known.name if task.known else task.name


def usable_device(name: str) -> torch.device:
    """A device by name; "auto" is a GPU where there is one, and under `torchrun` each process has its own.

    Raises:
        InputError: a device that torch does not know or that is not there.
    """
    if name == "auto" or (name == "cuda" and torch.cuda.is_available()):
        return local_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # a tensor on "meta" can be made, and never be read
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"--device {name} cannot be used ({reason}): take auto or cpu.") from error
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
    plain = method_named(name)  # an unknown name is told before its recipe is looked for
    given = dict(_option(text) for text in options)
    for field in fields(plain):  # type: ignore[arg-type]
        if field.name in given:
            given[field.name] = _of_kind(str(field.type), field.name, given[field.name])
    return method_for(task, name, **given)


def chosen_recipe(task: str, optimizer: str, changes: Mapping[str, Any]) -> TrainingRecipe:
    """The training recipe of a task for a method's optimizer, with what is not None in `changes` put in its place.

    If another number of epochs is given, a tenth of them (rounded up, at most the recipe's) is warm-up: without it SGD
    diverges at the papers' learning rates. Learning rate and weight decay are those of :data:`UNSEARCHED` unless given;
    a search replaces them.

    >>> [chosen_recipe("svhn", "sgd", {"epochs": epochs}).warmup for epochs in (1, 2, 10, 11, 100, 200)]
    [1, 1, 1, 2, 10, 10]
    """
    schedule = recipe_for(task).schedule
    given = {name: value for name, value in changes.items() if value is not None}
    optimizer = given.pop("optimizer", optimizer)
    if "epochs" in given and "warmup" not in given:
        given["warmup"] = max(min(schedule.warmup, -(-given["epochs"] // 10)), 0)
    plain = recipe_from(schedule, optimizer, **given)
    point = UNSEARCHED[plain.optimizer]
    return recipe_from(schedule, optimizer, **{"base_lr": point.base_lr, "weight_decay": point.weight_decay, **given})


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    require(bool(equals) and bool(name), f"an option of a method is NAME=VALUE, as in num_prompts=50: got {text!r}.")
    try:
        return name.replace("-", "_"), json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError:
        return name.replace("-", "_"), value


def _of_kind(kind: str, name: str, value: Any) -> Any:
    """The value of an option, once it is checked to be of the type of its field."""
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}
    wanted = {"int": int, "float": int | float, "bool": bool, "str": str}
    fits = isinstance(value, wanted[kind]) and (kind == "bool" or not isinstance(value, bool))
    require(fits, f"the option {name} is {words[kind]}: got {value!r}.")
    return float(value) if kind == "float" else value
