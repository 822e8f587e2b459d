"""Carry out trainings: each once, each a row at once, resumed where it was killed, by as many processes as one likes.

    problem = Problem(backbone, "vit-b/16", task, preprocessing)          # opened once, many runs
    row = run(problem.trial(method, recipe), folder, problem)              # searched on validation pictures
    row = run(problem.final(method, recipe), folder, problem)              # trained on all of them, tested once

`folder` gets `runs.sqlite` (:mod:`moe_prompt.vision.run_table`) and, for each run, `runs/<key>/` with the logs of the
training, its state until the row is written, and after a final run `tuned.safetensors`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from moe_prompt.vision.classifier import Classifier
from moe_prompt.vision.datasets import PictureDataset, SplitDataset, in_memory
from moe_prompt.vision.distributed import Ranks, joined
from moe_prompt.vision.evaluation import Progress, silent
from moe_prompt.vision.metering import Cost, measure
from moe_prompt.vision.method import Method
from moe_prompt.vision.preprocessing import Preprocessing
from moe_prompt.vision.run_specs import FINAL, SEARCH, Protocol, RunSpec, describe, protocol_of, split_digest
from moe_prompt.vision.run_table import RunRow, RunTable, exclusively
from moe_prompt.vision.subsets import stratified_fraction
from moe_prompt.vision.tasks import Split, Task
from moe_prompt.vision.training import train
from moe_prompt.vision.training_recipe import TrainingRecipe
from moe_prompt.vision.training_result import TrainingResult
from moe_prompt.vision.tuned_files import save_tuned
from moe_prompt.vision.vit import VisionTransformer

DATABASE = "runs.sqlite"
STATE = "state.pt"  # what training resumes from
KEPT_IN_MEMORY = 2**30  # bytes of decoded pictures of one split
SUBSET_SEED = 0  # which pictures a share of a split is: the same ones for every method and every seed


class Problem:
    """A task and a backbone, opened: what the runs of a search share.

    `share` of the training split and `evaluation_share` of the test split are used, stratified by class and the same
    in every run; validation is always whole. The splits of a purpose are read when a run of that purpose is asked for,
    so a search never opens the test split.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        backbone_name: str,
        task: Task,
        preprocessing: Preprocessing,
        share: float = 1.0,
        evaluation_share: float = 1.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.backbone, self.backbone_name, self.task = backbone.to(self.device), backbone_name, task
        self.preprocessing, self.share, self.evaluation_share = preprocessing, share, evaluation_share
        self._datasets: dict[tuple[str, float], SplitDataset] = {}
        self._digests: dict[tuple[str, float], str] = {}
        self._costs: dict[str, Cost] = {}

    @cached_property
    def backbone_sha(self) -> str:
        return self.backbone.fingerprint()

    @cached_property
    def protocol(self) -> Protocol:
        """Which splits are for what; a sentence where there is no validation split."""
        return protocol_of(tuple(self.task.splits), str(self.task.source))

    @property
    def task_name(self) -> str:
        """The published name where the task is one of the 24."""
        return self.task.known.name if self.task.known else self.task.name

    def trial(self, method: Method, recipe: TrainingRecipe, label: str = "") -> RunSpec:
        """A run of a search."""
        return self._spec(SEARCH, method, recipe, label)

    def final(self, method: Method, recipe: TrainingRecipe, label: str = "") -> RunSpec:
        """A run that is tested."""
        return self._spec(FINAL, method, recipe, label)

    def _spec(self, purpose: str, method: Method, recipe: TrainingRecipe, label: str) -> RunSpec:
        training, evaluation = self.protocol.splits(purpose)
        evaluation_share = self.evaluation_share if purpose == FINAL else 1.0
        return RunSpec(
            purpose=purpose,
            task=self.task_name,
            label=label or method.name,
            backbone=self.backbone_name,
            backbone_sha=self.backbone_sha,
            method=method,
            classes=len(self.task.classes),
            training=training,
            training_sha=self._digest(training, self.share),
            evaluation=evaluation,
            evaluation_sha=self._digest(evaluation, evaluation_share),
            preprocessing=self.preprocessing,
            recipe=replace(recipe, normalisation=self.preprocessing.normalisation),
            share=self.share,
            evaluation_share=evaluation_share,
        )

    def split(self, name: str, share: float = 1.0) -> Split:
        """A split, or a stratified share of it."""
        split = self.task.split(name)
        return split if share == 1 else stratified_fraction(split, share, SUBSET_SEED, len(self.task.classes)).split

    def dataset(self, name: str, share: float, training: bool, seed: int) -> SplitDataset:
        """Pictures of a split; decoded once and shared by runs where nothing about them is random and they fit."""
        if training and self.preprocessing.random:
            return PictureDataset(self.split(name, share), self.preprocessing, training=True, seed=seed)
        place = name, share
        if place not in self._datasets:
            plain = PictureDataset(self.split(name, share), self.preprocessing, training=False)
            height, width = self.preprocessing.size
            small = 3 * height * width * len(plain) <= KEPT_IN_MEMORY
            self._datasets[place] = in_memory(plain) if small else plain
        return self._datasets[place]

    def cost(self, spec: RunSpec, classifier: Classifier) -> Cost:
        """What one picture costs this method here, measured once."""
        name = json.dumps([spec.method.to_dict(), spec.classes, spec.recipe.precision])
        if name not in self._costs:
            self._costs[name] = measure(classifier, self.preprocessing.size, 1)
        return self._costs[name]

    def _digest(self, name: str, share: float) -> str:
        place = name, share
        if place not in self._digests:
            self._digests[place] = split_digest(self.split(name, share))
        return self._digests[place]


def run(spec: RunSpec, folder: str | Path, problem: Problem, progress: Progress = silent, wait: bool = True) -> RunRow:
    """The row of this training: from the table where it was run before, otherwise trained now and written at once.

    A training whose loss is not finite is a row that says so, and is not tried again. Of processes that ask for the
    same run one trains and the others wait for its row, or with ``wait=False`` get
    :class:`~moe_prompt.vision.run_table.Busy`. A killed run goes on from its last saved state.

    Raises:
        InputError: what the training raises; nothing is written then.
    """
    folder = Path(folder)
    table, place = RunTable(folder / DATABASE), folder / "runs" / spec.key
    ranks = joined(problem.device)
    with _alone(ranks, place / "lock", wait):
        known = ranks.share(table.get(spec.key) if ranks.first else None)
        if known is not None:
            return known
        row = _trained(spec, problem, place, progress)
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


def _trained(spec: RunSpec, problem: Problem, place: Path, progress: Progress) -> RunRow:
    recipe = spec.recipe
    generator = torch.Generator().manual_seed(recipe.seed)
    classifier = Classifier(problem.backbone, spec.method, spec.classes, generator).to(problem.device)
    training = problem.dataset(spec.training, spec.share, training=True, seed=recipe.seed)
    evaluation = problem.dataset(spec.evaluation, spec.evaluation_share, training=False, seed=recipe.seed)
    cost = problem.cost(spec, classifier) if spec.purpose == FINAL else None
    result = train(classifier, training, evaluation, recipe, place, progress)
    if spec.purpose == FINAL and not result.failed:
        save_tuned(place / "tuned.safetensors", classifier, problem.task.classes, {"run": spec.key})
    return _row(spec, problem, classifier, result, cost)


def _row(spec: RunSpec, problem: Problem, classifier: Classifier, result: TrainingResult, cost: Cost | None) -> RunRow:
    recipe, accuracy = spec.recipe, result.last_test_accuracy
    height, width = spec.preprocessing.size
    return RunRow(
        key=spec.key,
        purpose=spec.purpose,
        task=spec.task,
        label=spec.label,
        method=json.dumps(spec.method.to_dict()),
        backbone=spec.backbone,
        backbone_sha=spec.backbone_sha,
        height=height,
        width=width,
        training=spec.training,
        evaluation=spec.evaluation,
        share=spec.share,
        optimizer=recipe.optimizer,
        base_lr=float(recipe.base_lr),
        weight_decay=float(recipe.weight_decay),
        seed=recipe.seed,
        epochs=recipe.epochs,
        batch=recipe.batch,
        precision=recipe.precision,
        classes=spec.classes,
        training_images=len(problem.split(spec.training, spec.share)),
        evaluation_images=len(problem.split(spec.evaluation, spec.evaluation_share)),
        accuracy=None if result.failed or accuracy is None else 100 * accuracy,
        train_loss=result.last_train_loss,
        failed=result.failed,
        message=result.message,
        seconds=result.seconds + result.seconds_features,
        seconds_test=result.seconds_test,
        peak_memory_mb=result.peak_memory_mb,
        memory_kind=result.memory_kind,
        tuned_parameters=classifier.num_tuned(),
        head_parameters=sum(p.numel() for p in classifier.head.parameters()),
        backbone_parameters=sum(p.numel() for p in problem.backbone.parameters()),
        flops_forward=None if cost is None else float(cost.flops_forward),
        flops_step=None if cost is None else float(cost.flops_step),
        finished_utc=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        spec=json.dumps(describe(spec), sort_keys=True),
        made_with=json.dumps(_environment(), sort_keys=True),
    )


@cache
def _environment() -> dict[str, Any]:
    from moe_prompt.archive import environment

    return {**environment(), "threads": torch.get_num_threads()}
