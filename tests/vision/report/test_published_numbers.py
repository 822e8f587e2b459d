"""The quoted numbers agree with one another: rows per task against published means, groups against VTAB's sizes."""

import pytest

from moe_prompt.vision.data.benchmarks import FGVC_TASKS, GROUPS, KNOWN_TASKS, VTAB_TASKS
from moe_prompt.vision.report.published_numbers import (
    DOGS_BY_FRACTION,
    FIGURE,
    FLAT_MEAN,
    MEMORY,
    PUBLISHED,
    REFERENCES,
    STATUSES,
    mean_of_groups,
    reference,
)

BOTH = [r for r in REFERENCES if r.tasks and r.means]


def label(record):
    return f"{record.method}, {record.backbone}"


def test_groups_have_the_sizes_of_the_benchmarks():
    assert [len(GROUPS[name]) for name in ("Natural", "Specialized", "Structured", "FGVC")] == [7, 4, 8, 5]
    assert len(set(VTAB_TASKS)) == 19 and len(set(VTAB_TASKS + FGVC_TASKS)) == 24


@pytest.mark.parametrize("record", BOTH, ids=label)
def test_rows_add_up_to_the_published_means(record):
    """Rows are rounded to 0.1, so their mean is within 0.05 of that of unrounded ones; 0.005 for its own."""
    checked = 0
    for place, published in record.means.items():
        tasks = VTAB_TASKS if place == FLAT_MEAN else GROUPS[place]
        if all(task in record.tasks for task in tasks):
            assert sum(record.tasks[task] for task in tasks) / len(tasks) == pytest.approx(published, abs=0.055)
            checked += 1
    assert checked >= 1


@pytest.mark.parametrize("record", [r for r in REFERENCES if FLAT_MEAN in r.means and "Natural" in r.means], ids=label)
def test_flat_means_are_of_the_groups(record):
    """Flat over 19 tasks: the groups weigh 7, 4 and 8. The mean of the three group means is another number.

    Roundings allow 0.01; VPT-deep's means, as printed, are 0.013 apart.
    """
    weighted = 7 * record.means["Natural"] + 4 * record.means["Specialized"] + 8 * record.means["Structured"]
    assert weighted / 19 == pytest.approx(record.means[FLAT_MEAN], abs=0.015)


def test_the_two_means_differ_and_are_told_apart():
    vapt = next(r for r in REFERENCES if r.method == "vapt" and r.tasks)
    assert mean_of_groups(vapt.tasks) == pytest.approx((81.43 + 85.13 + 59.34) / 3, abs=0.02)
    assert abs(mean_of_groups(vapt.tasks) - vapt.means[FLAT_MEAN]) > 2
    assert mean_of_groups(dict.fromkeys(VTAB_TASKS[1:], 50.0)) is None


def test_every_number_has_a_source_and_a_status():
    for record in REFERENCES:
        sources = {record.source, *([record.tasks_source] if record.tasks else [])}
        assert all(source.where and source.status in STATUSES for source in sources)
    for quoted in (q for row in DOGS_BY_FRACTION.values() for q in row.values()):
        assert quoted.source.status in STATUSES


def test_what_was_never_published_is_not_called_published():
    assert reference("vapt", "svhn").source.status == MEMORY
    assert reference("vapt", "Natural").source.status == PUBLISHED
    assert reference("vpt-deep", "svhn").source.status == PUBLISHED
    assert DOGS_BY_FRACTION[0.1]["vapt"].source.status == FIGURE


def test_quotes():
    assert reference("vpt-deep", "dsprites_loc").value == 73.6
    assert reference("vapt", "Natural", "ViT-B/16 MAE").value == 59.23
    assert reference("sa2vp", FLAT_MEAN) is None and reference("norga", "svhn") is None


def test_tasks_are_those_that_folders_are_held_against():
    """The layouts' names, and the right suite: VTAB's flowers are not FGVC's."""
    for group, tasks in GROUPS.items():
        assert {KNOWN_TASKS[task].layout for task in tasks} == {"fgvc" if group == "FGVC" else "vtab"}
    assert set(VTAB_TASKS + FGVC_TASKS) == set(KNOWN_TASKS)
