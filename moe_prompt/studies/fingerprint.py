"""The content of a study as JSON, and a hash of it: studies of equal content have equal rows.

The hash is the *key* under which a study's rows are stored.
"""

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
    """The content of `thing` as JSON.

    | thing                        | its content                                                                     |
    |------------------------------|---------------------------------------------------------------------------------|
    | dataclass                    | class name, and the content of every field with repr=True                       |
    | array                        | shape, and a hash of its numbers without the last third of their bits           |
    | module                       | class name, options, buffers, children, and shapes (not values) of parameters   |
    | function, class, activation  | name                                                                            |
    | number, text, list, mapping  | itself, with the content of its items                                           |

    The last bits of an array are left out because a matrix product has other ones on another processor. The values of
    parameters are left out because a regression model uses their shapes only.

    Raises:
        InputError: a thing whose content may differ from process to process, such as a lambda.
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
    """Floats rounded to two thirds of their bits; other arrays as they are."""
    if array.dtype.kind != "f":
        return array
    mantissa, exponent = np.frexp(array)
    bits = 2 * np.finfo(array.dtype).nmant // 3
    return np.ldexp(np.rint(mantissa * 2**bits), exponent - bits) + 0.0  # adding 0.0 turns -0.0 into 0.0


def fingerprint(thing: Any) -> str:
    """The key of `thing`: the first sixteen hexadecimal digits of its content's SHA-256 hash."""
    return hashlib.sha256(json.dumps(content(thing), sort_keys=True).encode()).hexdigest()[:16]


def _object(thing: Any) -> Any:
    """A function or class by its name, an object with its own `repr` by that, any other by class and attributes."""
    name = getattr(thing, "__qualname__", None)
    if name is None and type(thing).__repr__ is object.__repr__ and hasattr(thing, "__dict__"):
        return {"class": _name(thing)} | {key: content(value) for key, value in vars(thing).items()}
    text = repr(thing) if name is None else name
    require(
        " at 0x" not in text and "<" not in (name or ""),
        f"a study is known by its content, which {thing!r} does not show: use a dataclass or a named function instead.",
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
