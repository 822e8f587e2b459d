"""A split as a PyTorch dataset of bytes and labels, decoded by the workers, or once and then kept in memory.

A picture stays uint8 (3, height, width) until it is in a batch, where
:func:`moe_prompt.vision.data.preprocessing.normalise` turns it into floating-point numbers. A test set of 73,728
pictures of 224 x 224 is 11 GB as bytes and would be 44 GB as float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import final

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.vision.data.preprocessing import Draw, Preprocessing, draw_for
from moe_prompt.vision.data.tasks import TaskSplit

MOST_BYTES = 4 * 2**30
"""How much :func:`in_memory` keeps unless told otherwise: 4 GiB."""


class SplitDataset(torch.utils.data.Dataset[tuple[Tensor, int]], ABC):
    """(uint8 (3, height, width), label) for every picture of a split.

    In training, crops and flips depend on (seed, epoch, index) alone. Each process keeps its own epoch: a worker starts
    with the epoch that was set before, and must be told each later one with `set_epoch`.
    """

    def __init__(self, split: TaskSplit, preprocessing: Preprocessing, training: bool, seed: int = 0) -> None:
        self.split, self.preprocessing, self.training, self.seed = split, preprocessing, training, seed
        self.labels: Int64[Tensor, " pictures"] = torch.tensor(split.labels)
        self._epoch = 0

    @abstractmethod
    def _pixels(self, index: int) -> UInt8[Tensor, "3 resized_height resized_width"]:
        """A picture as it is before the crop."""

    @property
    def deterministic(self) -> bool:
        """Whether a picture is the same in every epoch."""
        return not (self.training and self.preprocessing.random)

    def set_epoch(self, epoch: int) -> None:
        """Choose the crops and flips of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int]:
        return self.preprocessing.cropped(self._pixels(index), self._draw(index)), int(self.split.labels[index])

    def batch(
        self, indices: Sequence[int] | Int64[Tensor, " batch"]
    ) -> tuple[UInt8[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]:
        """Several pictures at once, decoded here."""
        places = torch.as_tensor(indices, dtype=torch.int64)
        return torch.stack([self[index][0] for index in places.tolist()]), self.labels[places]

    def _draw(self, index: int) -> Draw | None:
        return None if self.deterministic else draw_for(self.seed, self._epoch, index % len(self))


@final
class PictureDataset(SplitDataset):
    """Decodes a picture every time it is asked for."""

    def _pixels(self, index: int) -> UInt8[Tensor, "3 resized_height resized_width"]:
        return self.preprocessing.resized(self.split.pictures[index])


@final
class InMemoryDataset(SplitDataset):
    """Pictures decoded once. Where crops or flips are random, pictures are kept as they are before the crop."""

    def __init__(self, of: SplitDataset, pixels: Tensor | list[Tensor]) -> None:
        super().__init__(of.split, of.preprocessing, of.training, of.seed)
        self._kept = pixels
        self.set_epoch(of._epoch)

    @property
    def images(self) -> UInt8[Tensor, "pictures 3 height width"]:
        """All pictures as one tensor, where nothing about them is random."""
        require(
            isinstance(self._kept, Tensor),
            f"the pictures of {self.split.source} are cropped or flipped at random: ask for them one epoch at a time.",
        )
        assert isinstance(self._kept, Tensor)
        return self._kept

    def batch(
        self, indices: Sequence[int] | Int64[Tensor, " batch"]
    ) -> tuple[UInt8[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]:
        if not isinstance(self._kept, Tensor):
            return super().batch(indices)
        places = torch.as_tensor(indices, dtype=torch.int64)
        return self._kept[places], self.labels[places]

    def _pixels(self, index: int) -> UInt8[Tensor, "3 resized_height resized_width"]:
        return self._kept[index]


def in_memory(dataset: SplitDataset, most_bytes: int = MOST_BYTES, threads: int = 1) -> InMemoryDataset:
    """The same pictures, crops and flips, decoded once and kept as bytes.

    n pictures take 3 n height width bytes; where crops are random, height and width are those before the crop.

    Raises:
        InputError: they would take more than `most_bytes`; or a picture cannot be read.
    """
    if isinstance(dataset, InMemoryDataset):
        return dataset
    with ThreadPoolExecutor(threads) as pool:
        if not dataset.deterministic:
            return InMemoryDataset(dataset, _kept_apart(pool.map(dataset._pixels, range(len(dataset))), most_bytes))
        shape = (len(dataset), 3, *dataset.preprocessing.size)
        _fits(math.prod(shape), most_bytes)
        kept = torch.empty(shape, dtype=torch.uint8)
        for index, (pixels, _) in enumerate(pool.map(dataset.__getitem__, range(len(dataset)))):
            kept[index] = pixels
        return InMemoryDataset(dataset, kept)


def _kept_apart(decoded: Iterable[Tensor], most_bytes: int) -> list[Tensor]:
    """Pictures of different sizes."""
    kept, taken = [], 0
    for pixels in decoded:
        kept.append(pixels)
        taken += pixels.nelement()
        _fits(taken, most_bytes)
    return kept


def _fits(needed: int, most_bytes: int) -> None:
    require(
        needed <= most_bytes,
        f"these pictures take {needed / 2**30:.3g} GiB or more in memory and {most_bytes / 2**30:.3g} GiB are allowed: "
        "leave them on disk and let workers decode them, or allow more.",
    )
