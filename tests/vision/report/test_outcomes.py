"""Means, standard deviations and paired differences against NumPy and against rows written by hand."""

import json

import numpy as np
import pytest

from moe_prompt.vision.data.benchmarks import GROUPS, VTAB_TASKS
from moe_prompt.vision.report.outcomes import PairedDifference, sections
from tests.builders.planted_runs import finals, planted, trial

FIVE = [81.0, 82.5, 80.0, 79.5, 83.0]


def test_a_cell_is_the_seeds_of_one_method_on_one_task():
    (section,) = sections([*finals(FIVE), trial(75.0), trial(70.0, 1.0)])
    (cell,) = section.cells
    assert cell.mean == pytest.approx(np.mean(FIVE)) and cell.std == pytest.approx(np.std(FIVE, ddof=1))
    assert dict(cell.accuracies) == dict(zip((42, 44, 82, 100, 800), FIVE, strict=True))
    assert len(cell.trials) == 2 and cell.failed == 0 and cell.left_out == 0


def test_failed_seeds_are_counted_and_not_averaged():
    (cell,) = sections(finals([80.0, None, 82.0, 81.0, None]))[0].cells
    assert cell.failed == 2 and cell.mean == 81.0 and cell.std == 1.0
    (cell,) = sections(finals([None]))[0].cells
    assert cell.mean is None and cell.std is None


def test_settings_are_kept_apart():
    rows = [*finals(FIVE), *finals(FIVE, share=0.1), *finals(FIVE, height=98, width=98), *finals(FIVE, epochs=10)]
    found = sections([*rows, *finals(FIVE, backbone_sha="other")])
    assert len(found) == 5 and all(len(section.cells) == 1 for section in found)


def test_options_under_one_label_are_told_apart():
    rows = finals(FIVE, method={"name": "vapt", "num_prompts": 5, "rank": 8})
    rows += finals([60.0], method={"name": "vapt", "num_prompts": 7, "rank": 8})
    (section,) = sections(rows)
    assert section.labels == ("vapt num_prompts=5", "vapt num_prompts=7")


def test_methods_and_tasks_have_an_order():
    rows = [row for task in ("zebra", "dogs", "svhn", "cifar") for row in finals([1.0], "vapt", task)]
    (section,) = sections([*rows, *finals([1.0], "linear", "svhn"), *finals([1.0], "vpt-deep", "svhn")])
    assert section.labels == ("linear", "vpt-deep", "vapt")
    assert section.tasks == ("cifar", "svhn", "dogs", "zebra")


def test_validation_says_which_final_runs_count():
    """Final runs with other hyper-parameters tested better; they are left out all the same."""
    rows = [trial(75.0, 5.0), trial(70.0, 1.0), *finals([80.0, 81.0], base_lr=5.0), *finals([95.0, 96.0], base_lr=1.0)]
    (cell,) = sections(rows)[0].cells
    assert cell.mean == 80.5 and cell.left_out == 2 and cell.chosen.base_lr == 5.0


def test_means_over_tasks_say_what_is_missing():
    tasks = GROUPS["Specialized"]
    (section,) = sections([*finals([80.0, 84.0], task=tasks[0]), *finals([90.0, 90.0], task=tasks[2])])
    average = section.over("vapt", tasks)
    assert (average.mean, average.tasks, average.missing) == (86.0, (tasks[0], tasks[2]), (tasks[1], tasks[3]))
    assert average.std == pytest.approx(np.std([85.0, 87.0], ddof=1))
    assert section.over("vapt", GROUPS["Natural"]).mean is None


def test_the_flat_mean_is_flat():
    generator = np.random.default_rng(0)
    accuracies = {task: generator.uniform(0, 100, 5) for task in VTAB_TASKS}
    (section,) = sections([row for task in VTAB_TASKS for row in finals(accuracies[task].tolist(), task=task)])
    average, table = section.over("vapt", VTAB_TASKS), np.stack(list(accuracies.values()))
    assert average.mean == pytest.approx(table.mean()) and not average.missing
    assert average.std == pytest.approx(table.mean(axis=0).std(ddof=1))


def test_common_tasks():
    rows = [*finals([1.0], "vapt", "svhn"), *finals([1.0], "vapt", "dtd"), *finals([1.0], "linear", "dtd")]
    (section,) = sections([*rows, *finals([None], "linear", "svhn")])
    assert section.common_tasks == ("dtd",)


def test_paired_differences_by_hand():
    other = [80.0, 82.0, 79.0, 79.0, 81.5]
    (section,) = sections([*finals(FIVE), *finals(other, "vpt-deep")])
    difference = section.difference("vapt", "vpt-deep", ("svhn",))
    each = np.subtract(FIVE, other)
    assert difference.each == pytest.approx(each)
    assert difference.mean == pytest.approx(each.mean())
    assert difference.standard_error == pytest.approx(each.std(ddof=1) / np.sqrt(5))
    assert "+0.90 +- 0.19 over 5 seeds: not told apart" in difference.sentence()  # 0.9 is less than a deviation of 1.5


def test_pairs_are_of_equal_seeds():
    (section,) = sections([*finals([80.0, 70.0, None, 90.0]), *finals([79.0, None, 60.0, 88.0], "vpt-deep")])
    difference = section.difference("vapt", "vpt-deep", ("svhn",))
    assert difference.each == (1.0, 2.0)
    assert section.difference("vapt", "vpt-deep", ("svhn", "dtd")) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((85.0, 85.5, 84.5), (80.0, 80.4, 79.6), "better"),
        ((80.0, 80.4, 79.6), (85.0, 85.5, 84.5), "worse"),
        ((81.0, 85.0, 77.0), (80.0, 84.0, 76.0), "not told apart"),  # always one above, but within a deviation
        ((84.0, 90.0, 78.0), (80.0, 79.0, 79.9), "not told apart"),  # far apart, but by chance
        ((84.0,), (80.0,), "not told apart"),
        ((80.0, 80.0), (80.0, 80.0), "not told apart"),
    ],
)
def test_verdicts(ours, theirs, verdict):
    assert PairedDifference("a", "b", ("svhn",), ours, theirs).verdict == verdict


def test_verdicts_are_rarely_wrong():
    """Two equal methods, five seeds: "better" or "worse" in less than 5 % of 2,000 draws.

    The interval alone is wrong in 5 %, and the second condition can only lower that: more than 6.5 % would be a chance
    of 0.1 % (binomial).
    """
    generator = np.random.default_rng(0)
    draws = generator.normal(80, 1, (2000, 2, 5))
    wrong = sum(
        PairedDifference("a", "b", ("x",), tuple(a.tolist()), tuple(b.tolist())).verdict != "not told apart"
        for a, b in draws
    )
    assert wrong <= 0.065 * 2000


def test_no_final_runs():
    (cell,) = sections([trial(70.0)])[0].cells
    assert cell.mean is None and cell.method == "vapt" and cell.chosen is None
    assert sections([planted()])[0].cells[0].chosen is None


def test_runs_that_differ_in_anything_are_not_one_result():
    """Other precision, other test pictures: rows of their own, and nothing is called failed for having a double."""
    bf16 = finals((10.0,) * 5, spec=json.dumps({"recipe": {"precision": "bf16"}}))
    (section,) = sections([*finals(FIVE, spec=json.dumps({"recipe": {"precision": "float32"}})), *bf16])
    assert section.labels == ("vapt precision=bf16", "vapt precision=float32")
    assert [cell.failed for cell in section.cells] == [0, 0]
    (section,) = sections([*finals(FIVE), *finals((10.0,) * 5, evaluation_images=100)])
    assert {cell.label for cell in section.cells} == {"vapt, 26032 test pictures", "vapt, 100 test pictures"}


def test_a_run_beside_a_search_never_stands_for_it():
    """Tested by hand at another learning rate than validation chose: left out, though there is no other final run."""
    (section,) = sections([*finals((99.0,), base_lr=0.02), trial(75.0), trial(70.0, 1.0)])
    (cell,) = section.cells
    assert cell.finals == () and cell.left_out == 1 and cell.mean is None


def test_unsearched_learning_rates_are_rows_of_their_own():
    (section,) = sections([*finals((80.0, 81.0)), *finals((90.0, 91.0), base_lr=1.0)])
    assert {cell.label: cell.mean for cell in section.cells} == {
        "vapt, lr 5, decay 0.001": 80.5,
        "vapt, lr 1, decay 0.001": 90.5,
    }
