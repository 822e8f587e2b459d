"""A task with a backbone, as many runs share it: read, decoded and measured once."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import cached_property

import torch

from moe_prompt.vision.data.datasets import PictureDataset, SplitDataset, in_memory
from moe_prompt.vision.data.preprocessing import Preprocessing
from moe_prompt.vision.data.subsets import stratified_fraction
from moe_prompt.vision.data.tasks import Task, TaskSplit
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.runtime.metering import flops
from moe_prompt.vision.training.features import FeatureDataset, fixed_features
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.tuning.run_spec import FINAL, SEARCH, Protocol, RunSpec, protocol_of, split_digest
from moe_prompt.vision.vit.transformer import VisionTransformer

KEPT_IN_MEMORY = 2**30  # bytes of decoded pictures of one split
SUBSET_SEED = 0  # which pictures a share of a split is: the same ones for every method and every seed


class TuningProblem:
    """A task with a backbone, as all runs of a search share it.

    `share` of the training split and `evaluation_share` of the test split are used, stratified by class and the same
    in every run; the validation split is always used whole. A search never opens the test split.
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
        self._flops: dict[str, tuple[int, int]] = {}
        self._features: dict[tuple[str, float, str, str], tuple[FeatureDataset, float]] = {}

    @cached_property
    def backbone_sha(self) -> str:
        return self.backbone.fingerprint()

    @cached_property
    def protocol(self) -> Protocol:
        """The splits of each purpose; InputError where there is no validation split."""
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

    def split(self, name: str, share: float = 1.0) -> TaskSplit:
        """A split, or a stratified share of it."""
        split = self.task.split(name)
        return split if share == 1 else stratified_fraction(split, share, SUBSET_SEED, len(self.task.classes)).split

    def shares(self) -> tuple[str, ...]:
        """A sentence for each split of which a share is used: how many pictures, and which classes are missing."""
        trained = {(name, self.share) for purpose in (SEARCH, FINAL) for name in self.protocol.splits(purpose)[:1]}
        tested = {(self.protocol.splits(FINAL)[1], self.evaluation_share)}
        classes = len(self.task.classes)
        return tuple(
            stratified_fraction(self.task.split(name), share, SUBSET_SEED, classes).sentence()
            for name, share in sorted(trained | tested)
            if share < 1
        )

    def dataset(self, name: str, share: float, training: bool, seed: int) -> SplitDataset:
        """Pictures of a split. Decoded once for all runs, unless they are cropped at random or too many for memory."""
        if training and self.preprocessing.random:
            return PictureDataset(self.split(name, share), self.preprocessing, training=True, seed=seed)
        place = name, share
        if place not in self._datasets:
            plain = PictureDataset(self.split(name, share), self.preprocessing, training=False)
            height, width = self.preprocessing.size
            small = 3 * height * width * len(plain) <= KEPT_IN_MEMORY
            self._datasets[place] = in_memory(plain) if small else plain
        return self._datasets[place]

    def features(
        self, classifier: Classifier, pictures: SplitDataset, place: tuple[str, float], recipe: TrainingRecipe
    ) -> tuple[FeatureDataset, float]:
        """The features of a frozen backbone on a split, computed once for all runs, and the seconds it took.

        Where frozen prompts were drawn at random, the features depend on method and seed and are kept for each apart.
        """
        prompted = "" if classifier.prompting is None else json.dumps([classifier.method.to_dict(), recipe.seed])
        name = (*place, recipe.precision, prompted)
        if name not in self._features:
            began = time.monotonic()
            options = (recipe.batch, recipe.normalisation, recipe.precision, recipe.workers)
            found = fixed_features(classifier, pictures, *options)
            self._features[name] = found, time.monotonic() - began
        return self._features[name]

    def flops(self, spec: RunSpec, classifier: Classifier) -> tuple[int, int]:
        """Floating-point operations for one picture with this method, in a forward pass and a step; counted once."""
        name = json.dumps([spec.method.to_dict(), spec.classes])
        if name not in self._flops:
            self._flops[name] = flops(classifier, self.preprocessing.size)
        return self._flops[name]

    def _digest(self, name: str, share: float) -> str:
        place = name, share
        if place not in self._digests:
            self._digests[place] = split_digest(self.split(name, share))
        return self._digests[place]
