"""Read a checkpoint of any kind as named tensors. The first bytes tell the kind, and nothing is unpickled.

| kind         | how it is read                                                                                   |
|--------------|--------------------------------------------------------------------------------------------------|
| npz          | ``numpy.load(allow_pickle=False)``                                                               |
| safetensors  | as it is, with what its header says of heads and epsilon                                         |
| torch file   | ``torch.load(weights_only=True)``: tensors in dictionaries, and nothing that would run code      |
| ONNX         | the weights of the graph, see `formats/onnx.py`                                                 |

A folder, as transformers and the hubs keep it, stands for the `model.safetensors` or `pytorch_model.bin` in it.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from moe_prompt.attention.tensor_files import TensorFile
from moe_prompt.errors import InputError, require
from moe_prompt.vision.checkpoints.formats.base import StoredTensors
from moe_prompt.vision.checkpoints.formats.onnx import read_onnx

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The files that hold a model in a folder of transformers or timm, the better one first."""
_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict")
_KNOWN = "an npz, a safetensors file, a torch file or an ONNX graph"
_SAVE_AGAIN = "save its state_dict alone with safetensors.torch.save_file, and give that file"


def read_checkpoint(path: str | Path) -> StoredTensors:
    """The tensors of a checkpoint.

    Raises:
        InputError: naming the file: missing, damaged, of an unknown kind, or one that only unpickling could read.
    """
    path = weights_in(Path(path))
    with path.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(b"PK"):
        return _read_npz(path) if _is_npz(path) else _read_torch(path)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    if start.startswith(b"\x80"):
        return _read_torch(path)
    if start.startswith(b"\x08"):  # the field ir_version, which every ONNX file begins with
        return read_onnx(path, str(path))
    raise InputError(f"{path} is none of the checkpoints known here: give {_KNOWN}.")


def weights_in(path: Path) -> Path:
    """The file itself, or the file of weights in a folder."""
    if path.is_dir():
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        require(
            bool(found), f"the folder {path} holds neither {' nor '.join(WEIGHTS)}: give the file of weights itself."
        )
        return found[0]
    require(path.is_file(), f"{path} is not a file: give the path of {_KNOWN}.")
    return path


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from error


def _read_npz(path: Path) -> StoredTensors:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        raise InputError(
            f"{path} holds Python objects beside arrays, which only unpickling, and so running code, could read: save "
            "its arrays alone with numpy.savez."
        ) from error
    except (OSError, zipfile.BadZipFile, EOFError, zipfile.LargeZipFile) as error:
        raise _damaged(path, error) from error
    tensors = {name: torch.from_numpy(array) for name, array in read.items() if array.dtype.kind in "fiu"}
    return StoredTensors(tensors, str(path), "npz")


def _read_safetensors(path: Path) -> StoredTensors:
    tensors = TensorFile(path)
    with safe_open(str(path), framework="pt") as file:
        said = file.metadata() or {}
    return StoredTensors(
        dict(tensors),
        str(path),
        "safetensors",
        config=_config_beside(path),
        heads=_number(said.get("heads"), int, path),
        norm_eps=_number(said.get("norm_eps"), float, path),
        notes=(f"provenance: {said['provenance']} ({said.get('source', 'no source given')})",)
        if "provenance" in said
        else (),
    )


def _number(said: str | None, kind: type, path: Path) -> Any:
    try:
        return None if said is None else kind(said)
    except ValueError as error:
        raise InputError(f"the header of {path} needs a number for heads and norm_eps: got {said!r}.") from error


def _read_torch(path: Path) -> StoredTensors:
    """A dictionary of tensors, or the one under a key such as 'model' or 'state_dict'."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols, which our own sentence covers
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds Python objects beside tensors, which only unpickling, and so running code, could read: "
            f"{_SAVE_AGAIN}."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise _damaged(path, error) from error
    require(isinstance(content, Mapping), f"{path} holds a {type(content).__name__}, not named tensors: {_SAVE_AGAIN}.")
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return StoredTensors(_tensors(content[wrapper]), str(path), "torch file", wrapper, _config_beside(path))
    return StoredTensors(_tensors(content), str(path), "torch file", config=_config_beside(path))


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}


def _config_beside(path: Path) -> Mapping[str, Any]:
    """What transformers keeps in config.json beside the weights; nothing where there is none."""
    beside = path.with_name("config.json")
    if not beside.is_file():
        return {}
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{beside} cannot be read ({error}): give the config.json of {path.name}, or none.") from error
    return config if isinstance(config, dict) else {}


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path} cannot be read ({reason}): it is damaged or cut short, so fetch it again.")
