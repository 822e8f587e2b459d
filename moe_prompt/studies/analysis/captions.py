"""What the rows of a study say, in at most three sentences made from its cells, and a line of counts."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import median

from moe_prompt.studies.analysis.cells import Cell, CellSummary, all_summaries
from moe_prompt.studies.base import Study

SHARP = 0.05  # a slope with a larger standard error than this supports no verdict
NEAR = 0.05  # an excess risk this close to its floor, relative to the floor, has reached it
NAMED = 2  # so many slopes that miss their predictions are named, more are counted


def caption(study: Study, cells: Sequence[Cell]) -> str:
    """At most three sentences: slopes against predictions, what falls to a floor or not at all, and the verdict."""
    every = all_summaries(cells)
    sentences = [
        _agreement([s for s in every if s.quantity.slope is not None]),
        _floors([s for s in every if s.quantity.slope is None and s.cell.floor is not None]),
        _levels([s for s in every if s.quantity.slope is None and s.cell.floor is None]),
        _verdict(study, cells),
    ]
    return " ".join(filter(None, sentences))


def counts(cells: Sequence[Cell]) -> str:
    """Fits, how they ended, and where slopes were fitted: the small line under a caption."""
    ends = [cell.ends for cell in cells]
    fits, failed, boundary = (sum(getattr(end, name) for end in ends) for name in ("fits", "failed", "at_boundary"))
    missed = [end.missed for end in ends if end.missed is not None]
    low, high = cells[0].window
    told = [f"{failed:,} did not converge", f"{boundary:,} ended on the boundary of the parameter box"]
    told += (
        [f"in {sum(missed):,} the truth fits the data better than the estimate, and more may be at a local minimum"]
        if missed
        else []
    )
    return (
        f"{fits:,} fits: {', '.join(told)}. Every fit that gave a number is counted. Slopes are fitted on n = {low:,} "
        f"to {high:,}; their standard errors are from a bootstrap over replicates."
    )


def figure_note(cells: Sequence[Cell]) -> str:
    """The small line under the caption: counts, and how to read the words in the panels."""
    words = [counts(cells), "In the panels: the fitted power of n and its standard error, above it the predicted one."]
    if any(f"start_{quantity.column}" in cell.rows for cell in cells for quantity in cell.quantities):
        words.append('"Starts at" is the median error at the first random start.')
    return " ".join(words)


def _agreement(predicted: Sequence[CellSummary]) -> str:
    """How many slopes are as predicted, how sharp they are, and the measured constants over the predicted ones."""
    sloped = [s for s in predicted if s.slope is not None and s.stderr is not None]
    if not sloped:
        return "There are too few sizes or replicates in the window for a slope." if predicted else ""
    off = [s for s in sloped if _errors_off(s) > 3]
    words = _met(sloped, off)
    ratios = [ratio for s in sloped if (ratio := s.over_prediction) is not None and isfinite(ratio)]
    if ratios:
        middle = f" (median {median(ratios):.2f})" if len(ratios) > 4 else ""
        words += (
            f"; at n = {sloped[0].last.n:,} the measured error{'s are' if len(ratios) > 1 else ' is'} "
            f"{_range(ratios, 2)} times the predicted{middle}"
        )
    return f"{words}."


def _met(sloped: Sequence[CellSummary], off: Sequence[CellSummary]) -> str:
    """How many slopes lie where they should; those that do not by name, if they are few."""
    if len(sloped) == 1:
        (only,) = sloped
        where = "more than three" if off else "within three"
        return f"The slope of {_number(only)} is {where} standard errors from the predicted {only.quantity.slope:g}"
    every = "Both" if len(sloped) == 2 else f"All {len(sloped)}"
    met = f"{len(sloped) - len(off)} of the {len(sloped)}" if off else every
    errors = _range([s.stderr for s in sloped], 3)
    words = f"{met} slopes lie within three standard errors, each {errors}, of the predicted ones"
    if 0 < len(off) <= NAMED:
        words += f"; the exception{'s are' if len(off) > 1 else ' is'} {' and '.join(map(_named, off))}"
    return words


def _errors_off(summary: CellSummary) -> float:
    """How many standard errors lie between a slope and its prediction."""
    assert summary.slope is not None and summary.quantity.slope is not None
    return abs(summary.slope - summary.quantity.slope) / (summary.stderr or 1e-12)


def _number(summary: CellSummary) -> str:
    return f"{summary.slope:.3f} ± {summary.stderr:.3f}"


def _named(summary: CellSummary) -> str:
    return f"{summary.name} of {summary.cell.title} ({_number(summary)} for {summary.quantity.slope:g})"


def _floors(stuck: Sequence[CellSummary]) -> str:
    """Where another family is fitted than the truth's."""
    ratios = [ratio for s in stuck if (ratio := s.over_floor) is not None and isfinite(ratio)]
    if not ratios:
        return ""
    return (
        f"On data that the fitted model cannot express, the excess risk at n = {stuck[0].last.n:,} is "
        f"{_range(ratios, 3)} times its floor, the least that this model can have."
    )


def _levels(others: Sequence[CellSummary]) -> str:
    """Quantities of which nothing is predicted: how far their upper ends fell."""
    falls = [s.last.quantile_90 / (s.by_size[0].quantile_90 or float("nan")) for s in others if len(s.by_size) > 1]
    falls = [fall for fall in falls if isfinite(fall)]
    if not falls:
        return ""
    names = ", ".join(dict.fromkeys(s.name for s in others))
    first, last = others[0].by_size[0].n, others[0].last.n
    return (
        f"Where theory predicts no rate ({names}), the 90 % quantile at n = {last:,} is {_range(falls, 2)} times "
        f"that at n = {first:,}."
    )


def _verdict(study: Study, cells: Sequence[Cell]) -> str:
    """What the cells say together, if all are there and say it: rates sharp and as predicted, floors reached."""
    matched = [cell.summaries[0] for cell in cells if cell.relation.exact]
    others = [cell.summaries[0] for cell in cells if cell.relation.misspecified]
    if not (matched and others and len(cells) == len(study.cells)):
        return ""
    sharp = all(
        s.stderr is not None and s.stderr <= SHARP and s.quantity.slope is not None and _errors_off(s) <= 3
        for s in matched
    )
    if not (sharp and all(s.over_floor is not None and abs(s.over_floor - 1) < NEAR for s in others)):
        return ""
    return (
        "Each model learns at the predicted rate on data of its own, and on the others' its error stops at what it "
        "cannot express: a difference of expressiveness, not of rate."
    )


def _range(values: Sequence[float | None], digits: int) -> str:
    """The least to the largest, or the only one."""
    known = [value for value in values if value is not None]
    low, high = f"{min(known):.{digits}f}", f"{max(known):.{digits}f}"
    return low if low == high else f"{low} to {high}"
