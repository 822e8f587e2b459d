"""Layouts whose pictures are one array of bytes: NumPy files and idx files (MNIST-style, plain or .gz).

NumPy   one .npz with `train_images`, `train_labels`, `test_images`, ... (or x_train, y_train, ...), or with `images`
        and `labels` alone; or a folder of train.npz, val.npz, test.npz, or of train_images.npy, train_labels.npy, ...
        Uncompressed .npy files are mapped, not loaded. Nothing in them is unpickled.
idx     train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, ...; see
        :mod:`moe_prompt.vision.data.idx`.

Labels are 0 .. C - 1 without a hole, or there is a classes.txt with the names of all classes beside the files.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

import numpy as np
from numpy.lib.npyio import NpzFile

from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.idx import read_idx
from moe_prompt.vision.data.layouts.folders import ORDER, split_name
from moe_prompt.vision.data.layouts.lists import named_classes
from moe_prompt.vision.data.pictures import ArrayPictures
from moe_prompt.vision.data.tasks import Task, TaskLayout, TaskSplit, numbered_classes

_IMAGES, _LABELS = {"images", "image", "x", "data"}, {"labels", "label", "y", "targets"}
_IDX = re.compile(r"(?:.*-)?(train|val|test|t10k)[-_.](images|labels)[-_.]idx\d-ubyte(\.gz)?$", re.IGNORECASE)
_Parts = dict[str, dict[str, tuple[np.ndarray, str]]]
"""Split -> "images" or "labels" -> the array and what to call it."""


@final
class NumpyLayout(TaskLayout):
    """.npz and .npy files."""

    name = "numpy"
    looks_like = "an .npz file with train_images, train_labels, test_images, ..., or .npy files of such names"

    def describes(self, path: Path) -> bool:
        return bool(_numpy_files(path))

    def read(self, path: Path) -> Task:
        parts: _Parts = {}
        for file in _numpy_files(path):
            for key, array in _arrays(file):
                split, kind = _role(key, file)
                if kind:
                    name = str(file) if file.suffix == ".npy" else f"{key} in {file}"
                    parts.setdefault(split, {})[kind] = (array, name)
        return _task(path, parts, self.name)


def _numpy_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".npz" else []
    return sorted(file for file in path.iterdir() if file.suffix.lower() in (".npz", ".npy"))


def _arrays(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array) of a NumPy file."""
    try:
        if file.suffix.lower() == ".npy":
            yield file.stem, np.load(file, mmap_mode="r", allow_pickle=False)
            return
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            require(isinstance(archive, NpzFile), f"{file} is called .npz and holds one array without a name.")
            for key in archive.files:
                yield key, archive[key]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{file} cannot be read as arrays of numbers ({error}): bring a whole file without pickled objects."
        ) from error


def _role(key: str, file: Path) -> tuple[str, str | None]:
    """Split and kind ("images" or "labels") of an array, from its key and else from the name of its file.

    `x_test` and `test_images` both are the pictures of the test.
    """
    words = re.split(r"[-_. ]", key.lower())
    kinds = [kind for kind, names in (("images", _IMAGES), ("labels", _LABELS)) if names & set(words)]
    splits = [name for word in words if (name := split_name(word))]
    if not splits and file.suffix.lower() == ".npz":
        splits = [name for word in re.split(r"[-_. ]", file.stem.lower()) if (name := split_name(word))]
    return splits[0] if splits else "train", kinds[0] if len(kinds) == 1 else None


@final
class IdxLayout(TaskLayout):
    """idx files as those of MNIST and Fashion-MNIST."""

    name = "idx"
    looks_like = "train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or .gz"

    def describes(self, path: Path) -> bool:
        return path.is_dir() and any(_IDX.match(file.name) for file in path.iterdir())

    def read(self, path: Path) -> Task:
        parts: _Parts = {}
        for file in sorted(path.iterdir()):
            match = _IDX.match(file.name)
            if match:
                split = split_name(match[1])
                assert split is not None
                parts.setdefault(split, {})[match[2].lower()] = (read_idx(file, str(file)), str(file))
        return _task(path, parts, self.name)


def _task(path: Path, parts: _Parts, layout: str) -> Task:
    splits = {name: _split(path, name, parts[name]) for name in ORDER if name in parts}
    folder = path if path.is_dir() else path.parent
    classes = named_classes(folder) or numbered_classes([split.labels for split in splits.values()])
    return Task(path.resolve().stem if path.is_file() else path.resolve().name, classes, splits, path, layout)


def _split(path: Path, name: str, arrays: Mapping[str, tuple[np.ndarray, str]]) -> TaskSplit:
    require(
        set(arrays) == {"images", "labels"},
        f"split {name} of {path} needs pictures and labels: found its {' and '.join(arrays)} alone.",
    )
    (images, source), (labels, labels_source) = arrays["images"], arrays["labels"]
    pictures = ArrayPictures(images, source)
    flat = labels.reshape(-1) if labels.shape[1:] in ((), (1,)) else labels
    require(
        flat.ndim == 1 and np.issubdtype(flat.dtype, np.integer),
        f"{labels_source} needs one whole number for each picture: got {labels.dtype} of shape {labels.shape}.",
    )
    require(
        len(flat) == len(pictures),
        f"{labels_source} has {len(flat)} labels for the {len(pictures)} pictures of {source}.",
    )
    return TaskSplit(name, pictures, flat.astype(np.int64), labels_source)
