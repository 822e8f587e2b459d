"""The committed rows still say what they said: the numbers of `study show --json` of every named study, to 1e-10.

The numbers were written when the rows were. `sizes` is a weighted sum over the sizes of what is told of each.
"""

import csv
from pathlib import Path

import pytest

from moe_prompt.studies.analysis.cells import all_summaries, cells_of
from moe_prompt.studies.loading import NAMES, load
from moe_prompt.studies.running.archive import load_rows

RESULTS = Path(__file__).parents[3] / "experiments" / "results"
with (Path(__file__).parent / "committed_numbers.csv").open(encoding="utf-8") as lines:
    COMMITTED = list(csv.DictReader(lines))
PLACE = ("study", "truth", "estimator", "loss")
BY_SIZE = ("mean", "median", "quantile_10", "quantile_90", "over_prediction", "efficiency", "mse_over_bound")


def weighted(sizes: list[dict]) -> float:
    return sum((size[name] or 0.0) * weight for size in sizes for weight, name in enumerate(BY_SIZE, 1))


@pytest.mark.parametrize("name", NAMES)
def test_summaries_of_committed_rows(name):
    study = load(name)
    found = load_rows(study, RESULTS, exported=True)
    told = [summary.to_dict() for summary in all_summaries(cells_of(study, found.rows, found.notes))]
    committed = [row for row in COMMITTED if row["study"] == name]
    assert len(told) == len(committed) > 0
    for ours, theirs in zip(told, committed, strict=True):
        assert [name, *(ours[place] for place in PLACE[1:])] == [theirs[place] for place in PLACE]
        ours["sizes"] = weighted(ours["by_size"])
        for number in set(theirs) - set(PLACE):
            if theirs[number] == "":
                assert ours[number] is None, number
            else:
                assert ours[number] == pytest.approx(float(theirs[number]), rel=1e-10, abs=1e-12), number
