"""Prompt experts in attention heads, seen as mixtures of experts: what can be learned, how fast, from how much data.

    import moe_prompt as mp

A public name is loaded when it is first used, so that importing the package takes no time and no torch. The list of
names, with the module that defines each, is `__init__.pyi`.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name from the module that defines it, or the version of the installed package."""
    if name != "__version__":
        return _load(name)
    from importlib.metadata import version

    return version("moe-prompt")
