"""The state of a training on disk: never half written, refused by another training, and read without running code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_prompt.errors import InputError, require
from moe_prompt.vision.training.batches import size_of, told_labels

FORMAT = 1
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def learned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: learned parameters, those that layers share once, and buffers."""
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return learned | dict(model.named_buffers())


def put_back(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the learned tensors of the model with saved ones."""
    with torch.no_grad():
        for name, tensor in learned_tensors(model).items():
            tensor.copy_(tensors[name])


def model_key(model: nn.Module) -> str:
    """A hash of the modules, of the frozen tensors' bytes and of the learned ones' names, shapes and types."""
    digest = hashlib.sha256(_ADDRESS.sub("", repr(model)).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.requires_grad:
            digest.update(_bytes(parameter))
    return digest.hexdigest()[:16]


def data_key(dataset: Any) -> str:
    """A hash of the size, of the labels and of what the dataset says of its seed and preprocessing.

    Where a picture is the same each time it is read, the first, middle and last picture are hashed as well.
    """
    digest = hashlib.sha256(f"{size_of(dataset)}".encode())
    labels = told_labels(dataset)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels).tobytes())
    for name in ("seed", "preprocessing"):
        digest.update(_ADDRESS.sub("", repr(getattr(dataset, name, None))).encode())
    if getattr(dataset, "deterministic", False):
        for index in sorted({0, size_of(dataset) // 2, size_of(dataset) - 1}):
            digest.update(_bytes(dataset[index][0]))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def made(folder: Path) -> Path:
    """The folder, made where it is not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error}): name a folder you may write to.") from error
    return folder


class StateFile:
    """One file that holds the last saved state, replaced in one move.

    `identity` describes the training that the state belongs to. A state of another training is refused.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity = path, dict(identity)

    def save(self, state: Mapping[str, Any]) -> None:
        beside = self.path.with_name(f".{self.path.name}.partial")
        try:
            with beside.open("wb") as stream:
                torch.save({"format": FORMAT, "identity": self.identity, **state}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(beside, self.path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise InputError(
                f"the state of the training cannot be saved as {self.path} ({error}): make room there, or name "
                "another folder; the last saved state is kept, and the same command continues from it."
            ) from error

    def read(self) -> bytes | None:
        """The bytes of the file, or None where there is none."""
        return self.path.read_bytes() if self.path.exists() else None

    def decode(self, saved: bytes) -> dict[str, Any]:
        """The state in these bytes.

        Raises:
            InputError: not a state, or one of another training.
        """
        require(
            saved.startswith(b"PK\x03\x04"),
            f"{self.path} is not the state of a training: delete it to begin again, or name another folder.",
        )
        try:
            state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
            raise InputError(
                f"{self.path} is not a whole state of a training "
                f"({type(error).__name__}): delete it to begin again, or name another folder."
            ) from error
        known = isinstance(state, dict) and state.get("format") == FORMAT and isinstance(state.get("identity"), dict)
        require(known, f"{self.path} is not a state that this version can read: name another folder.")
        for name, wanted in self.identity.items():
            self._compare(name, wanted, state["identity"].get(name))
        return state

    def _compare(self, name: str, wanted: Any, found: Any) -> None:
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            differing = [key for key in wanted if wanted[key] != found.get(key)]
            told = ", ".join(f"{key} was {found.get(key)!r} and is {wanted[key]!r} now" for key in differing)
        else:
            told = "" if wanted == found else f"{found!r} was saved and this one is {wanted!r}"
        require(
            not told,
            f"{self.path} is of a training with another {name} ({told}): continue with its settings, name "
            "another folder, or delete the file to begin again.",
        )
