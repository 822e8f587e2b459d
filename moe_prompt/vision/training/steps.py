"""One step of the optimizer on the weighted mean loss of a whole batch, computed in pieces and by several processes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from moe_prompt.errors import require
from moe_prompt.vision.runtime.distributed import Ranks
from moe_prompt.vision.runtime.precision import autocast, device_of, gradient_scaler, parameter_dtype, widened
from moe_prompt.vision.training.batches import PictureBatch, to_input
from moe_prompt.vision.training.evaluation import check_labels
from moe_prompt.vision.training.optimizers import make_optimizer
from moe_prompt.vision.training.recipe import TrainingRecipe


class StepOutcome(NamedTuple):
    """Loss and share of right answers before the step, and whether any process asked for something (a save)."""

    loss: float
    accuracy: float
    asked: bool


def class_weights(
    wanted: str | tuple[float, ...] | None, labels: Int64[np.ndarray, "count"]
) -> Float[Tensor, "classes"] | None:
    """A weight per class: as given, or n / (classes present * n_c) for "balanced", 0 for a class that has no picture.

    Unlike the released code, which divides the weighted sum by the number of pictures, the loss is a weighted mean.
    """
    if wanted is None:
        return None
    counts = np.bincount(labels)
    if isinstance(wanted, tuple):
        require(
            len(wanted) >= len(counts),
            f"class_weights need one number per class: got {len(wanted)}, and a label {len(counts) - 1}.",
        )
        return torch.tensor(wanted, dtype=torch.float64)
    share = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, share, 0.0))


class Stepper:
    """Takes steps on a model's learned parameters.

    The loss of a batch is sum_i w_i l_i / sum_i w_i over all its pictures, w_i the weight of the class. Each of the
    `accumulate` pieces contributes its terms over the whole batch's denominator, so that pieces and processes change
    no gradient (arithmetic that looks across pictures, such as batch normalisation, and dropout's draws excepted).
    """

    def __init__(
        self, model: nn.Module, recipe: TrainingRecipe, weights: Float[Tensor, "classes"] | None, ranks: Ranks
    ) -> None:
        self.model, self.recipe, self.weights, self.ranks = model, recipe, weights, ranks
        self.device, self.dtype = device_of(model), parameter_dtype(model)
        learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(learned.values())
        self.optimizer = make_optimizer(learned, recipe.optimizer, recipe.weight_decay, recipe.momentum, recipe.decay)
        self.scaler = gradient_scaler(recipe.precision, self.device)

    def __call__(self, batch: PictureBatch, rate: float, ask: bool = False) -> StepOutcome:
        """One step at this learning rate. A loss that is not finite moves nothing.

        `ask` is passed on to all processes: the outcome says whether any of them asked.
        """
        weights, total = self._weights(batch)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if len(batch.labels):  # the share of a process may be empty
            parts = (part.chunk(self.recipe.accumulate) for part in (batch.images, batch.labels, weights))
            for images, labels, weight in zip(*parts, strict=True):
                sums += self._piece(images, labels, weight, total)
        asked = torch.tensor([float(ask)], dtype=torch.float64, device=self.device)
        sums = self.ranks.sum_gradients(self.parameters, torch.cat([sums, asked]))
        loss, right, asks = sums.tolist()
        if math.isfinite(loss):
            self._move(rate)
        self.optimizer.zero_grad(set_to_none=True)
        return StepOutcome(loss, right / batch.size, asks > 0)

    def _piece(self, images: Tensor, labels: Tensor, weight: Tensor, total: float) -> Tensor:
        """Add the gradient of some of the batch's pictures; their part of the loss and how many were right."""
        with autocast(self.recipe.precision, self.device):
            logits = self.model(to_input(images, self.recipe.normalisation, self.dtype, self.device))
        check_labels(labels, logits)
        labels = labels.to(self.device, non_blocking=True)
        losses = nn.functional.cross_entropy(widened(logits), labels, reduction="none")
        loss = (losses * weight.to(losses)).sum() / total
        self.scaler.scale(loss).backward()
        return torch.stack([loss.detach(), (logits.argmax(dim=-1) == labels).sum()]).double()

    def _weights(self, batch: PictureBatch) -> tuple[Float[Tensor, "count"], float]:
        """The weight of each picture here, and the sum of the weights of the whole batch."""
        if self.weights is None:
            return torch.ones(len(batch.labels)), float(batch.size)
        weights = self.weights[batch.labels]
        total = float(self.ranks.sum(weights.sum()))
        return weights, total or 1.0  # all of weight 0: nothing to learn from, and no division by 0

    def _move(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
