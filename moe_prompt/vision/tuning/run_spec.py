"""One training as data: method, recipe, splits and purpose. Equal content has an equal key and an equal result.

Hyper-parameters are chosen on a validation split and reported on the test split. The objects here enforce it: a
:class:`Protocol` names a pair of splits for each purpose, and a :class:`RunSpec` refuses other evaluation splits.

| suite    | searched on        | then trained and tested on | because                                            |
|----------|--------------------|----------------------------|----------------------------------------------------|
| VTAB-1K  | train800 / val200  | train800val200 / test      | arXiv 1910.04867, and every paper since            |
| others   | train / val        | train / test               | arXiv 2203.12119 trains FGVC on `train` alone, so  |
|          |                    |                            | numbers beside the published ones must do so too   |
| no val   | train80 / val      | train / test               | a fifth of `train` chooses:                        |
|          |                    |                            | :func:`moe_prompt.vision.data.subsets.with_validation`  |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from moe_prompt.errors import require
from moe_prompt.vision.data.preprocessing import Preprocessing
from moe_prompt.vision.data.tasks import REST_SPLIT, TEST_SPLIT, TaskSplit
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.tuning.run_table import FINAL, PURPOSES, SEARCH

VERSION = 1
"""To be increased whenever the same specification gives another result than before."""
VALIDATION_SPLITS = ("val200", "val")
_NO_EFFECT = ("workers",)  # fields of a recipe that change no result
_SAMPLED = 16  # pictures of a split whose pixels go into its digest


def _check_evaluation(purpose: str, evaluation: str) -> None:
    if purpose == SEARCH:
        require(
            evaluation in VALIDATION_SPLITS,
            f"a search is evaluated on a validation split ({' or '.join(VALIDATION_SPLITS)}), never on another: got "
            f"{evaluation!r}.",
        )
    else:
        require(evaluation == TEST_SPLIT, f"a final run is evaluated on {TEST_SPLIT!r}: got {evaluation!r}.")


@dataclass(frozen=True)
class Protocol:
    """The pair (trained on, evaluated on) of each purpose.

    Raises:
        InputError: a search that would be evaluated on test, or a final run that would not.
    """

    name: str
    search: tuple[str, str]
    final: tuple[str, str]

    def __post_init__(self) -> None:
        _check_evaluation(SEARCH, self.search[1])
        _check_evaluation(FINAL, self.final[1])
        require(TEST_SPLIT not in (self.search[0], self.final[0]), "the test split is never trained on.")

    def splits(self, purpose: str) -> tuple[str, str]:
        """Names of the splits that a run of this purpose is trained and evaluated on."""
        return self.search if purpose == SEARCH else self.final


PROTOCOLS = (
    Protocol("vtab", ("train800", "val200"), ("train800val200", "test")),
    Protocol("train/test", (REST_SPLIT, "val"), ("train", "test")),
    Protocol("train/val/test", ("train", "val"), ("train", "test")),
)


def protocol_of(splits: Collection[str], source: str) -> Protocol:
    """The protocol of a task with splits of these names.

    Raises:
        InputError: naming `source`: hyper-parameters could only be chosen on test.
    """
    fitting = [p for p in PROTOCOLS if {*p.search, *p.final} <= set(splits)]
    require(
        bool(fitting),
        f"{source} needs train800, val200, train800val200 and test, or train, val and test, or train and test: got "
        f"{', '.join(splits) or 'none'}; hyper-parameters are chosen on a validation split, so make one out of "
        "training pictures.",
    )
    return fitting[0]


def split_digest(split: TaskSplit) -> str:
    """Sixteen digits of a hash of a split: every label, and the pixels of sixteen pictures spread over it."""
    digest = hashlib.sha256(np.ascontiguousarray(split.labels).tobytes())
    for index in sorted(set(np.linspace(0, len(split) - 1, _SAMPLED).round().astype(int).tolist())):
        pixels = np.asarray(split.pictures[index])
        digest.update(str(pixels.shape).encode() + pixels.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class RunSpec:
    """One training.

    `backbone`, `label` and `task` are names for people and not part of the key. What the key holds of them are hashes:
    `backbone_sha` of the weights, `training_sha` and `evaluation_sha` of the splits. `share` and `evaluation_share` say
    how much of the two splits is used.

    Raises:
        InputError: a purpose that is none, or a search that is not evaluated on a validation split.
    """

    purpose: str
    task: str
    label: str
    backbone: str
    backbone_sha: str
    method: Method
    classes: int
    training: str
    training_sha: str
    evaluation: str
    evaluation_sha: str
    preprocessing: Preprocessing
    recipe: TrainingRecipe
    share: float = 1.0
    evaluation_share: float = 1.0

    def __post_init__(self) -> None:
        require(self.purpose in PURPOSES, f"a run is for {' or '.join(PURPOSES)}: got {self.purpose!r}.")
        _check_evaluation(self.purpose, self.evaluation)
        require(
            self.training not in (TEST_SPLIT, self.evaluation),
            f"a run is trained on other pictures than it is evaluated on: got {self.training!r} for training and "
            f"{self.evaluation!r} for evaluation.",
        )
        require(
            self.preprocessing.normalisation == self.recipe.normalisation,
            f"preprocessing and training recipe name two normalisations ({self.preprocessing.normalisation!r}, "
            f"{self.recipe.normalisation!r}): give both the same.",
        )

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """All that the result depends on, in the terms of JSON."""
        recipe = {name: value for name, value in self.recipe.to_dict().items() if name not in _NO_EFFECT}
        names = ("purpose", "backbone_sha", "classes", "training", "training_sha", "evaluation", "evaluation_sha")
        return {
            "version": VERSION,
            **{name: getattr(self, name) for name in names},
            "method": self.method.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "recipe": recipe,
            "share": self.share,
            "evaluation_share": self.evaluation_share,
        }

    @cached_property
    def key(self) -> str:
        """Twenty hexadecimal digits of the content's hash."""
        return _hash(self.content)

    @cached_property
    def search_key(self) -> str:
        """The key without learning rate and weight decay: all trials of one search have the same."""
        recipe = {k: v for k, v in self.content["recipe"].items() if k not in ("base_lr", "weight_decay")}
        return _hash({**self.content, "recipe": recipe})

    def to_dict(self) -> dict[str, Any]:
        """Content and names as plain data, for a row."""
        return {**self.content, "names": {"task": self.task, "label": self.label, "backbone": self.backbone}}


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
