"""The door: every public name of `import moe_prompt as mp` is there and says what it is; a study from end to end."""

import inspect
import re

import numpy as np
import pytest
import torch

import moe_prompt as mp

CLASSES_AND_FUNCTIONS = sorted(set(mp.__all__) - {"vision"})


def test_there_are_about_fifty_names():
    assert 40 <= len(mp.__all__) <= 60 and set(mp.__all__) <= set(dir(mp))


@pytest.mark.parametrize("name", CLASSES_AND_FUNCTIONS)
def test_every_name_says_what_it_is(name):
    thing = getattr(mp, name)
    words = inspect.getdoc(thing) or ""
    assert len(words) > 20 and thing.__module__.startswith("moe_prompt.")
    formula = r" = |\^|sum_|<=|~|\([\w* ]+, [\w*, ]+\)|\(N,\)"  # an equation, or a shape
    assert re.search(formula, words) or name == "InputError"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError):
        mp.AttentionHeads  # noqa: B018


def test_version_is_that_of_the_installed_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", mp.__version__)


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    w_q, w_k, w_v = (torch.randn(2, width, dtype=torch.float64) for width in (2, 2, 2))
    head = mp.AttentionHeadMoE(w_q, w_k, w_v, prompt=mp.ConstantPrompt(1, 2).double())
    model = mp.RegressionModel.from_head(head, row=0, num_tokens=2)
    truth = mp.Population(model, torch.randn(model.num_parameters, dtype=torch.float64), mp.Uniform(-1.0, 1.0, 4), 0.1)
    study = mp.RateStudy(name="own", truths={"own": truth}, sizes=(101, 211, 499), replicates=5, nodes=256)
    return mp.run_study(study)


def test_a_study_of_ones_own_needs_no_contenders_claim_or_window(result):
    study = result.study
    assert (study.window, study.claim, list(study.contenders)) == ((101, 499), "", ["own"])
    assert result.computed == len(result.rows) == 15 and result.restored == 0


def test_a_result_has_cells_a_table_a_figure_and_an_export(result, tmp_path):
    assert {cell.truth for cell in result.cells} == {"own"} and "own" in result.table() and result.caption()
    result.plot().savefig(tmp_path / "own.png")
    mp.plot_study(result).savefig(tmp_path / "again.png")
    assert (tmp_path / "own.png").stat().st_size > 10_000
    result.export(tmp_path)
    again = mp.StudyResult.load(result.study, tmp_path)
    np.testing.assert_allclose(again.rows.excess_risk, result.rows.excess_risk, rtol=1e-7)


def test_a_folder_keeps_the_rows_and_nothing_is_computed_twice(result, tmp_path):
    first = mp.run_study(result.study, tmp_path)
    second = mp.run_study(result.study, tmp_path, jobs=2)
    assert (first.computed, second.computed) == (15, 0)
    np.testing.assert_array_equal(first.rows.excess_risk, result.rows.excess_risk)
    np.testing.assert_array_equal(second.rows.excess_risk, first.rows.excess_risk)


def test_threads_are_left_as_they_were(result):
    before = torch.get_num_threads()
    mp.run_study(result.study)
    assert torch.get_num_threads() == before


def test_a_study_can_be_named():
    with pytest.raises(mp.InputError, match="vpt-vs-vapt"):
        mp.run_study("vpt-vs-vap")


@pytest.mark.parametrize("jobs", [0, -1])
def test_workers_are_at_least_one(result, jobs):
    with pytest.raises(mp.InputError, match="at least one"):
        mp.run_study(result.study, jobs=jobs)
