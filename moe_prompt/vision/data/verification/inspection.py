"""Decode the pictures of a split: which cannot be read, of which kind they are, and which are equal.

Two pictures are equal if their RGB pixels are; a hash of size and pixels finds copies in files of any format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import numpy as np

from moe_prompt.errors import InputError
from moe_prompt.vision.data.tasks import TaskSplit

_T = TypeVar("_T")


class _Look(NamedTuple):
    """One readable picture."""

    pixels: bytes
    notes: tuple[str, ...]
    format: str | None
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Inspection:
    """What the pictures `seen` of a split are.

    `hashes`: picture -> hash of its pixels. `unreadable`: one sentence each. `notes`, `formats` and `sizes`
    (width, height): what occurred -> the pictures of which it is true.
    """

    split: TaskSplit
    seen: np.ndarray
    hashes: Mapping[int, bytes]
    unreadable: tuple[str, ...]
    notes: Mapping[str, list[int]]
    formats: Mapping[str, list[int]]
    sizes: Mapping[tuple[int, int], list[int]]

    def by_hash(self) -> Mapping[bytes, list[int]]:
        """The pictures that have the same pixels."""
        return _grouped((pixels, index) for index, pixels in self.hashes.items())

    def example(self, indices: list[int]) -> str:
        """The name of the first of these pictures."""
        return self.split.pictures.named(indices[0])


def inspect(split: TaskSplit, most: int, seed: int, threads: int) -> Inspection:
    """Decode `most` pictures of a split, chosen by `seed` where it has more; missing files are left to others."""
    there = np.setdiff1d(np.arange(len(split)), split.pictures.missing())
    if len(there) > most:
        there = np.sort(np.random.default_rng(seed).choice(there, most, replace=False))
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda index: _look(split, index), there.tolist()))
    looked = [(index, look) for index, look in zip(there.tolist(), found, strict=True) if isinstance(look, _Look)]
    return Inspection(
        split,
        there,
        {index: look.pixels for index, look in looked},
        tuple(look for look in found if isinstance(look, str)),
        _grouped((note, index) for index, look in looked for note in look.notes),
        _grouped((look.format, index) for index, look in looked if look.format is not None),
        _grouped((look.size, index) for index, look in looked),
    )


def _look(split: TaskSplit, index: int) -> _Look | str:
    """What a picture is, or the sentence that says why it cannot be read."""
    try:
        decoded = split.pictures.decoded(index)
    except InputError as error:
        return str(error)
    size = decoded.picture.size
    pixels = blake2b(decoded.picture.tobytes(), digest_size=16, salt=b"%d" % size[0])
    return _Look(pixels.digest(), decoded.notes, decoded.format, size)


def _grouped(pairs: Iterable[tuple[_T, int]]) -> Mapping[_T, list[int]]:
    groups: defaultdict[_T, list[int]] = defaultdict(list)
    for key, index in pairs:
        groups[key].append(index)
    return dict(groups)
