"""What the rows of a study say, in sentences made from them."""

from __future__ import annotations

from functools import singledispatch

from moe_prompt.studies.analysis.summaries import CellSummary
from moe_prompt.studies.base import Study
from moe_prompt.studies.kinds.likelihood import LikelihoodStudy
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.kinds.top_k import ChoiceStudy

SHARP = 0.05  # a slope with a larger standard error than this supports no verdict


@singledispatch
def caption(study: Study, cells: list[CellSummary]) -> str:
    """What the rows of a study say; each kind of study may have words of its own."""
    last = {(cell.truth, cell.estimator): cell for cell in cells}.values()
    return " ".join([*(_slope_sentence(cell) for cell in cells), _counts(list(last))])


def _slope_sentence(cell: CellSummary) -> str:
    name = f"{cell.estimator} on data from {cell.truth}, {cell.loss}"
    if cell.slope is None or cell.stderr is None:
        return f"{name}: too few sizes or replicates in the window {cell.window} for a slope."
    predicted = "" if cell.predicted_slope is None else f" (predicted {cell.predicted_slope:g})"
    return f"{name}: {cell.statistic} ~ n^({cell.slope:.3f} +- {cell.stderr:.3f}){predicted}."


def _counts(cells: list[CellSummary]) -> str:
    fits, failed, boundary = (sum(getattr(c, name) for c in cells) for name in ("fits", "failed", "at_boundary"))
    ends = f"{failed} did not converge, {boundary} ended on the boundary of the parameter box"
    return f"{fits} fits: {ends}; all that gave a number are counted."


@caption.register
def _rate_caption(study: RateStudy, cells: list[CellSummary]) -> str:
    matched = [cell for cell in cells if cell.matched and cell.loss == "parameter"]
    others = [cell for cell in cells if not cell.matched]
    sentences = [_rate_sentence(cell) for cell in matched] + [_floor_sentence(cell) for cell in others]
    counted = matched + others
    fits, failed, boundary = (sum(getattr(c, name) for c in counted) for name in ("fits", "failed", "at_boundary"))
    missed = sum(cell.missed or 0 for cell in matched)
    complete = len(counted) == len(study.truths) * len(study.contenders)
    sentences.append(
        f"{fits} fits: {failed} did not converge, {boundary} ended on the boundary of the parameter box, {missed} of "
        f"the {sum(cell.fits for cell in matched)} whose family holds the truth missed the global minimum (the truth "
        "fits their data better; the others may have, unseen); all that gave a number are in the means."
    )
    return " ".join([*sentences, _verdict(matched, others) if complete else ""]).strip()


@caption.register
def _choice_caption(study: ChoiceStudy, cells: list[CellSummary]) -> str:
    """The boundary, the parameters and the risk have a slope each."""
    missed = cells[0].missed or 0
    words = [*(_slope_sentence(cell) for cell in cells), _counts(cells[:1])]
    return " ".join([*words, f"In {missed} the truth fits the data better."])


@caption.register
def _over_specified_caption(study: OverSpecifiedStudy, cells: list[CellSummary]) -> str:
    sentences = [
        _range_sentence([cell for cell in cells if cell.loss == loss], words)
        for loss, words in (
            ("D", "The Voronoi loss"),
            ("split", "The split error"),
            ("moments", "The drift of masses and first moments"),
            ("function", "The distance of functions"),
        )
    ]
    every = list({cell.truth: cell for cell in cells}.values())
    missed = sum(cell.missed or 0 for cell in every)
    ends = f"In {missed} the truth fits the data better; others may be at a local minimum, which that does not tell."
    return " ".join([*filter(None, sentences), _counts(every), ends])


@caption.register
def _likelihood_caption(study: LikelihoodStudy, cells: list[CellSummary]) -> str:
    by_loss = {cell.loss: [other for other in cells if other.loss == cell.loss] for cell in cells}
    sentences = [
        _range_sentence(group, f"{group[0].label[:1].upper()}{group[0].label[1:]}") for group in by_loss.values()
    ]
    every = list({(cell.truth, cell.estimator): cell for cell in cells}.values())
    missed = sum(cell.missed or 0 for cell in every)
    return " ".join([*filter(None, sentences), _counts(every), f"In {missed} the truth has the higher likelihood."])


def _range_sentence(cells: list[CellSummary], what: str) -> str:
    """The slopes of one quantity over all cells: those that have a prediction, then those that have none."""
    sloped = [cell for cell in cells if cell.slope is not None and cell.stderr is not None]
    predicted = [cell for cell in sloped if cell.predicted_slope is not None]
    others = [cell for cell in sloped if cell.predicted_slope is None]
    sentences = [f"{what} has slopes {_slopes(predicted)}{_agreement(predicted)}."] if predicted else []
    if others:
        ends = _range([_held(cell) for cell in others])
        sentences.append(
            f"{'In the other cells it' if predicted else what} has slopes {_slopes(others)}, none predicted; its 90 % "
            f"quantile ends at {ends} times where it began."
        )
    return " ".join(sentences)


def _slopes(cells: list[CellSummary]) -> str:
    slopes = [cell.slope for cell in cells if cell.slope is not None]
    low, high = f"{min(slopes):.3f}", f"{max(slopes):.3f}"
    return f"of {low}" if low == high else f"from {low} to {high}"


def _agreement(predicted: list[CellSummary]) -> str:
    """How many slopes agree with their predictions, and the measured constants."""
    near = [c for c in predicted if abs((c.slope or 0) - (c.predicted_slope or 0)) <= 3 * (c.stderr or 0)]
    words = f", {len(near)} of {len(predicted)} within three standard errors of {_predictions(predicted)}"
    ratios = [cell.over_prediction for cell in predicted if cell.over_prediction is not None]
    if ratios:
        last, statistics = predicted[0].by_size[-1]["n"], sorted({cell.statistic for cell in predicted})
        words += f"; at n = {last} its {' or '.join(statistics)} is {_range(ratios)} times the predicted one"
    return words


def _range(values: list[float]) -> str:
    """The least to the largest, or the only one."""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _predictions(cells: list[CellSummary]) -> str:
    """The predicted slope, or that there are several."""
    found = {round(cell.predicted_slope or 0, 4) for cell in cells}
    return f"{found.pop():g}" if len(found) == 1 else "their predictions"


def _held(cell: CellSummary) -> float:
    """The 90 % quantile at the largest size over that at the smallest."""
    return cell.by_size[-1]["quantile_90"] / (cell.by_size[0]["quantile_90"] or float("nan"))


def _verdict(matched: list[CellSummary], others: list[CellSummary]) -> str:
    """What the cells say together, if they say it: rates sharp and as predicted, floors within five percent."""
    slopes = [c for c in matched if c.slope is not None and c.stderr is not None]
    off = [c for c in slopes if abs(c.slope - c.predicted_slope) > 3 * c.stderr]  # type: ignore[operator]
    if off:
        names = " and ".join(c.estimator.upper() for c in off)
        return f"The slope of {names} is more than three standard errors from the predicted {off[0].predicted_slope:g}."
    reached = others and all(c.risk_over_floor is not None and abs(c.risk_over_floor - 1) < 0.05 for c in others)
    sharp = len(slopes) == len(matched) and all(c.stderr is not None and c.stderr <= SHARP for c in slopes)
    if not (sharp and reached):
        return ""
    return (
        "Each method learns at the parametric rate in its own model; in the other's, its error stops at what it cannot "
        "express. This is a difference of expressiveness, not of rate."
    )


def _rate_sentence(cell: CellSummary) -> str:
    name = cell.estimator.upper()
    if cell.slope is None or cell.stderr is None:
        few = f"too few sizes in the window {cell.window}, or too few replicates, for a slope."
        return f"{name} on data from {cell.truth.upper()}: {few}"
    sentence = f"{name} on data from {cell.truth.upper()}: error ~ n^({cell.slope:.3f} +- {cell.stderr:.3f})"
    if cell.efficiency is None or cell.efficiency_stderr is None:
        return sentence + "."
    return sentence + (
        f", at n = {cell.by_size[-1]['n']} {cell.efficiency:.2f} +- {cell.efficiency_stderr:.2f} times the "
        "Cramer-Rao bound."
    )


def _floor_sentence(cell: CellSummary) -> str:
    sentence = f"{cell.estimator.upper()} on data from {cell.truth.upper()}: the excess risk is "
    last = cell.by_size[-1]
    if cell.floor is None or cell.risk_over_floor is None:
        return sentence + f"{last['mean']:.3g} at n = {last['n']}."
    return sentence + f"{cell.risk_over_floor:.3f} times its floor of {cell.floor:.3g} at n = {last['n']}."
