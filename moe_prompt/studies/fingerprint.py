"""What a study is made of, in the terms of JSON, and a hash of it: equal content, equal rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moe_prompt.attention.activations import Activation
from moe_prompt.errors import require


def content(thing: Any) -> Any:
    """`thing` as JSON: dataclasses by their fields, arrays by shape and digest, modules by class, options and buffers.

    Of the bits of an array's floats the last third is left out: a product of matrices has other ones on another
    processor. The values of a module's parameters are left out: a regression model uses their shapes only. InputError
    for what has no content that is the same in every process, such as a lambda.
    """
    if isinstance(thing, Activation):
        return thing.name
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().numpy()
    if isinstance(thing, np.ndarray):
        data = np.ascontiguousarray(_rounded(thing))
        return {"shape": list(data.shape), "sha256": hashlib.sha256(data.tobytes()).hexdigest()}
    if isinstance(thing, nn.Module):
        return _module(thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return {"class": _name(thing)} | {f.name: content(getattr(thing, f.name)) for f in fields(thing) if f.repr}
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, Mapping):
        return {str(key): content(value) for key, value in thing.items()}
    if isinstance(thing, tuple | list):
        return [content(item) for item in thing]
    return thing if isinstance(thing, str | int | float | bool | None) else _object(thing)


def _rounded(array: np.ndarray) -> np.ndarray:
    """Two thirds of the bits of every float; anything else as it is."""
    if array.dtype.kind != "f":
        return array
    mantissa, exponent = np.frexp(array)
    bits = 2 * np.finfo(array.dtype).nmant // 3
    return np.ldexp(np.rint(mantissa * 2**bits), exponent - bits) + 0.0  # no -0


def fingerprint(thing: Any) -> str:
    """Sixteen hexadecimal digits of the content's hash."""
    return hashlib.sha256(json.dumps(content(thing), sort_keys=True).encode()).hexdigest()[:16]


def _object(thing: Any) -> Any:
    """A function or class by its name, an object by class and attributes, what prints itself by what it prints."""
    name = getattr(thing, "__qualname__", None)
    if name is None and type(thing).__repr__ is object.__repr__ and hasattr(thing, "__dict__"):
        return {"class": _name(thing)} | {key: content(value) for key, value in vars(thing).items()}
    text = repr(thing) if name is None else name
    require(
        " at 0x" not in text and "<" not in (name or ""),
        f"a study is known by its content, and that of {thing!r} cannot be told: use a dataclass or a named function.",
    )
    return text


def _module(module: nn.Module) -> dict[str, Any]:
    options = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    return {
        "class": _name(module),
        "options": content(options),
        "parameters": {name: list(p.shape) for name, p in module.named_parameters(recurse=False)},
        "buffers": content(dict(module.named_buffers(recurse=False))),
        "children": {name: content(child) for name, child in module.named_children()},
    }


def _name(thing: Any) -> str:
    return type(thing).__qualname__
