"""Carry out trainings, each of them once. Several processes may share the work, and a killed run is resumed.

    problem = TuningProblem(backbone, "vit-b/16", task, preprocessing)     # opened once, for many runs
    row = run_training(problem.trial(method, recipe), folder, problem)    # evaluated on validation pictures
    row = run_training(problem.final(method, recipe), folder, problem)    # trained on all pictures, tested once

`folder` gets `runs.sqlite` (:mod:`moe_prompt.vision.tuning.run_table`) and, for each run, `runs/<key>/` with the logs
of the training, its state until the row is written, and after a final run `tuned.safetensors`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from moe_prompt.errors import InputError
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.tuned_file import save_tuned
from moe_prompt.vision.runtime.distributed import Ranks, joined
from moe_prompt.vision.runtime.locks import exclusively
from moe_prompt.vision.training.evaluation import TrainingProgress, silent
from moe_prompt.vision.training.features import can_be_fixed
from moe_prompt.vision.training.result import TrainingResult
from moe_prompt.vision.training.train import train
from moe_prompt.vision.tuning.problem import TuningProblem
from moe_prompt.vision.tuning.run_spec import FINAL, RunSpec
from moe_prompt.vision.tuning.run_table import RunRow, RunTable

DATABASE = "runs.sqlite"
STATE = "state.pt"  # what training resumes from


def run_training(
    spec: RunSpec,
    folder: str | Path,
    problem: TuningProblem,
    progress: TrainingProgress = silent,
    wait: bool = True,
    tensorboard: bool = False,
) -> RunRow:
    """The row of this training: from the table where it was run before, otherwise trained now and written at once.

    A training whose loss is not finite gives a row that says so, and is not tried again. If several processes ask for
    the same run, one trains and the others wait for its row; with ``wait=False`` they raise
    :class:`~moe_prompt.vision.runtime.locks.Busy`. A killed run continues from its last saved state.

    Raises:
        InputError: as the training raises it; no row is written then.
    """
    folder = Path(folder)
    table, place = RunTable(folder / DATABASE), folder / "runs" / spec.key
    ranks = joined(problem.device)
    with _alone(ranks, place / "lock", wait):
        known = ranks.share(table.get(spec.key) if ranks.first else None)
        if known is not None:
            return known
        try:
            row = _trained(spec, problem, place, progress, tensorboard)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise InputError(
                f"{spec.label} on {spec.task} needs more memory than there is: raise --accumulate, lower --batch or "
                "take --precision bf16; what was saved before is kept."
            ) from error
        if ranks.first:
            row = table.add(row)
            (place / STATE).unlink(missing_ok=True)  # the row stands for it; of full fine-tuning it is a gigabyte
        return row


@contextmanager
def _alone(ranks: Ranks, path: Path, wait: bool) -> Iterator[None]:
    """The first process holds the lock for all that train together."""
    if ranks.first:
        with exclusively(path, wait):
            yield
    else:
        yield


def _trained(
    spec: RunSpec, problem: TuningProblem, place: Path, progress: TrainingProgress, tensorboard: bool
) -> RunRow:
    generator = torch.Generator().manual_seed(spec.recipe.seed)
    classifier = Classifier(problem.backbone, spec.method, spec.classes, generator).to(problem.device)
    counted = problem.flops(spec, classifier) if spec.purpose == FINAL else None
    training, evaluation, seconds = _seen(spec, problem, classifier)
    result = train(classifier, training, evaluation, spec.recipe, place, progress, tensorboard=tensorboard)
    if spec.purpose == FINAL and not result.failed:
        notes = {"run": spec.key, "preprocessing": json.dumps(spec.preprocessing.to_dict())}
        save_tuned(place / "tuned.safetensors", classifier, problem.task.classes, notes)
    seen, unseen = seconds
    result = replace(result, seconds=result.seconds + seen, seconds_test=result.seconds_test + unseen)
    return _row(spec, problem, classifier, result, counted)


def _seen(
    spec: RunSpec, problem: TuningProblem, classifier: Classifier
) -> tuple[Dataset, Dataset, tuple[float, float]]:
    """The training and evaluation sets, and the seconds that computing their features took.

    They are pictures, or the features of a frozen backbone, which all runs of one process share.
    """
    places = (spec.training, spec.share), (spec.evaluation, spec.evaluation_share)
    training = problem.dataset(*places[0], training=True, seed=spec.recipe.seed)
    evaluation = problem.dataset(*places[1], training=False, seed=spec.recipe.seed)
    if not can_be_fixed(classifier, training) or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return training, evaluation, (0.0, 0.0)
    seen, seconds = problem.features(classifier, training, places[0], spec.recipe)
    unseen, more = problem.features(classifier, evaluation, places[1], spec.recipe)
    return seen, unseen, (seconds, more)


def _row(
    spec: RunSpec, problem: TuningProblem, classifier: Classifier, result: TrainingResult, flops: tuple[int, int] | None
) -> RunRow:
    return RunRow(
        **_of_spec(spec),
        **_of_result(result),
        training_images=len(problem.split(spec.training, spec.share)),
        evaluation_images=len(problem.split(spec.evaluation, spec.evaluation_share)),
        tuned_parameters=classifier.num_tuned(),
        head_parameters=sum(p.numel() for p in classifier.head.parameters()),
        backbone_parameters=sum(p.numel() for p in problem.backbone.parameters()),
        flops_forward=None if flops is None else float(flops[0]),
        flops_step=None if flops is None else float(flops[1]),
        finished_utc=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        made_with=json.dumps(_environment(), sort_keys=True),
    )


def _of_spec(spec: RunSpec) -> dict[str, Any]:
    """The columns that a specification determines."""
    recipe, (height, width) = spec.recipe, spec.preprocessing.size
    same = ("key", "purpose", "task", "label", "backbone", "backbone_sha", "training", "evaluation", "share", "classes")
    return {
        **{name: getattr(spec, name) for name in same},
        **{name: getattr(recipe, name) for name in ("optimizer", "seed", "epochs", "batch", "precision")},
        "method": json.dumps(spec.method.to_dict()),
        "height": height,
        "width": width,
        "base_lr": float(recipe.base_lr),
        "weight_decay": float(recipe.weight_decay),
        "spec": json.dumps(spec.to_dict(), sort_keys=True),
    }


def _of_result(result: TrainingResult) -> dict[str, Any]:
    """The columns that the training determines."""
    accuracy = result.last_test_accuracy
    return {
        **{name: getattr(result, name) for name in ("failed", "message", "seconds_test", "memory_kind")},
        "accuracy": None if result.failed or accuracy is None else 100 * accuracy,
        "train_loss": result.last_train_loss,
        "seconds": result.seconds + result.seconds_features,
        "peak_memory_mb": result.peak_memory_mb,
    }


@cache
def _environment() -> dict[str, Any]:
    from moe_prompt.basics.provenance import environment

    return {**environment(), "threads": torch.get_num_threads()}
