"""The choice of the best of several starts, against sorting by hand: order, ties, repeated minima, failed fits."""

import math

import pytest
import torch

from moe_prompt.estimation.base import FitResult, best_of, distinct_best
from moe_prompt.measures.mixing_measure import MixingMeasure

STARTS = 5
NAN, INF = math.nan, math.inf


class Model:
    num_parameters = 2

    def measure(self, theta):
        return MixingMeasure(theta, {"p": theta[..., None]})


def result(*objectives: list[float], escaped: bool = False) -> FitResult:
    """A batch of fits, one list of starts per replicate; every field tells the fit's number."""
    flat = torch.tensor(objectives, dtype=torch.float64).flatten()
    number = torch.arange(len(flat))
    theta = torch.stack([number, -number], 1).to(torch.float64)
    odd = number % 2 == 1
    told = tuple(f"fit {i}" for i in number.tolist())
    return FitResult(Model(), theta, flat, odd, ~odd, number + 100, flat + 7, flat + 9, told, odd if escaped else None)


def numbers(chosen: FitResult) -> list[int]:
    return chosen.theta[:, 0].long().tolist()


def by_hand(objectives: list[float], keep: int, gap: float | None = None) -> list[int]:
    """The first `keep` by (failed, objective, place); with a gap, repeated minima behind other ones."""
    worth = [v if math.isfinite(v) else INF for v in objectives]
    order = sorted(range(len(worth)), key=lambda i: (worth[i], i))
    if gap is None:
        return order[:keep]
    first, again, failed = [], [], []
    for place, i in enumerate(order):
        repeated = place > 0 and worth[i] - worth[order[place - 1]] <= gap
        (failed if worth[i] == INF else again if repeated else first).append(i)
    return (first + again + failed)[:keep]


# ------------------------------------------------------------------------------------------------- select


@pytest.mark.parametrize("escaped", [False, True])
def test_select_takes_every_field_in_the_order_asked_for(escaped):
    fits = result([5.0, 6.0, 7.0, 8.0, 9.0], escaped=escaped)
    chosen = fits.select(torch.tensor([3, 0, 3]))
    assert chosen.model is fits.model and chosen.message == ("fit 3", "fit 0", "fit 3")
    assert chosen.theta.tolist() == [[3.0, -3.0], [0.0, 0.0], [3.0, -3.0]]
    assert chosen.objective.tolist() == [8.0, 5.0, 8.0] and chosen.steps.tolist() == [103, 100, 103]
    assert chosen.converged.tolist() == [True, False, True] and chosen.at_boundary.tolist() == [False, True, False]
    assert chosen.gradient_norm.tolist() == [15.0, 12.0, 15.0] and chosen.offset.tolist() == [17.0, 14.0, 17.0]
    assert chosen.escaped is None if not escaped else chosen.escaped.tolist() == [True, False, True]
    assert chosen.measure.log_weights.tolist() == chosen.theta.tolist()
    assert numbers(fits.select(torch.tensor([], dtype=torch.int64))) == []


# ------------------------------------------------------------------------------------------------ best_of

ROWS = [[3.0, 1.0, 2.0, 1.0, 9.0], [NAN, 4.0, -INF, INF, 4.0], [NAN, INF, NAN, INF, NAN]]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_best_with_ties_to_the_first_and_failed_fits_last(keep):
    chosen = best_of(result(*ROWS), STARTS, keep)
    expected = [STARTS * k + i for k, row in enumerate(ROWS) for i in by_hand(row, keep)]
    assert numbers(chosen) == expected and len(expected) == 3 * keep
    assert chosen.message == tuple(f"fit {i}" for i in expected)


def test_the_best_keeps_what_it_was():
    """A chosen fit that failed is still a failed one: its objective is not made finite."""
    chosen = best_of(result(*ROWS), STARTS, 1)
    assert numbers(chosen) == [1, 6, 10] and chosen.objective[2].isnan()


# ------------------------------------------------------------------------------------------ distinct_best

REPEATED = [1.0, 5.0, 1.05, 3.0, 1.08]
CASES = {
    "one minimum three times": (REPEATED, 0.1, 3, [0, 3, 1]),
    "fewer distinct than asked for": (REPEATED, 0.1, 5, [0, 3, 1, 2, 4]),
    "a chain of small gaps is one minimum": ([1.0, 1.09, 1.18, 1.27, 2.0], 0.1, 2, [0, 4]),
    "equal objectives are one whatever the gap": ([2.0, 2.0, 7.0, 2.0, 5.0], 0.0, 3, [0, 4, 2]),
    "all distinct": ([5.0, 4.0, 3.0, 2.0, 1.0], 0.5, 3, [4, 3, 2]),
    "all one": ([1.0, 1.0, 1.0, 1.0, 1.0], 0.5, 2, [0, 1]),
    "failed ones are behind repeated ones": ([NAN, 2.0, INF, 2.01, 1.0], 0.1, 5, [4, 1, 3, 0, 2]),
    "all failed": ([NAN, INF, INF, NAN, INF], 0.1, 2, [0, 1]),
    "a gap that is infinite": ([4.0, 3.0, 2.0, 1.0, 0.0], INF, 2, [4, 3]),
}


@pytest.mark.parametrize("case", CASES)
def test_distinct_minima_come_first(case):
    objectives, gap, keep, expected = CASES[case]
    gaps = torch.tensor([gap, 0.0], dtype=torch.float64)
    other = [9.0, 8.0, 7.0, 6.0, 5.0]
    chosen = distinct_best(result(objectives, other), STARTS, keep, gaps)
    assert numbers(chosen) == [*expected, *(STARTS + i for i in by_hand(other, keep, 0.0))]
    assert expected == by_hand(objectives, keep, gap)


def test_each_replicate_has_its_own_gap():
    chosen = distinct_best(result(REPEATED, REPEATED), STARTS, 2, torch.tensor([0.1, 0.01], dtype=torch.float64))
    assert numbers(chosen) == [0, 3, STARTS, STARTS + 2]


def test_distinct_minima_of_random_objectives_by_hand():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(50, STARTS, generator=generator, dtype=torch.float64)
    gaps = 0.4 * torch.rand(50, generator=generator, dtype=torch.float64)
    chosen = distinct_best(result(*rows.tolist()), STARTS, 3, gaps)
    expected = [
        STARTS * k + i
        for k, (row, gap) in enumerate(zip(rows.tolist(), gaps.tolist(), strict=True))
        for i in by_hand(row, 3, gap)
    ]
    assert numbers(chosen) == expected
    assert numbers(chosen) != numbers(best_of(result(*rows.tolist()), STARTS, 3))
