"""`moe-prompt classify train` and `tune`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from moe_prompt.errors import InputError, require
from moe_prompt.vision.commands import options as given
from moe_prompt.vision.commands.options import DEFAULT_BACKBONE, RUNS, say, show, show_json, stoppable, watched

if TYPE_CHECKING:
    from moe_prompt.vision.commands.assembly import ProblemOptions
    from moe_prompt.vision.data.tasks import Task
    from moe_prompt.vision.tuning.problem import TuningProblem
    from moe_prompt.vision.tuning.run_table import RunRow
    from moe_prompt.vision.tuning.tune import Tuned

EXIT_FAILED = 1
"""Exit code of a command of which a training gave no result."""
TUNED = ("linear", "vpt-deep", "vapt")


@stoppable()
def train_command(
    data: given.Data = None,
    method: given.MethodName = "vapt",
    set_: given.Options = None,
    backbone: given.Backbone = DEFAULT_BACKBONE,
    image: given.Image = None,
    pooling: given.Pooling = "cls",
    lr: Annotated[
        Optional[float],
        typer.Option("--lr", help="Base learning rate, for a batch of 256; by default 0.02, for AdamW 0.001."),
    ] = None,
    weight_decay: Annotated[
        Optional[float], typer.Option("--weight-decay", help="Weight decay; by default 0.0001.")
    ] = None,
    optimizer: Annotated[
        Optional[str], typer.Option("--optimizer", help="sgd or adamw; the method's by default.")
    ] = None,
    epochs: given.Epochs = None,
    warmup: Annotated[
        Optional[int], typer.Option("--warmup", help="Epochs of warm-up; a tenth of all by default.")
    ] = None,
    batch: given.BatchSize = None,
    accumulate: given.Accumulate = None,
    precision: given.Precision = "float32",
    class_weights: given.ClassWeights = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of weights, order and dropout.")] = 42,
    workers: given.Workers = 0,
    normalisation: given.Normalisation = None,
    share: given.Share = 1.0,
    test_share: given.TestShare = 1.0,
    device: given.Device = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's events too, beside steps.csv and epochs.csv.")
    ] = False,
    out: given.RunsFolder = RUNS,
    quick: Annotated[
        bool, typer.Option("--quick", help="The whole path on real digits: two minutes, no download, no other option.")
    ] = False,
    json_: given.AsJson = False,
) -> None:
    """Train once on all training pictures and test after the last epoch. Run again, the command continues.

    Nothing is searched here; use `tune` for numbers to report.
    """
    if quick:
        _demonstrate(locals(), out)
        return
    require(data is not None, "train needs --data, a folder of pictures; or --quick, which brings its own.")
    assert data is not None
    from moe_prompt.vision.commands import assembly
    from moe_prompt.vision.tuning.runs import DATABASE, run_training

    setting = assembly.ProblemOptions(backbone, image, pooling, normalisation, share, test_share, device)
    task = assembly.open_training_task(data)
    name = assembly.published_name(task)
    chosen = assembly.chosen_method(name, method, set_ or [])
    changes = {
        "base_lr": lr,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "epochs": epochs,
        "warmup": warmup,
        "batch": batch,
        "accumulate": accumulate,
        "precision": precision,
        "class_weights": class_weights,
        "seed": seed,
        "workers": workers,
    }
    recipe = assembly.chosen_recipe(name, chosen.optimizer, changes)
    problem = _opened(task, setting, out)
    spec = problem.final(chosen, recipe, Path(method).stem)
    with watched(f"{name}, {spec.label}") as progress:
        row = run_training(spec, out, problem, progress, tensorboard=tensorboard)
    tuned = out / "runs" / spec.key / "tuned.safetensors"
    if json_:
        nested = {name: json.loads(getattr(row, name)) for name in ("method", "spec", "made_with")}
        show_json({**asdict(row), **nested, "tuned": None if row.failed else str(tuned)})
    elif not row.failed:
        show(_told(row), f"tuned  {tuned}", f"rows   {out / DATABASE}")
    _tell_failures([row])


@stoppable()
def tune_command(
    data: given.Data = None,
    method: Annotated[
        Optional[list[str]],
        typer.Option(
            "--method",
            help=f"A name of `classify list`, or a Python file of your own; repeatable, {', '.join(TUNED)} by default.",
        ),
    ] = None,
    set_: given.Options = None,
    backbone: given.Backbone = DEFAULT_BACKBONE,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            help="paper: the published grid, 40 trials; coordinates: its rates, then its decays, 13; small: 6; rates: "
            "6 rates; random or tpe: drawn.",
        ),
    ] = "coordinates",
    trials: Annotated[
        Optional[int], typer.Option("--trials", help="Trials of the searches random and tpe; 6 by default.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="How many of the five seeds are trained and tested.")] = 5,
    image: given.Image = None,
    pooling: given.Pooling = "cls",
    epochs: given.Epochs = None,
    batch: given.BatchSize = None,
    accumulate: given.Accumulate = None,
    precision: given.Precision = "float32",
    class_weights: given.ClassWeights = None,
    workers: given.Workers = 0,
    normalisation: given.Normalisation = None,
    share: given.Share = 1.0,
    test_share: given.TestShare = 1.0,
    device: given.Device = "auto",
    out: given.RunsFolder = RUNS,
) -> None:
    """Search on validation pictures, train the best setting with five seeds, test each once, and print the report.

    Several processes with the same command share the work. An interrupted command continues when it is run again.
    """
    require(data is not None, "tune needs --data, a folder of pictures.")
    assert data is not None
    from moe_prompt.vision.commands import assembly
    from moe_prompt.vision.tuning.recipes import SEEDS
    from moe_prompt.vision.tuning.searches import search_named
    from moe_prompt.vision.tuning.tune import tune

    names = method or list(TUNED)
    labels = [Path(each).stem for each in names]
    require(1 <= seeds <= len(SEEDS), f"--seeds is how many of the {len(SEEDS)} seeds are run: got {seeds}.")
    require(len(names) == 1 or not set_, "--set belongs to one method: tune one at a time, or leave it out.")
    require(len(set(labels)) == len(labels), f"every --method needs another name: got {', '.join(names)}.")
    setting = assembly.ProblemOptions(backbone, image, pooling, normalisation, share, test_share, device)
    task = assembly.open_training_task(data)
    changes = {
        "epochs": epochs,
        "batch": batch,
        "accumulate": accumulate,
        "precision": precision,
        "class_weights": class_weights,
        "workers": workers,
    }
    planned = []
    for each in names:  # all words are checked before anything is trained
        chosen = assembly.chosen_method(assembly.published_name(task), each, set_ or [])
        recipe = assembly.chosen_recipe(assembly.published_name(task), chosen.optimizer, changes)
        planned.append((chosen, recipe, search_named(search, recipe.optimizer, trials)))
    problem = _opened(task, setting, out)
    found: list[Tuned] = []
    errors: dict[str, InputError] = {}
    for label, (chosen, recipe, plan) in zip(labels, planned, strict=True):
        try:
            with watched(f"{problem.task_name}, {label}") as progress:
                found.append(tune(problem, chosen, recipe, plan, out, label, SEEDS[:seeds], progress, say))
        except InputError as error:  # such as no trial with a result: the other methods may have some
            errors[str(error)] = error
    _tell(found, errors, out)


def _opened(task: Task, setting: ProblemOptions, out: Path) -> TuningProblem:
    """Open a task with its backbone and describe both. Whether the folder can be written is checked first."""
    from moe_prompt.vision.commands import assembly
    from moe_prompt.vision.data.tasks import REST_SPLIT
    from moe_prompt.vision.tuning.run_table import RunTable
    from moe_prompt.vision.tuning.runs import DATABASE

    problem, loaded = assembly.open_problem(task, setting, say)
    say(loaded.sentence())
    RunTable(out / DATABASE)
    if REST_SPLIT in task.splits:
        count, whole = len(task.splits["val"]), len(task.splits["train"])
        say(f"{task.source} comes without a validation split: {count} of its {whole} training pictures are one.")
    for sentence in problem.shares():
        say(sentence)
    return problem


def _tell(found: list[Tuned], errors: dict[str, InputError], out: Path) -> None:
    """Print the report of the methods that have results, then why the others have none."""
    from moe_prompt.vision.report.report import tuning_report
    from moe_prompt.vision.tuning.runs import DATABASE

    if found:
        rows = [row for each in found for row in (*each.trials, *each.finals)]
        show(tuning_report(rows).text(), f"rows   {out / DATABASE}")
    for sentence in list(errors)[:-1]:
        say(f"moe-prompt: {sentence}")
    if errors:
        raise list(errors.values())[-1]
    _tell_failures([row for each in found for row in each.finals])


def _demonstrate(words: Mapping[str, Any], out: Path) -> None:
    from moe_prompt.vision.commands.quick import demonstrate
    from moe_prompt.vision.tuning.runs import DATABASE

    for name, parameter in signature(train_command).parameters.items():
        require(
            name in ("quick", "out") or words[name] == parameter.default,
            f"--quick brings pictures and settings of its own: leave out --{name.strip('_').replace('_', '-')}.",
        )
    folder = out / "quick" if out == RUNS else out
    show(demonstrate(folder, say).text(), f"rows   {folder / DATABASE}")


def _told(row: RunRow) -> str:
    epochs = "its one epoch" if row.epochs == 1 else f"the last of {row.epochs} epochs"
    return (
        f"{row.task}, {row.label}: {row.accuracy:.2f} % of {row.evaluation_images:,} test pictures after {epochs}; "
        f"{row.tuned_parameters:,} parameters and a head of {row.head_parameters:,} learned on "
        f"{row.training_images:,} pictures in {row.seconds:.0f} s, base learning rate {row.base_lr:g}."
    )


def _tell_failures(rows: list[RunRow]) -> None:
    """Say which trainings gave no result, and end with :data:`EXIT_FAILED` if there are any."""
    failed = [row for row in rows if row.failed]
    if failed:
        which = "the training" if len(rows) == 1 else f"{len(failed)} of {len(rows)} trainings"
        say(f"moe-prompt: {which} failed, and the row says so: {failed[0].message}")
        raise typer.Exit(EXIT_FAILED)
