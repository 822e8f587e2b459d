"""A tuned method as a file: the learned tensors (some hundred kB) and the fingerprint of their backbone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from moe_prompt.attention.tensor_files import TensorFile
from moe_prompt.errors import InputError, require
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.methods.by_name import METHODS, method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.vit.transformer import VisionTransformer

_FORMAT = "moe_prompt tuned 1"


def save_tuned(
    path: str | Path, classifier: Classifier, classes: Sequence[str], extra: Mapping[str, str] | None = None
) -> Path:
    """Write what `classifier` learned as safetensors, in one step; `extra` are further notes in the file.

    The file's metadata name the method with its options, the classes, and the backbone's fingerprint, picture size and
    pooling. A backbone that was itself tuned (full, bias, ...) is identified by what it was before.

    Raises:
        InputError: a number of classes that is not the head's.
    """
    path, notes = Path(path), {**(extra or {}), **_notes_of(classifier, classes)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in classifier.learned().items()}, partial, metadata=notes)
        partial.chmod(0o644)  # safetensors writes for its owner alone
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {path} ({error}): name a file that you may write.") from None
    return path


def _notes_of(classifier: Classifier, classes: Sequence[str]) -> dict[str, str]:
    require(
        len(classes) == classifier.num_classes,
        f"the head has {classifier.num_classes} classes: got {len(classes)} class names.",
    )
    config = classifier.backbone.config
    return {
        "format": _FORMAT,
        "method": json.dumps(classifier.method.to_dict()),
        "classes": json.dumps(list(classes)),
        "backbone": classifier.backbone_fingerprint(),
        "image": json.dumps(config.image),
        "pooling": config.pooling,
    }


def load_tuned(
    path: str | Path, backbone: VisionTransformer, method: Method | None = None
) -> tuple[Classifier, tuple[str, ...]]:
    """The classifier of a file on its backbone, and the names of its classes.

    `method` is needed for a method of the user's own, which the file describes but cannot build.

    Raises:
        InputError: not such a file, another backbone than the one it was trained on, or another method.
    """
    tensors = TensorFile(path)
    notes = read_notes(path)
    config = backbone.config
    image = tuple(json.loads(notes["image"]))
    require(
        config.image == image and config.pooling == notes["pooling"],
        f"{path} was tuned on pictures of {image[0]} x {image[1]} with pooling {notes['pooling']!r}: the backbone has "
        f"{config.image[0]} x {config.image[1]} and {config.pooling!r}; load it so.",
    )
    require(
        backbone.fingerprint() == notes["backbone"],
        f"{path} was tuned on another backbone (SHA-256 {notes['backbone'][:12]}): got {backbone.fingerprint()[:12]}.",
    )
    classes = tuple(json.loads(notes["classes"]))
    classifier = Classifier(backbone, _method(path, json.loads(notes["method"]), method), len(classes))
    classifier.put(dict(tensors), str(path))
    return classifier, classes


def _method(path: str | Path, described: dict[str, Any], given: Method | None) -> Method:
    """The method that a file describes."""
    if given is not None:
        require(
            json.loads(json.dumps(given.to_dict())) == described,
            f"{path} was tuned with the method {described}: got {given.to_dict()}.",
        )
        return given
    name = described.pop("name")
    require(name in METHODS, f"{path} was tuned with {name!r}, a method of its author's own: give that method too.")
    return method_named(name, **described)


def read_notes(path: str | Path) -> dict[str, str]:
    """Metadata of a tuned file.

    Raises:
        InputError: not a file of :func:`save_tuned`.
    """
    with safe_open(str(path), framework="pt") as file:
        notes = file.metadata() or {}
    if notes.get("format") != _FORMAT:
        raise InputError(f"{path} is not a tuned prompt set of this toolkit: it needs the note format = {_FORMAT!r}.")
    return notes
