"""What a real set of pictures is before it is written: where it comes from, its licence, the tasks it makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moe_prompt.attention.decoding import TRANSPARENT, decode
from moe_prompt.vision.data.sets.splits import Indices, stratified_split
from moe_prompt.vision.downloads.registries import RegistryFile

Picture = NDArray[np.uint8]  # (height, width) grey or (height, width, 3) colour
TRAINING, VALIDATION, TEST = "train800", "val200", "test"
SPLIT_SIZES = {TRAINING: 800, VALIDATION: 200}


@dataclass(frozen=True)
class ImageTask:
    """A classification task: `splits` maps a name to its pictures, read when asked for, and their labels."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Iterable[Picture], Indices]]
    done: tuple[str, ...]
    """What was done to the source's pictures and to its split, in sentences."""


class ImageSetSource(ABC):
    """A real set of pictures inside files of package registries."""

    name: ClassVar[str]
    title: ClassVar[str]
    task_names: ClassVar[tuple[str, ...]]
    files: tuple[RegistryFile, ...]
    licence: ClassVar[str]
    """Of the pictures, where it differs from the package's; what passing them on takes."""

    @abstractmethod
    def tasks(self, archives: Sequence[Path], seed: int, test_size: int | None) -> Iterator[ImageTask]:
        """The tasks, from the files of `files` in their order; `test_size` caps the test split."""


def decoded(content: bytes, name: str) -> Picture:
    """A picture as 8-bit grey or RGB; what is transparent becomes white."""
    found = decode(content, name)
    grey = found.mode == "L" and TRANSPARENT not in found.notes
    return np.asarray(found.picture.convert("L") if grey else found.picture)


def capped(indices: Indices, labels: Indices, test_size: int | None, seed: int) -> Indices:
    """`indices`, or `test_size` of them with every class in its share."""
    if test_size is None or test_size >= len(indices):
        return indices
    return indices[stratified_split(labels[indices], {TEST: test_size}, seed)[TEST]]


@dataclass(frozen=True)
class Encoded:
    """Pictures as the files they came in, decoded one at a time."""

    names: tuple[str, ...]
    contents: tuple[bytes, ...] = field(repr=False)

    def __iter__(self) -> Iterator[Picture]:
        return map(decoded, self.contents, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def at(self, indices: Indices) -> Encoded:
        """Those of `indices`."""
        chosen = indices.tolist()
        return Encoded(tuple(self.names[i] for i in chosen), tuple(self.contents[i] for i in chosen))
