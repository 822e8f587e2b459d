"""Tuning end to end on a real ViT: chosen on validation, five seeds, one test each, nothing twice."""

import multiprocessing
from collections import Counter

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.tuning import runs
from moe_prompt.vision.tuning.recipes import Grid, Schedule
from moe_prompt.vision.tuning.run_table import RunTable
from moe_prompt.vision.tuning.searches import GridSearch, search_named
from moe_prompt.vision.tuning.tune import choose_best, method_for, recipe_from, tune
from tests.builders.planted_runs import planted, trial
from tests.builders.small_search import small_problem, small_recipe

VPT = method_named("vpt-deep", num_prompts=3)
SEARCH = GridSearch(Grid("two", "sgd", (5.0, 0.01), (0.001,), "ours", "a test"))


def test_from_search_to_test(tmp_path):
    problem = small_problem(tmp_path)
    told = []
    tuned = tune(problem, VPT, small_recipe(epochs=4), SEARCH, tmp_path / "out", tell=told.append)
    assert [row.purpose for row in tuned.trials] == ["search"] * 2
    assert {row.seed for row in tuned.trials} == {42} and {row.evaluation for row in tuned.trials} == {"val200"}
    assert [row.seed for row in tuned.finals] == [42, 44, 82, 100, 800]
    assert {(row.training, row.evaluation) for row in tuned.finals} == {("train800val200", "test")}
    assert {row.base_lr for row in tuned.finals} == {tuned.best.base_lr}
    assert tuned.best.accuracy == max(row.accuracy for row in tuned.trials)
    assert len(told) == 7 and "seed 800, tested" in told[-1]
    assert len(RunTable(tmp_path / "out" / "runs.sqlite").rows()) == 7


def test_nothing_is_run_twice(tmp_path, monkeypatch):
    problem = small_problem(tmp_path)
    first = tune(problem, VPT, small_recipe(), SEARCH, tmp_path / "out", seeds=(42, 44))
    monkeypatch.setattr(runs, "train", None)
    assert tune(problem, VPT, small_recipe(), SEARCH, tmp_path / "out", seeds=(42, 44)) == first
    assert tune(problem, VPT, small_recipe(), SEARCH, tmp_path / "out", seeds=(42,)).finals == first.finals[:1]


def test_interrupted_tuning_goes_on(tmp_path, monkeypatch):
    """Stopped after each training in turn: in the end every training was begun once and the result is the same."""
    problem = small_problem(tmp_path)
    whole = tune(problem, VPT, small_recipe(), SEARCH, tmp_path / "whole", seeds=(42, 44))
    original, trained, allowed = runs.train, Counter(), [0]

    def one_training(model, training, evaluation, recipe, folder, progress, **options):
        if sum(trained.values()) >= allowed[0]:
            raise KeyboardInterrupt
        trained[folder.name] += 1
        return original(model, training, evaluation, recipe, folder, progress, **options)

    monkeypatch.setattr(runs, "train", one_training)
    for allowed[0] in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            tune(problem, VPT, small_recipe(), SEARCH, tmp_path / "out", seeds=(42, 44))
    allowed[0] = 99
    tuned = tune(problem, VPT, small_recipe(), SEARCH, tmp_path / "out", seeds=(42, 44))
    assert set(trained.values()) == {1} and len(trained) == 4
    assert [row.accuracy for row in tuned.finals] == [row.accuracy for row in whole.finals]
    assert [row.key for row in tuned.trials] == [row.key for row in whole.trials]


def test_diverging_trials_do_not_stop_a_search(tmp_path):
    search = GridSearch(Grid("wild", "adamw", (1e30, 0.001), (0.0,), "ours", "a test"))
    tuned = tune(small_problem(tmp_path), method_named("full"), small_recipe(), search, tmp_path / "out", seeds=(42,))
    assert [row.failed for row in tuned.trials] == [True, False]
    assert tuned.best.base_lr == 0.001 and not tuned.finals[0].failed
    assert tuned.finals[0].optimizer == "adamw"


def test_all_trials_diverging_is_told(tmp_path):
    search = GridSearch(Grid("wild", "sgd", (1e30, 1e29), (0.0,), "ours", "a test"))
    problem = small_problem(tmp_path)
    with pytest.raises(InputError, match=r"none of the 2 trials gave a result .*smaller learning rates"):
        tune(problem, method_named("full"), small_recipe(), search, tmp_path / "out")
    assert len(RunTable(tmp_path / "out" / "runs.sqlite").rows()) == 2


def test_test_accuracy_has_no_say(tmp_path, monkeypatch):
    """Whatever the test pictures say, the choice is the same; and rows of final runs are refused as trials."""
    broken = small_problem(tmp_path / "b")
    for picture in (tmp_path / "b" / "bars" / "images" / "test").iterdir():
        picture.write_bytes(b"no picture")
    whole = tune(small_problem(tmp_path / "a"), VPT, small_recipe(), SEARCH, tmp_path / "out-a", seeds=())
    assert tune(broken, VPT, small_recipe(), SEARCH, tmp_path / "out-b", seeds=()).best.key == whole.best.key
    with pytest.raises(InputError, match="evaluated on test"):
        choose_best([trial(70.0), planted(accuracy=99.0)])


def test_the_best_trial_by_hand():
    rows = [trial(70.0, 5.0), trial(71.0, 1.0), trial(71.0, 0.5), trial(None, 50.0), trial(71.0, 0.5, 0.01)]
    assert choose_best(rows) is rows[4]
    with pytest.raises(InputError, match="none of the 1 trials"):
        choose_best([trial(None)])


def test_torchrun_is_not_for_searches(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="start `tune` several times"):
        tune(small_problem(tmp_path), VPT, small_recipe(), SEARCH, tmp_path / "out")


def test_methods_and_recipes_of_a_task():
    assert method_for("svhn", "vapt").to_dict()["num_prompts"] == 50
    assert method_for("svhn", "vapt", num_prompts=3, rank=5).to_dict()["num_prompts"] == 3
    assert method_for("svhn", "vapt-paper").to_dict()["residual"] is False
    recipe = recipe_from(Schedule(), method_named("full").optimizer, epochs=7, warmup=1)
    assert (recipe.optimizer, recipe.epochs, recipe.batch, recipe.seed) == ("adamw", 7, 64, 42)
    assert recipe_from(Schedule(), method_named("lora").optimizer).optimizer == "sgd"
    assert search_named("small", recipe.optimizer).optimizer == "adamw"


@pytest.mark.slow
def test_two_processes_share_a_tuning(tmp_path):
    """Both end with the same result; together they took every training exactly once."""
    task = small_problem(tmp_path).task.source
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        together = manager.Barrier(2)
        first, second = pool.starmap(tune_there, [(str(task), str(tmp_path / "out"), together)] * 2)
    assert first[0] == second[0] and len(first[0]) == 6 + 5
    assert sorted(first[1] + second[1]) == sorted(first[0])
    assert first[1] and second[1]


def tune_there(task, out, together):
    from moe_prompt.vision.data.layouts.open_task import open_task
    from moe_prompt.vision.data.preprocessing import VTAB
    from moe_prompt.vision.tuning.problem import TuningProblem
    from tests.builders.small_search import small_backbone

    original, trained = runs.train, []

    def counted(model, training, evaluation, recipe, folder, progress, **options):
        trained.append(folder.name)
        return original(model, training, evaluation, recipe, folder, progress, **options)

    runs.train = counted
    problem = TuningProblem(small_backbone(), "small", open_task(task), VTAB((16, 12)))
    together.wait(60)  # neither is done before the other has begun
    tuned = tune(problem, VPT, small_recipe(epochs=7), search_named("small"), out)
    return [row.key for row in (*tuned.trials, *tuned.finals)], trained
