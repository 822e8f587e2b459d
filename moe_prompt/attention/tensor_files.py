"""Named tensors from a safetensors file, with the checks that a stranger's file needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_prompt.errors import InputError, require


class TensorFile(Mapping[str, Tensor]):
    """A safetensors file as a mapping that reads a tensor when asked for it.

    Raises:
        InputError: no such file, a pickle (never opened: reading one can run code), or not a safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        require(self.path.is_file(), f"{path} is not a file: give the path of a safetensors file.")
        with self.path.open("rb") as stream:
            start = stream.read(9)
        header = start[8:] == b"{"  # after eight bytes of length, which may well look like a pickle's first two
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
    """The tensor `name`, finite, half precision as float32; or a sentence that names `source`."""
    require(name in tensors, f"{source} lacks {name}.")
    tensor = tensors[name]
    require(tensor.is_floating_point(), f"{name} in {source} needs floating-point numbers: got {tensor.dtype}.")
    require(bool(tensor.isfinite().all()), f"{name} in {source} holds numbers that are not finite.")
    return tensor.float() if tensor.itemsize < 4 else tensor


def bias_of(tensors: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    """The bias that goes with the weight `name`, zeros where there is none."""
    bias = name.removesuffix("weight") + "bias"
    if bias not in tensors:
        weight = checked(tensors, name, source)
        return weight.new_zeros(len(weight))
    return checked(tensors, bias, source)


def ends_with(name: str, end: str) -> bool:
    """Whether the last dotted parts of `name` are `end`."""
    return name == end or name.endswith("." + end)
