"""The one exception of this package: a sentence that says what was required, what was got, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Input that cannot be used. The command line prints its sentence and exits with code 2."""


def require(condition: bool, sentence: str) -> None:
    """Raise :class:`InputError` with `sentence` unless `condition` holds."""
    if not condition:
        raise InputError(sentence)


def choose(kind: str, name: str, options: Mapping[str, T]) -> T:
    """``options[name]``, or a sentence that lists the options and the nearest of them."""
    if name in options:
        return options[name]
    near = get_close_matches(str(name), options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise InputError(f"unknown {kind} {name!r}: choose one of {', '.join(options)}{hint}")
