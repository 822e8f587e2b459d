"""Words for people: rows as aligned text or as Markdown, and a time as one reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as text in columns of equal width.

    >>> print(aligned([("a", "bcd"), ("ef", "g")]))
    a   bcd
    ef  g
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def explained(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under the names of their columns, and under them a line on the meaning of each column.

    >>> print(explained({"n": "sample size", "D": "loss"}, [("10", "0.5")]))
    n   D
    10  0.5
    <BLANKLINE>
    n  sample size
    D  loss
    """
    return f"{aligned([tuple(columns), *rows])}\n\n{aligned(list(columns.items()))}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    r"""Rows of words, the first of them the header, as a table of GitHub's Markdown.

    >>> print(markdown([("a", "b|c"), ("d", "e")]))
    | a | b\|c |
    | --- | --- |
    | d | e |
    """
    head, *body = ([word.replace("|", "\\|") for word in row] for row in rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours, whichever is easiest to read.

    >>> [duration(seconds) for seconds in (48.2, 600.0, 9000.0)]
    ['48 s', '10 min', '2.5 h']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
