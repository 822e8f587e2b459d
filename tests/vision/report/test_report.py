"""What a report says, word for word, on planted rows; and that text, Markdown and CSV tell the same."""

import csv
import io
import json

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.data.benchmarks import GROUPS, VTAB_TASKS
from moe_prompt.vision.report.published_numbers import reference
from moe_prompt.vision.report.report import tuning_report
from tests.builders.planted_runs import finals, planted, trial


def two_methods():
    rows = [*finals([80.0, 81.0, 82.0]), *finals([78.0, 79.5, 79.5], "vpt-deep")]
    rows += [trial(75.0), trial(70.0, 1.0), trial(None, 50.0)]
    return [*rows, trial(60.0, label="vpt-deep", method={"name": "vpt-deep", "num_prompts": 10})]


def test_accuracy_beside_the_reported_one_with_its_source():
    text = tuning_report(two_methods()).text()
    line = next(line for line in text.splitlines() if line.startswith("svhn  "))
    assert line.split()[1:9] == ["79.00", "+-", "0.87", "78.1", "[1]", "81.00", "+-", "1.00"]
    assert "86.7 [" in line and "from memory, unverified" in text and "V-PETL Bench" in text
    assert "small, 224 x 224 pixels, 100 epochs" in text


def test_partial_groups_are_marked_and_what_is_missing_named():
    text = tuning_report(two_methods()).text()
    assert "81.00 (1 of 7 tasks)" in text and "81.00 (1 of 19 tasks)" in text
    missing = ", ".join(task for task in GROUPS["Natural"] if task != "svhn")
    assert f"Natural is over 1 of 7 tasks, beside no published mean: missing are {missing}." in text
    assert "mean of 3 group means" not in text
    assert "81.43" not in text and "72.91" not in text  # a part beside a whole misleads


def test_whole_groups_have_both_means():
    rows = [row for i, task in enumerate(VTAB_TASKS) for row in finals([50.0 + i, 52.0 + i], task=task)]
    text = tuning_report(rows).text()
    flat = sum(51.0 + i for i in range(19)) / 19
    means = [sum(51.0 + VTAB_TASKS.index(t) for t in GROUPS[g]) / len(GROUPS[g]) for g in list(GROUPS)[:3]]
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert f"{flat:.2f} +- 1.41" in lines["mean of 19"] and "72.91" in lines["mean of 19"]
    assert f"{sum(means) / 3:.2f}" in lines["mean of 3 group means"]
    assert "missing" not in text


def test_cost_and_choice():
    text = tuning_report(two_methods()).text()
    (cost,) = [line for line in text.splitlines() if line.startswith("vapt  ")]
    assert cost.split() == ["vapt", "31,866", "0.04", "12.0", "500", "35", "100", "3", "1", "of", "6", "0.01"]
    (chosen,) = [line for line in text.splitlines() if line.startswith("svhn  vapt")]
    assert chosen.split() == ["svhn", "vapt", "5", "0.001", "75.00", "1", "of", "3", "3", "26,032", "num_prompts", "10"]
    assert "The searches are not of equal size, which favours the larger: trials a task, vpt-deep 1; vapt 3." in text


def test_comparison():
    text = tuning_report(two_methods()).text()
    assert "vapt minus vpt-deep on svhn: +2.00 +- 0.29 over 3 seeds: better." in text
    assert (
        "vpt-deep minus vapt on svhn: -2.00 +- 0.29 over 3 seeds: worse." in tuning_report(two_methods(), "vapt").text()
    )


def test_what_is_not_whole_is_said():
    rows = [*finals([80.0, None, 82.0]), trial(70.0, label="lora", method={"name": "lora"}, task="dtd")]
    text = tuning_report([*rows, *finals([90.0], base_lr=1.0), trial(60.0, 5.0), trial(50.0, 1.0)]).text()
    assert "svhn, vapt: 1 of 3 seeds failed and enter no mean." in text
    assert "dtd, lora: searched, not tested yet." in text
    assert "svhn, vapt: 1 final runs left out, for validation chose other hyper-parameters." in text


def test_a_task_of_ones_own_has_no_reference():
    text = tuning_report(finals([80.0, 81.0], task="mushrooms")).text()
    assert "reported" not in text and "Natural" not in text and "80.50 +- 0.71" in text


def test_shares_have_their_own_references():
    text = tuning_report(finals([50.0, 51.0], task="dogs", share=0.01)).text()
    assert "60.1 [1]" in text and "1% of the training pictures" in text
    assert "91.7" not in text
    assert "86.7" not in tuning_report(finals([50.0], share=0.1)).text()


def test_markdown_tells_the_same():
    made = tuning_report(two_methods())
    text, markdown = made.text(), made.markdown()
    assert "| svhn | 79.00 +- 0.87 | 78.1 [1] | 81.00 +- 1.00 |" in markdown
    for note in text.split("\n\n")[-1].splitlines():
        assert f"- {note}" in markdown
    tables = [block for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_csv_has_a_line_for_each_cell_and_mean():
    lines = list(csv.DictReader(io.StringIO(tuning_report(two_methods()).csv())))
    (cell,) = [line for line in lines if (line["kind"], line["method"]) == ("task", "vapt")]
    assert float(cell["mean"]) == 81.0 and float(cell["std"]) == 1.0 and cell["seeds"] == "3" and cell["trials"] == "3"
    assert float(cell["reported"]) == reference("vapt", "svhn").value and "unverified" in cell["source"]
    (natural,) = [line for line in lines if (line["place"], line["method"]) == ("Natural", "vapt")]
    assert (
        natural["tasks"] == "1"
        and natural["reported"] == ""
        and natural["missing"].split() == [t for t in GROUPS["Natural"] if t != "svhn"]
    )


def test_each_setting_is_a_section():
    made = tuning_report([*finals([80.0]), *finals([70.0], height=98, width=98)])
    assert len(made.sections) == 2 and made.text().count("Test top-1") == 2
    assert "80.00 (1 seed)" in made.text()


def test_no_rows():
    with pytest.raises(InputError, match="no runs to report"):
        tuning_report([])


def test_a_label_of_ones_own_keeps_its_methods_reference():
    rows = finals([80.0, 81.0], label="vapt-paper", method=json.dumps({"name": "vapt", "num_prompts": 5}))
    assert (
        "vapt-paper, reported"
        in tuning_report([*rows, planted(key="x", label="vapt-paper", method=rows[0].method)]).text()
    )


def test_numbers_beside_are_of_the_same_backbone():
    rows = [row for task in GROUPS["Natural"] for row in finals([60.0, 61.0], task=task, backbone="mae-vit-b16")]
    text = tuning_report(rows).text()
    assert "59.23 [1]" in text and "Reported numbers are of ViT-B/16 MAE at" in text and "81.43" not in text
