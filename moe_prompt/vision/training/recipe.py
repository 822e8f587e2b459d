"""A training as data: everything that its result depends on, apart from the model and the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from moe_prompt.errors import choose, require
from moe_prompt.vision.data.preprocessing import NORMALISATIONS
from moe_prompt.vision.runtime.precision import PRECISIONS
from moe_prompt.vision.training.optimizers import DECAY_RULES, OPTIMIZERS


@dataclass(frozen=True)
class WarmupCosine:
    r"""The share of the learning rate at unit t = 0, ..., length - 1; a unit is an epoch or a step.

    factor(t) = (t + 1) / (warmup + 1)                                        while t < warmup,
    factor(t) = (1 + cos(pi (t - warmup) / (length - warmup))) / 2            from then on.

    The peak, 1, comes at t = warmup, where the released recipe of VPT and VAPT has it (arXiv 2203.12119, 2501.18936).
    That recipe warms up by t / warmup, so that its first epoch has rate 0 and learns nothing: `from_zero` does so too.

    >>> [round(WarmupCosine(5, 2).factor(t), 3) for t in range(5)]
    [0.333, 0.667, 1.0, 0.75, 0.25]
    >>> [round(WarmupCosine(5, 2, from_zero=True).factor(t), 3) for t in range(5)]
    [0.0, 0.5, 1.0, 0.75, 0.25]
    """

    length: int
    warmup: int
    from_zero: bool = False

    def __post_init__(self) -> None:
        require(
            0 <= self.warmup <= self.length and self.length > 0,
            f"the warm-up is a part of the training: needs 0 <= warmup <= length, got {self.warmup} and {self.length}.",
        )

    def factor(self, t: int) -> float:
        if t >= self.warmup:
            return (1 + math.cos(math.pi * (t - self.warmup) / (self.length - self.warmup))) / 2
        return t / self.warmup if self.from_zero else (t + 1) / (self.warmup + 1)


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train. The defaults are the released recipe of VPT and VAPT, except that no epoch has learning rate zero.

        learning rate = base_lr * batch / 256 * factor(t)

    The factor is that of :class:`WarmupCosine`. It changes once an epoch, or once a step with `lr_per_step`. `batch`
    is the number of pictures in one step of the optimizer, however many processes compute it and in however many
    pieces (`accumulate`). The last batch of an epoch may be smaller.

    `class_weights` is None, "balanced" or one number per class; "balanced" gives class c, which has n_c of the n
    pictures, the weight n / (classes * n_c). The loss is the weighted mean over the whole batch. `decay` names the
    rule that says which parameters are decayed (:data:`DECAY_RULES`). `workers` processes read pictures; their number
    changes no result.

    Raises:
        InputError: a field that cannot be used.
    """

    base_lr: float
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    epochs: int = 100
    warmup: int = 10
    zero_first_epoch: bool = False
    lr_per_step: bool = False
    batch: int = 64
    accumulate: int = 1
    precision: str = "float32"
    class_weights: str | tuple[float, ...] | None = None
    decay: str = "matrices"
    seed: int = 42
    normalisation: str = "imagenet"
    workers: int = 0

    def __post_init__(self) -> None:
        for kind, options in _CHOICES.items():
            choose(kind, getattr(self, kind), options)
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            require(
                isinstance(value, int) and not isinstance(value, bool) and value >= least,
                f"{name} needs a whole number of at least {least}: got {value!r}.",
            )
        for name in ("base_lr", "weight_decay", "momentum"):
            value = getattr(self, name)
            require(
                isinstance(value, int | float) and math.isfinite(value) and value >= 0,
                f"{name} needs a finite number that is not negative: got {value!r}.",
            )
        require(self.momentum < 1, f"momentum needs to be below 1: got {self.momentum}.")
        require(
            self.warmup <= self.epochs,
            f"the warm-up is part of the training: got {self.warmup} epochs of warm-up in {self.epochs}; "
            "lower warmup or raise epochs.",
        )
        require(
            self.accumulate <= self.batch,
            f"a batch of {self.batch} cannot be computed in {self.accumulate} pieces: lower accumulate.",
        )
        require(
            not (self.zero_first_epoch and self.lr_per_step),
            "zero_first_epoch is the released schedule, which moves once an epoch: leave out lr_per_step.",
        )
        self._check_class_weights()

    @property
    def learning_rate(self) -> float:
        """The peak rate, base_lr * batch / 256."""
        return self.base_lr * self.batch / 256

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """The learning rate in `step` of `steps` of an epoch, both counted from 0."""
        if self.lr_per_step:
            return self.learning_rate * WarmupCosine(self.epochs * steps, self.warmup * steps).factor(
                epoch * steps + step
            )
        return self.learning_rate * WarmupCosine(self.epochs, self.warmup, self.zero_first_epoch).factor(epoch)

    def to_dict(self) -> dict[str, Any]:
        """The fields in the terms of JSON."""
        given = asdict(self)
        return given | {"class_weights": list(w) if isinstance(w := self.class_weights, tuple) else w}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingRecipe:
        """The recipe that :meth:`to_dict` wrote; fields left out have their defaults."""
        known = {field.name: field for field in fields(cls)}
        for name in values:
            choose("field of a training recipe", name, known)
        require("base_lr" in values, "a training recipe needs base_lr, the learning rate for a batch of 256.")
        weights = values.get("class_weights")
        return cls(**{**values, "class_weights": tuple(weights) if isinstance(weights, list) else weights})

    def _check_class_weights(self) -> None:
        weights = self.class_weights
        if isinstance(weights, tuple):
            usable = all(isinstance(w, int | float) and math.isfinite(w) and w >= 0 for w in weights)
            require(
                usable and sum(weights) > 0,
                f"class_weights need finite numbers, none negative and one positive: got {weights}.",
            )
        elif weights is not None:
            choose("class_weights", weights, {"balanced": None})


_CHOICES: Mapping[str, Mapping[str, Any]] = {
    "optimizer": OPTIMIZERS,
    "precision": PRECISIONS,
    "decay": DECAY_RULES,
    "normalisation": NORMALISATIONS,
}
_AT_LEAST = {"epochs": 1, "warmup": 0, "batch": 1, "accumulate": 1, "seed": 0, "workers": 0}
