"""Sequences of pictures that are decoded when they are asked for: files, an array, or part of another sequence.

Worker processes receive the names of the pictures and decode them; no decoded picture is copied between processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image

from moe_prompt.attention.decoding import Decoded, PictureError, decode
from moe_prompt.errors import require


class Pictures(ABC):
    """A sequence of RGB pictures that are decoded when asked for. It can be sent to worker processes."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def named(self, index: int) -> str:
        """What to call a picture in a sentence: its path, or its file and place in it."""

    @abstractmethod
    def decoded(self, index: int) -> Decoded:
        """A picture as RGB with what its file was; PictureError where it cannot be read."""

    def __getitem__(self, index: int) -> Image.Image:
        return self.decoded(index).picture

    def missing(self) -> list[int]:
        """Indices of the pictures whose files do not exist."""
        return []

    def chosen(self, indices: Sequence[int] | np.ndarray) -> Pictures:
        """The pictures at these indices, in this order."""
        return Chosen(self, np.asarray(indices, dtype=np.int64))


@final
class FilePictures(Pictures):
    """Pictures that are files: `paths` relative to `folder`, or absolute."""

    def __init__(self, folder: str | Path, paths: Sequence[str]) -> None:
        self.folder, self.paths = Path(folder), tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def named(self, index: int) -> str:
        return str(self.folder / self.paths[index])

    def decoded(self, index: int) -> Decoded:
        return decode(read_bytes(self.folder / self.paths[index]), self.named(index))

    def missing(self) -> list[int]:
        """Folders are listed once each, which is cheaper than to ask for every file."""
        listed: dict[Path, set[str]] = {}
        absent = []
        for index, path in enumerate(self.paths):
            whole = self.folder / path
            if whole.parent not in listed:
                listed[whole.parent] = {p.name for p in whole.parent.iterdir()} if whole.parent.is_dir() else set()
            if whole.name not in listed[whole.parent] and not whole.exists():
                absent.append(index)
        return absent


def read_bytes(path: Path) -> bytes:
    """The bytes of a picture file, or a sentence that names it."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PictureError(f"{path} does not exist: bring the file, or take it off its list.") from error
    except OSError as error:
        raise PictureError(f"{path} cannot be read ({error.strerror}): bring a readable file.") from error


@final
class ArrayPictures(Pictures):
    """Pictures in one array of bytes, grey (n, height, width[, 1]) or RGB (n, height, width, 3).

    A memory-mapped array is opened again in a worker process, never copied into it.
    """

    def __init__(self, array: np.ndarray, source: str) -> None:
        grey = array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 1)
        require(
            array.dtype == np.uint8 and (grey or (array.ndim == 4 and array.shape[3] == 3)),
            f"{source} needs pictures as uint8 of shape (n, height, width) or (n, height, width, 3): got {array.dtype} "
            f"of shape {array.shape}.",
        )
        self.array, self.source, self.mode = array, source, "L" if grey else "RGB"

    def __len__(self) -> int:
        return len(self.array)

    def named(self, index: int) -> str:
        return f"picture {index % max(len(self), 1)} of {self.source}"

    def decoded(self, index: int) -> Decoded:
        pixels = np.asarray(self.array[index])
        picture = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and self.mode == "L" else pixels)
        return Decoded(picture.convert("RGB"), None, self.mode)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.array, np.memmap):
            order = "C" if self.array.flags.c_contiguous else "F"
            state["array"] = (str(self.array.filename), self.array.offset, self.array.shape, order)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.array, tuple):
            path, offset, shape, order = self.array
            self.array = np.memmap(path, np.uint8, "r", offset, shape, order)


@final
class Chosen(Pictures):
    """Some pictures of others."""

    def __init__(self, pictures: Pictures, indices: np.ndarray) -> None:
        self.pictures: Pictures = pictures
        self.indices: np.ndarray = indices
        if isinstance(pictures, Chosen):  # one step to the file, however often a subset is taken of a subset
            self.pictures, self.indices = pictures.pictures, pictures.indices[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def named(self, index: int) -> str:
        return self.pictures.named(int(self.indices[index]))

    def decoded(self, index: int) -> Decoded:
        return self.pictures.decoded(int(self.indices[index]))

    def missing(self) -> list[int]:
        absent = set(self.pictures.missing())
        return [place for place, index in enumerate(self.indices.tolist()) if index in absent]
