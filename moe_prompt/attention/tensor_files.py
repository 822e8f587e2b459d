"""Reads named tensors from a safetensors file and checks them, since the file may come from anyone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_prompt.errors import InputError, require


class TensorFile(Mapping[str, Tensor]):
    """A safetensors file as a mapping from names to tensors; a tensor is read when it is asked for.

    Raises:
        InputError: no such file, a damaged file, or a pickle. A pickle is never read, since reading one can run code.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        require(self.path.is_file(), f"{path} is not a file: give the path of a safetensors file.")
        with self.path.open("rb") as stream:
            start = stream.read(9)
        header = start[8:] == b"{"  # eight bytes of length come first, and they can look like the start of a pickle
        require(
            header or not start.startswith((b"\x80", b"PK\x03\x04")),
            f"{path} is a pickle, which can run code when it is read: save the tensors again with "
            "safetensors.torch.save_file and give that file.",
        )
        try:
            self._file = safe_open(str(self.path), framework="pt")
        except (SafetensorError, OSError) as error:
            sentence = f"{path} is not a readable safetensors file ({error}): give a whole one."
            raise InputError(sentence) from error
        self._names = sorted(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def checked(tensors: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    """The tensor `name` as floating-point numbers, half precision converted to float32.

    Raises:
        InputError: `source` lacks the tensor, or its numbers are integers or not finite.
    """
    require(name in tensors, f"{source} lacks {name}: give a file that holds it.")
    tensor = tensors[name]
    require(tensor.is_floating_point(), f"{name} in {source} needs floating-point numbers: got {tensor.dtype}.")
    require(bool(tensor.isfinite().all()), f"{name} in {source} holds numbers that are not finite.")
    return tensor.float() if tensor.itemsize < 4 else tensor


def ends_with(name: str, end: str) -> bool:
    """True if `end` is `name`, or the last of its parts between dots."""
    return name == end or name.endswith("." + end)
