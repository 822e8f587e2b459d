"""A Python file of the user's own: it is run once, and what it defines is handed on.

| it defines                                        | who takes it                          |
|---------------------------------------------------|---------------------------------------|
| `def prompt(config)`, which makes a prompt expert | `identifiability`, `view`, `classify` |
| `method = ...`, a way to tune a ViT               | `view`, `classify`                    |
| `study = RateStudy(...)`                          | `study`                               |

`config` says how large the prompts are: `dim` (numbers in a token), `grid` (rows and columns of patches), `depth`
(blocks), and the other sizes of :class:`~moe_prompt.vision.vit.config.ViTConfig`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from moe_prompt.errors import InputError, require

_MODULE = "moe_prompt_method_"  # stands in the notes of tuned files, which are compared when they are loaded


def defined_in(path: str | Path, wanted: str, **kinds: Any) -> tuple[str, Any]:
    """Run a user's file and return the first name in `kinds` that it defines, with its value.

    Args:
        wanted: what the file has to define, as a user would write it; every error says so.
        kinds: for each name the class that its value must be an instance of.

    Raises:
        InputError: the file is not there, does not run, defines none of the names, or something else under one.
    """
    module = _run(Path(path), wanted)
    name = next((name for name in kinds if getattr(module, name, None) is not None), None)
    if name is None:
        raise InputError(f"{path} needs to define {wanted}: it defines nothing named {' or '.join(kinds)}.")
    found = getattr(module, name)
    if not isinstance(found, kinds[name]):
        raise InputError(f"{path} needs to define {wanted}: its {name} is of type {type(found).__name__}.")
    return name, found


@contextmanager
def told(name: str | Path, what: str) -> Iterator[None]:
    """Whatever goes wrong in the user's code meanwhile, as one sentence: "my.py does not run: TypeError: ..."."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{name} {what}: {type(error).__name__}: {' '.join(str(error).split())}.") from error


def _run(path: Path, wanted: str) -> ModuleType:
    require(path.is_file(), f"no file {path}: name a Python file that defines {wanted}.")
    spec = importlib.util.spec_from_file_location(f"{_MODULE}{path.stem}", path)
    require(spec is not None, f"{path} is no Python file: its name should end in .py.")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while it runs
    try:
        with told(path, "does not run"):
            spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]  # so that its classes travel to worker processes by value
    return module
