"""Tables made from rows inside pages that are written by hand.

A page holds the table of a study between two markers, and everything between them is made again from the rows:

    <!-- begin over-specified -->
    ...
    <!-- end over-specified -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from moe_prompt.basics.tables import markdown
from moe_prompt.errors import InputError
from moe_prompt.studies.analysis.captions import counts
from moe_prompt.studies.analysis.cells import Cell, CellSummary, all_summaries

MARKED = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", flags=re.DOTALL)


def fill_blocks(page: str, block: Callable[[str], str]) -> str:
    """The page with `block(name)` between the markers of every name.

    >>> print(fill_blocks("a\\n<!-- begin x -->\\nold\\n<!-- end x -->\\nb", str.upper))
    a
    <!-- begin x -->
    X
    <!-- end x -->
    b
    """
    return MARKED.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", page)


def study_block(cells: Sequence[Cell]) -> str:
    """The table of a study's findings and the line of its counts.

    A study in which a model is fitted to the data of another has a line for each cell. Any other study has a line for
    each quantity, over all cells. Raises InputError where there are no rows.
    """
    if not cells:
        raise InputError("a table needs rows: got a study without any; run `moe-prompt study export NAME`.")
    foreign = any(cell.relation.misspecified for cell in cells)
    return f"{markdown(_cell_lines(cells) if foreign else _quantity_lines(cells))}\n\n{counts(cells)}"


def slope_words(summary: CellSummary) -> str:
    """The measured slope and its standard error."""
    if summary.slope is None:
        return "no slope"
    return f"{summary.slope:.3f}" + ("" if summary.stderr is None else f" ± {summary.stderr:.3f}")


def _cell_lines(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    last = f"at n = {cells[0].summaries[0].last.n:,}"
    head: tuple[str, ...] = ("data from", "fitted model", "slope of the parameter loss", "slope of the excess risk")
    head = (*head, f"error over the Cramér-Rao bound {last}", f"excess risk over its floor {last}", "floor")
    lines: list[tuple[str, ...]] = [head]
    for cell in cells:
        own = {summary.name: slope_words(summary) for summary in cell.summaries if cell.relation.exact}
        end = cell.summaries[0].last
        bound = "-" if end.efficiency is None else f"{end.efficiency:.2f} ± {end.efficiency_stderr or 0:.2f}"
        over = cell.summaries[0].over_floor
        floor = ("-", "-") if over is None or cell.floor is None else (f"{over:.3f}", f"{cell.floor:.3g}")
        slopes = (own.get("parameter", "-"), own.get("excess_risk", "-"))
        lines.append((cell.truth, cell.estimator, *slopes, bound, *floor))
    return lines


def _quantity_lines(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    last = f"at n = {cells[0].summaries[0].last.n:,}"
    head = ("quantity", "cells", "predicted slope", "measured slopes", "as predicted", f"over the law {last}")
    groups: dict[tuple[str, bool], list[CellSummary]] = {}
    for summary in all_summaries(cells):
        groups.setdefault((summary.name, summary.quantity.slope is not None), []).append(summary)
    lines = [(*head, "upper end, last over first")]
    return lines + [_group_line(name, group) for (name, _), group in sorted(groups.items(), key=_place(groups))]


def _place(groups: dict[tuple[str, bool], list[CellSummary]]) -> Callable[..., tuple[int, bool]]:
    """Quantities in their own order, those with a prediction first."""
    names = list(dict.fromkeys(name for name, _ in groups))
    return lambda item: (names.index(item[0][0]), not item[0][1])


def _group_line(name: str, group: Sequence[CellSummary]) -> tuple[str, ...]:
    slopes = [f"{summary.slope:.3f}" for summary in group if summary.slope is not None]
    predicted = [s.quantity.slope for s in group if s.quantity.slope is not None]
    near = [s for s in group if s.slope is not None and s.quantity.slope is not None and _is_met(s)]
    ratios = [f"{s.over_prediction:.2f}" for s in group if s.over_prediction is not None]
    ends = [f"{s.last.quantile_90 / (s.by_size[0].quantile_90 or float('nan')):.2f}" for s in group]
    medians = sum(summary.quantity.statistic == "median" for summary in group)
    return (
        name + (f" (median in {medians} of {len(group)})" if 0 < medians < len(group) else " (median)" * bool(medians)),
        str(len(group)),
        _range([f"{slope:g}" for slope in predicted]),
        _range(slopes),
        f"{len(near)} of {len(predicted)}" if predicted else "-",
        _range(ratios),
        "-" if predicted else _range(ends),
    )


def _is_met(summary: CellSummary) -> bool:
    """Whether the slope is within three standard errors of its prediction."""
    assert summary.slope is not None and summary.quantity.slope is not None
    return abs(summary.slope - summary.quantity.slope) <= 3 * (summary.stderr or 0) + 1e-12


def _range(numbers: Sequence[str]) -> str:
    """The least to the largest, or the only one."""
    low, high = (choose(numbers, key=float, default="-") for choose in (min, max))
    return low if low == high else f"{low} to {high}"
