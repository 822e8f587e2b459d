"""Which pictures each step sees, a function of seed, epoch and step alone; and how these pictures are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.preprocessing import normalise


class PictureBatch(NamedTuple):
    """Pictures, uint8 or floating-point, and labels; `size` counts the whole batch over all processes."""

    images: Tensor
    labels: Tensor
    size: int


class BatchKey(NamedTuple):
    """One process's share of a batch: which pictures, in which epoch, and the size of the whole batch."""

    epoch: int
    indices: tuple[int, ...]
    size: int


def size_of(dataset: Dataset) -> int:
    return len(cast(Sized, dataset))


def epoch_order(count: int, seed: int, epoch: int) -> Int64[np.ndarray, "count"]:
    """The order of `count` pictures in an epoch: a permutation that no other epoch and no worker changes."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(count)


def training_keys(
    count: int, batch: int, seed: int, epoch: int, skip: int = 0, rank: int = 0, world: int = 1
) -> Iterator[BatchKey]:
    """The batches of an epoch, without the first `skip`; process `rank` gets every `world`-th picture of each.

    The union over processes is the same batch whatever their number. The last batch of an epoch holds what is left,
    and a process's share of it may be empty.
    """
    order = epoch_order(count, seed, epoch)
    for start in range(skip * batch, count, batch):
        whole = order[start : start + batch]
        yield BatchKey(epoch, tuple(whole[rank::world].tolist()), len(whole))


def evaluation_keys(count: int, batch: int, rank: int = 0, world: int = 1) -> Iterator[BatchKey]:
    """All pictures in order; process `rank` gets every `world`-th batch."""
    for start in range(rank * batch, count, world * batch):
        indices = tuple(range(start, min(start + batch, count)))
        yield BatchKey(0, indices, len(indices))


class BatchReader(Dataset):
    """Reads whole batches. For an unreadable picture it returns the sentence, as a worker would hide an error."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: BatchKey) -> PictureBatch | str:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(key.epoch)
        try:
            return PictureBatch(*self._together(list(key.indices)), key.size)
        except InputError as error:
            return str(error)

    def _together(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if not indices:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        if hasattr(self.dataset, "batch"):
            return self.dataset.batch(indices)
        images, labels = zip(*(self.dataset[index] for index in indices), strict=True)
        return torch.stack(images), torch.tensor([int(label) for label in labels])


class BatchSource:
    """Reads the batches of a dataset, here or in `workers` processes that stay for all epochs.

    It is a context manager, which ends the processes. Read the keys of one call to their end before the next call: a
    dataset may hold one epoch at a time for all workers.
    """

    def __init__(self, dataset: Any, workers: int = 0, pin: bool = False) -> None:
        self._reader, self._keys = BatchReader(dataset), _Keys()
        self._loader: DataLoader | None = None
        if workers:
            self._loader = DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._keys,
                num_workers=workers,
                pin_memory=pin,
                persistent_workers=True,
                generator=torch.Generator(),  # its own, for the global one is what dropout draws from
            )

    def read(self, keys: Iterable[BatchKey]) -> Iterator[PictureBatch]:
        """The batches of these keys in their order, whatever the number of workers.

        Raises:
            InputError: a picture cannot be read.
        """
        self._keys.keys = keys
        unreadable = ""
        for batch in (self._reader[key] for key in keys) if self._loader is None else self._loader:
            if isinstance(batch, str):
                unreadable = batch
                break
            yield batch
        require(not unreadable, unreadable)  # after the loop, so that no traceback keeps the workers

    def __enter__(self) -> BatchSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the workers go, now: left to the garbage collector they take seconds to end."""
        self._loader = None


class _Keys:
    """What the workers are to read next."""

    keys: Iterable[BatchKey] = ()

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)


def to_input(images: Tensor, normalisation: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a network takes: uint8 pictures are normalised on the device, floating-point input is taken as it is."""
    images = images.to(device, non_blocking=True)
    return images.to(dtype) if images.is_floating_point() else normalise(images, normalisation, dtype)


def told_labels(dataset: Any) -> Int64[np.ndarray, "count"] | None:
    """The dataset's own `labels`, or those of its `split`; None where neither says."""
    for holder in (dataset, getattr(dataset, "split", None)):
        labels = getattr(holder, "labels", None)
        if labels is not None:
            return np.asarray(labels, dtype=np.int64)
    return None


def labels_of(dataset: Any) -> Int64[np.ndarray, "count"]:
    """The labels, read item by item where the dataset does not tell them."""
    labels = told_labels(dataset)
    if labels is None:
        return np.asarray([int(dataset[index][1]) for index in range(size_of(dataset))], dtype=np.int64)
    return labels
