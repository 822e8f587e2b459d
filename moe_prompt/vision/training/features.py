"""Features of a frozen network, computed once for trainings in which only the head learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.data import Dataset

from moe_prompt.errors import require
from moe_prompt.vision.runtime.distributed import Ranks
from moe_prompt.vision.runtime.precision import autocast, device_of, parameter_dtype
from moe_prompt.vision.training.batches import BatchSource, evaluation_keys, size_of, to_input
from moe_prompt.vision.training.evaluation import TrainingProgress, silent


class FeatureDataset(Dataset):
    """Features and labels in the place of pictures and labels: (dim,) floating-point tensors."""

    deterministic = True

    def __init__(self, features: Float[Tensor, "count dim"], labels: Int64[np.ndarray, "count"]) -> None:
        require(len(features) == len(labels), f"got {len(features)} features and {len(labels)} labels: one of each.")
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], int(self.labels[index])

    def batch(self, indices: list[int]) -> tuple[Float[Tensor, "batch dim"], Int64[Tensor, " batch"]]:
        """Several at once."""
        return self.features[indices], torch.from_numpy(self.labels[indices])


class HeadAlone(nn.Module):
    """The head of a model, with the names that its parameters have in the model; takes features, gives logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        return self.head(features)


def can_be_fixed(model: Any, dataset: Any) -> bool:
    """Whether features never change: the model is frozen up to its head, and no picture is changed at random."""
    return bool(getattr(model, "features_are_fixed", False) and getattr(dataset, "deterministic", False))


def fixed_features(
    model: Any,
    dataset: Dataset,
    batch: int = 64,
    normalisation: str = "imagenet",
    precision: str = "float32",
    workers: int = 0,
    ranks: Ranks | None = None,
    progress: TrainingProgress = silent,
) -> FeatureDataset:
    """The features of every picture, in the dataset's order, on the CPU.

    `model.features(images)` gives (batch, dim). Trainings that share a model and pictures can share its features, such
    as the trials of a search for the learning rate of a linear probe. Each of several processes computes a part of the
    features and gets all of them.

    Raises:
        InputError: no pictures, features that change, or a picture that cannot be read.
    """
    ranks, device, dtype, count = ranks or Ranks(), device_of(model), parameter_dtype(model), size_of(dataset)
    require(count > 0, "no features without pictures: give a split that has some.")
    require(can_be_fixed(model, dataset), "features can be computed once only of a frozen model and fixed pictures.")
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    was_training = model.training
    model.eval()
    try:
        keys = list(evaluation_keys(count, batch, ranks.rank, ranks.world))
        with BatchSource(dataset, workers, pin=device.type == "cuda") as source:
            for key, part in zip(keys, source.read(keys), strict=True):
                with torch.no_grad(), autocast(precision, device):
                    found = model.features(to_input(part.images, normalisation, dtype, device))
                parts[key.indices[0]] = (found.cpu(), part.labels)
                progress("features", min(ranks.world * (len(parts) * batch), count), count, "")
    finally:
        model.train(was_training)
    whole = {start: part for parts in ranks.gather(parts) for start, part in parts.items()}
    ordered = [whole[start] for start in sorted(whole)]
    return FeatureDataset(torch.cat([f for f, _ in ordered]), torch.cat([labels for _, labels in ordered]).numpy())
