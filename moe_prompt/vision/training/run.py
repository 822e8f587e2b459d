"""One training, from its first step or from where it was interrupted, to its result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from moe_prompt.vision.runtime.distributed import Ranks
from moe_prompt.vision.runtime.memory import PeakMemory
from moe_prompt.vision.runtime.precision import device_of
from moe_prompt.vision.runtime.randomness import random_state, set_random_state
from moe_prompt.vision.training.batches import BatchSource, PictureBatch, labels_of, size_of, training_keys
from moe_prompt.vision.training.evaluation import TrainingProgress, evaluate, silent
from moe_prompt.vision.training.features import FeatureDataset, HeadAlone, can_be_fixed, fixed_features
from moe_prompt.vision.training.logs import STEP_COLUMNS, RunLogs
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.training.result import Standing, TrainingResult
from moe_prompt.vision.training.state import StateFile, data_key, learned_tensors, made, model_key, put_back
from moe_prompt.vision.training.steps import Stepper, class_weights


@dataclass(frozen=True)
class TrainingPlan:
    """How a training is to be run, as :func:`train` was told."""

    recipe: TrainingRecipe
    folder: Path | None
    test_every: int
    save_seconds: float
    save_steps: int | None
    tensorboard: bool

    def tests(self, epoch: int) -> bool:
        """Whether the test set is looked at after this epoch, counted from 0."""
        due = self.test_every > 0 and (epoch + 1) % self.test_every == 0
        return due or epoch + 1 == self.recipe.epochs


class TrainingRun:
    """One call of :func:`train` in one process."""

    def __init__(
        self,
        model: nn.Module,
        training: Dataset,
        test: Dataset | None,
        plan: TrainingPlan,
        ranks: Ranks,
        progress: TrainingProgress,
    ) -> None:
        self.model, self.training, self.test, self.plan, self.ranks = model, training, test, plan, ranks
        self.recipe, self.device = plan.recipe, device_of(model)
        self.progress = progress if ranks.first else silent
        self.standing = Standing()
        self.steps = -(-size_of(training) // self.recipe.batch)
        self.file = None if plan.folder is None else StateFile(made(plan.folder) / "state.pt", self._identity())
        self.times: list[float] = []

    def result(self) -> TrainingResult:
        saved = self._saved()
        if saved is not None and saved["result"] is not None:
            put_back(self.model, saved["learned"])
            return TrainingResult(**saved["result"])
        self.memory = PeakMemory(self.device)
        if saved is not None:
            self.standing = Standing(**saved["standing"])
        self.logs, was_training = self._open_logs(saved), self.model.training
        try:
            self._prepare(saved)
            self.model.train()
            return self._finish(self._train())
        finally:
            self.logs.close()
            self.model.train(was_training)

    def _prepare(self, saved: Mapping[str, Any] | None) -> None:
        """Set weights, optimizer and random numbers to where this training begins, equal weights in all processes."""
        self._fix_features()
        labels = labels_of(self.training) if self.recipe.class_weights else np.zeros(0, dtype=np.int64)
        self.stepper = Stepper(self.learner, self.recipe, class_weights(self.recipe.class_weights, labels), self.ranks)
        if saved is not None:
            put_back(self.model, saved["learned"])
            self.stepper.optimizer.load_state_dict(saved["optimizer"])
            self.stepper.scaler.load_state_dict(saved["scaler"])
            set_random_state(saved["random"][self.ranks.rank], self.device)
        self.ranks.align(learned_tensors(self.model).values())

    def _train(self) -> str:
        """Carry out the remaining steps. Returns why the training failed, or an empty string."""
        now, count = self.standing, size_of(self.training)
        self.clock = self.saved_at = time.monotonic()
        with BatchSource(self.training, self.recipe.workers, pin=self.device.type == "cuda") as source:
            while now.epoch < self.recipe.epochs:
                place = (now.epoch, now.step, self.ranks.rank, self.ranks.world)
                for batch in source.read(training_keys(count, self.recipe.batch, self.recipe.seed, *place)):
                    if failure := self._step(batch):
                        return failure
                if failure := self._end_epoch():
                    return failure
        return ""

    def _step(self, batch: PictureBatch) -> str:
        now, plan = self.standing, self.plan
        number, rate = self._taken() + 1, self.recipe.rate(now.epoch, now.step, self.steps)
        due = time.monotonic() - self.saved_at >= plan.save_seconds
        due = due or (plan.save_steps is not None and number % plan.save_steps == 0)
        outcome = self.stepper(batch, rate, ask=due and self.ranks.first)
        seconds = self._lap()
        self.times.append(seconds)
        now.count(outcome, batch.size, seconds)
        speed = batch.size / seconds if seconds else math.inf
        row = (number, now.epoch + 1, rate, outcome.loss, outcome.accuracy, seconds, speed)
        self.logs.step(dict(zip(STEP_COLUMNS, row, strict=True)))
        note = f"epoch {now.epoch + 1} of {self.recipe.epochs}, loss {outcome.loss:.4g}"
        self.progress("train", number, self.recipe.epochs * self.steps, note)
        if not math.isfinite(outcome.loss):
            return f"the loss was {outcome.loss} in step {number} (epoch {now.epoch + 1}): {self._advice()}"
        if outcome.asked and now.step < self.steps:  # the end of the epoch saves anyway
            self._save()
        return ""

    def _end_epoch(self) -> str:
        now = self.standing
        now.close_epoch()
        failure = ""
        tested = self.test is not None and self.plan.tests(now.epoch)
        if tested:
            self._save()  # a test can take longer than the epoch
            failure = self._test()
        self.logs.epoch(now.row(tested))
        now.turn()
        if not failure:
            self._save()
        return failure

    def _test(self) -> str:
        now = self.standing
        assert self.test is not None
        model = self.learner if isinstance(self.test, FeatureDataset) else self.model
        found = evaluate(
            model,
            self.test,
            self.recipe.batch,
            self.recipe.normalisation,
            self.recipe.precision,
            self.recipe.workers,
            self.ranks,
            self.progress,
        )
        now.seconds_test += self._lap()
        now.tested(found, choosing=self.plan.test_every > 0)
        if math.isfinite(found.loss):
            return ""
        return f"the loss on the test set was {found.loss} after epoch {now.epoch + 1}: {self._advice()}"

    def _fix_features(self) -> None:
        """Replace pictures by their features where only the head learns."""
        given = isinstance(self.training, FeatureDataset)
        self.fixed = given or can_be_fixed(self.model, self.training)
        head = getattr(self.model, "head", None)
        self.learner = HeadAlone(head) if self.fixed and isinstance(head, nn.Module) else self.model
        began = time.monotonic()
        if self.fixed and not given:
            self.training = self._features(self.training)
        if self.test is not None and self.plan.test_every and can_be_fixed(self.model, self.test):
            self.test = self._features(self.test)
        self.standing.seconds_features += time.monotonic() - began

    def _features(self, dataset: Dataset) -> FeatureDataset:
        if isinstance(dataset, FeatureDataset):
            return dataset
        recipe = self.recipe
        options = (recipe.batch, recipe.normalisation, recipe.precision, recipe.workers)
        return fixed_features(self.model, dataset, *options, self.ranks, self.progress)

    def _finish(self, failure: str) -> TrainingResult:
        self._watch_memory()
        learned = sum(p.numel() for p in self.stepper.parameters)
        step = median(self.times) if self.times else math.nan
        result = self.standing.result(self._taken(), step, self.memory.kind, learned, self.fixed, failure)
        self._save(result)
        return result

    def _identity(self) -> dict[str, Any]:
        """What a saved state must agree with. The number of workers is not part of it, as it changes no result."""
        return {
            "recipe": {name: value for name, value in self.recipe.to_dict().items() if name != "workers"},
            "model": model_key(self.model),
            "training set": data_key(self.training),
            "test set": None if self.test is None else data_key(self.test),
            "number of processes": self.ranks.world,
        }

    def _saved(self) -> dict[str, Any] | None:
        """The saved state, read by the first process and sent to the others, which may not reach its disk."""
        if self.file is None:
            return None
        found = self.ranks.share(self.file.read() if self.ranks.first else None)
        return None if found is None else self.file.decode(found)

    def _save(self, result: TrainingResult | None = None) -> None:
        """Save the state of all processes in one file. Of a finished training, save the weights and the result."""
        if self.file is None:
            return
        self._watch_memory()
        random = self.ranks.gather(random_state(self.device))
        if self.ranks.first:
            self.file.save(
                {
                    "learned": learned_tensors(self.model),
                    "optimizer": None if result else self.stepper.optimizer.state_dict(),
                    "scaler": self.stepper.scaler.state_dict(),
                    "standing": asdict(self.standing),
                    "random": random,
                    "logs": self.logs.positions(),
                    "result": None if result is None else asdict(result),
                }
            )
        self.saved_at = time.monotonic()

    def _open_logs(self, saved: Mapping[str, Any] | None) -> RunLogs:
        folder = self.plan.folder if self.ranks.first else None
        if saved is None:
            return RunLogs(folder, self.plan.tensorboard)
        return RunLogs(folder, self.plan.tensorboard, saved["logs"], self._taken())

    def _watch_memory(self) -> None:
        self.standing.peak_memory_mb = max(self.standing.peak_memory_mb, self.memory.megabytes())

    def _taken(self) -> int:
        """Steps taken in all."""
        return self.standing.epoch * self.steps + self.standing.step

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self.clock = self.clock, time.monotonic()
        return self.clock - before

    def _advice(self) -> str:
        other = " or use bf16" if self.recipe.precision == "fp16" else ""
        return f"lower base_lr ({self.recipe.base_lr:g}){other}."
