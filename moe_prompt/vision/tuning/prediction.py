"""Classify new pictures with a tuned file and the backbone that it was trained on.

A tuned file records how its pictures were preprocessed. New pictures are preprocessed in the same way, except that
a random crop is replaced by the centre crop and nothing is flipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moe_prompt.attention.tensor_files import TensorFile
from moe_prompt.errors import require
from moe_prompt.vision.checkpoints.loading import LoadReport, load_backbone
from moe_prompt.vision.data.pictures import FilePictures, Pictures
from moe_prompt.vision.data.preprocessing import Preprocessing, normalise
from moe_prompt.vision.downloads.registries import Teller
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.tuned_file import load_tuned, read_notes
from moe_prompt.vision.runtime.precision import device_of


@dataclass(frozen=True)
class Prediction:
    """The class of a picture, and the probability of each class."""

    picture: str
    label: int
    name: str
    probabilities: tuple[float, ...]

    @property
    def probability(self) -> float:
        """The probability of the predicted class, as the softmax gives it; it is not calibrated."""
        return self.probabilities[self.label]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        told = {"picture": self.picture, "class": self.name, "probability": self.probability}
        return {**told, "probabilities": self.probabilities}


@dataclass(frozen=True)
class Predictor:
    """A tuned classifier with the names of its classes and the preprocessing of its pictures."""

    classifier: Classifier
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def __call__(self, pictures: Pictures, batch: int = 64) -> Iterator[Prediction]:
        """The class of each picture, in their order, a batch at a time.

        Raises:
            PictureError: naming a picture that cannot be read, after the predictions of the batches before it.
        """
        for start in range(0, len(pictures), batch):
            places = range(start, min(start + batch, len(pictures)))
            found = self.probabilities(torch.stack([self._pixels(pictures, place) for place in places]))
            for place, row in zip(places, found.tolist(), strict=True):
                label = max(range(len(row)), key=row.__getitem__)
                yield Prediction(pictures.named(place), label, self.classes[label], tuple(row))

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Float[Tensor, "batch classes"]:
        """softmax of the logits of uint8 pictures (batch, 3, height, width), in evaluation mode."""
        self.classifier.eval()
        numbers = normalise(images.to(device_of(self.classifier)), self.preprocessing.normalisation)
        return self.classifier(numbers).double().softmax(-1)

    def _pixels(self, pictures: Pictures, place: int) -> Tensor:
        return self.preprocessing.cropped(self.preprocessing.resized(pictures[place]), None)


def open_predictor(
    tuned: str | Path,
    backbone: str | Path,
    method: Method | None = None,
    device: str | torch.device = "cpu",
    progress: Teller | None = None,
) -> tuple[Predictor, LoadReport]:
    """The predictor in a tuned file, and what the backbone's file held.

    Args:
        backbone: as for :func:`moe_prompt.vision.checkpoints.loading.load_backbone`; the size of its pictures is the
        file's. method: the method, where it is the user's own.

    Raises:
        InputError: naming the file: none, not a tuned one, without preprocessing, or of another backbone or method.
    """
    TensorFile(tuned)  # a missing or damaged file is told as for any other tensors
    notes = read_notes(tuned)
    preprocessing = _preprocessing(notes, tuned)
    height, width = json.loads(notes["image"])
    vit, report = load_backbone(backbone, (height, width), notes["pooling"], progress=progress)
    classifier, classes = load_tuned(tuned, vit, method)
    return Predictor(classifier.to(device), classes, preprocessing), report


def predict(
    pictures: Sequence[str | Path],
    tuned: str | Path,
    backbone: str | Path,
    method: Method | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Prediction, ...]:
    """The class of each of these picture files, by a tuned file on the backbone that it was tuned on.

    The probabilities are softmax(W f(picture; prompts) + b). `method` is needed where it is the user's own.

    Raises:
        InputError: naming the file that cannot be used.
    """
    predictor, _ = open_predictor(tuned, backbone, method, device)
    return tuple(predictor(FilePictures("", [str(picture) for picture in pictures])))


def _preprocessing(notes: Mapping[str, str], tuned: str | Path) -> Preprocessing:
    require(
        "preprocessing" in notes,
        f"{tuned} does not say how its pictures were preprocessed, so that others cannot be seen as it saw them: "
        "save it again with the note `preprocessing`, as a training does.",
    )
    return Preprocessing.from_dict(json.loads(notes["preprocessing"]))
