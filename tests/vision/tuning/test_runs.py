"""Runs of a real ViT on real files: each once, a row at once, failures kept, killed ones resumed."""

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.data.datasets import PictureDataset
from moe_prompt.vision.data.preprocessing import FGVC, VTAB
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.tuned_file import load_tuned
from moe_prompt.vision.methods.user_file import method_from_file
from moe_prompt.vision.runtime.locks import Busy, exclusively
from moe_prompt.vision.training.evaluation import evaluate
from moe_prompt.vision.tuning import problem as problems
from moe_prompt.vision.tuning import runs
from moe_prompt.vision.tuning.problem import TuningProblem
from moe_prompt.vision.tuning.run_table import RunTable
from moe_prompt.vision.tuning.runs import run_training
from tests.builders.small_search import SIZES, small_backbone, small_problem, small_recipe, small_task

VPT = method_named("vpt-deep", num_prompts=3)


def test_a_run_is_a_row_and_is_not_repeated(tmp_path, monkeypatch):
    problem = small_problem(tmp_path)
    spec = problem.trial(VPT, small_recipe())
    row = run_training(spec, tmp_path / "out", problem)
    assert (row.key, row.purpose, row.evaluation, row.failed) == (spec.key, "search", "val200", False)
    assert (row.training_images, row.evaluation_images, row.classes) == (31, 13, 3)
    assert (row.tuned_parameters, row.head_parameters) == (2 * 3 * 24, 3 * 25)
    assert row.accuracy * 13 / 100 == pytest.approx(round(row.accuracy * 13 / 100))
    assert RunTable(tmp_path / "out" / "runs.sqlite").rows() == (row,)
    left = {path.name for path in (tmp_path / "out" / "runs" / spec.key).iterdir()}
    assert "steps.csv" in left and "state.pt" not in left
    assert json.loads(row.spec)["recipe"]["base_lr"] == 1.0 and "torch" in json.loads(row.made_with)["packages"]
    monkeypatch.setattr(runs, "train", None)  # a second training would fail
    assert run_training(spec, tmp_path / "out", small_problem(tmp_path / "again")) == row


def test_a_linear_probe_reads_features_once_and_gives_what_pictures_give(tmp_path, monkeypatch):
    """Two trials of one process share what the head sees; their rows are those of the training on pictures."""
    problem, linear = small_problem(tmp_path), method_named("linear")
    specs = [problem.trial(linear, small_recipe(base_lr=rate)) for rate in (1.0, 5.0)]
    computed = []
    plain = problems.fixed_features
    monkeypatch.setattr(problems, "fixed_features", lambda *given: computed.append(1) or plain(*given))
    rows = [run_training(spec, tmp_path / "shared", problem) for spec in specs]
    assert len(computed) == 2  # one for each split, whatever the trials
    monkeypatch.setattr(runs, "can_be_fixed", lambda *_: False)
    for row, spec in zip(rows, specs, strict=True):
        alone = run_training(spec, tmp_path / "alone", small_problem(tmp_path / f"{spec.key}"))
        assert row.accuracy == alone.accuracy
        assert row.train_loss == pytest.approx(alone.train_loss, rel=1e-4)


def test_a_final_run_is_tested_and_saved(tmp_path):
    """The saved prompts, loaded on a fresh backbone, have the accuracy of the row; the costs are of one picture."""
    problem = small_problem(tmp_path)
    row = run_training(problem.final(VPT, small_recipe(base_lr=5.0)), tmp_path / "out", problem)
    assert (row.purpose, row.training, row.evaluation) == ("final", "train800val200", "test")
    assert (row.training_images, row.evaluation_images) == (SIZES["train800"] + SIZES["val200"], SIZES["test"])
    classifier, classes = load_tuned(tmp_path / "out" / "runs" / row.key / "tuned.safetensors", small_backbone())
    dataset = PictureDataset(problem.task.split("test"), problem.preprocessing, training=False)
    assert classes == ("top", "middle", "bottom")
    assert row.accuracy == pytest.approx(100 * evaluate(classifier, dataset).accuracy)
    assert row.flops_step > row.flops_forward > 0
    assert row.backbone_parameters == sum(p.numel() for p in small_backbone().parameters())


def test_a_search_reads_no_test_picture(tmp_path):
    """With the test pictures destroyed a trial gives the same row; only a final run trips over them."""
    whole, broken = small_problem(tmp_path / "a"), small_problem(tmp_path / "b")
    for picture in (tmp_path / "b" / "bars" / "images" / "test").iterdir():
        picture.write_bytes(b"no picture")
    rows = [
        run_training(p.trial(VPT, small_recipe()), tmp_path / n, p) for n, p in (("a-out", whole), ("b-out", broken))
    ]
    assert rows[0].accuracy == rows[1].accuracy and rows[0].key == rows[1].key
    with pytest.raises(InputError, match=r"test/000000\.png"):
        broken.final(VPT, small_recipe())


def test_a_loss_that_is_not_finite_is_a_row(tmp_path, monkeypatch):
    problem = small_problem(tmp_path)
    spec = problem.trial(method_named("full"), small_recipe(base_lr=1e30))
    row = run_training(spec, tmp_path / "out", problem)
    assert row.failed and row.accuracy is None and "loss" in row.message
    monkeypatch.setattr(runs, "train", None)
    assert run_training(spec, tmp_path / "out", problem) == row


def test_the_backbone_is_what_it_was(tmp_path):
    problem = small_problem(tmp_path)
    before = problem.backbone.fingerprint()
    for name in ("full", "lora", "vapt"):
        run_training(problem.trial(method_named(name), small_recipe(epochs=1)), tmp_path / "out", problem)
    assert problem.backbone.fingerprint() == before


def test_seeds_differ_and_repeat(tmp_path):
    problem = small_problem(tmp_path)
    first, second, again = (
        run_training(problem.trial(VPT, small_recipe(seed=seed)), tmp_path / folder, problem)
        for folder, seed in (("a", 42), ("a", 44), ("b", 42))
    )
    assert first.train_loss == again.train_loss != second.train_loss


def test_the_seed_draws_the_first_weights(tmp_path):
    """At a learning rate of 0 the loss over an epoch does not depend on the order, only on where the head starts."""
    problem = small_problem(tmp_path)
    specs = [problem.trial(method_named("linear"), small_recipe(base_lr=0.0, seed=seed)) for seed in (42, 44)]
    losses = [run_training(spec, tmp_path / "out", problem).train_loss for spec in specs]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_shares_are_stratified_and_stated(tmp_path):
    problem = small_problem(tmp_path, share=0.5, evaluation_share=0.4)
    trial, final = problem.trial(VPT, small_recipe()), problem.final(VPT, small_recipe())
    assert (trial.share, trial.evaluation_share, final.evaluation_share) == (0.5, 1.0, 0.4)
    row = run_training(final, tmp_path / "out", problem)
    assert (row.training_images, row.evaluation_images, row.share) == (22, 7, 0.5)
    assert run_training(trial, tmp_path / "out", problem).evaluation_images == 13


def test_tasks_with_train_val_test(tmp_path):
    problem = TuningProblem(small_backbone(), "small", small_task(tmp_path, fgvc_names=True), VTAB((16, 12)))
    row = run_training(problem.final(VPT, small_recipe(epochs=1)), tmp_path / "out", problem)
    assert (row.training, row.training_images) == ("train", 31)
    assert problem.trial(VPT, small_recipe()).evaluation == "val"


def test_random_crops_are_decoded_anew_and_others_once(tmp_path):
    problem = small_problem(tmp_path)
    assert problem.dataset("train800", 1.0, True, 1) is problem.dataset("train800", 1.0, False, 2)
    random = TuningProblem(small_backbone(), "small", problem.task, FGVC((16, 12)))
    first, second = (random.dataset("train800", 1.0, True, seed) for seed in (1, 2))
    assert not torch.equal(torch.stack([first[i][0] for i in range(7)]), torch.stack([second[i][0] for i in range(7)]))
    assert random.dataset("val200", 1.0, False, 1).deterministic


def test_another_process_at_the_same_run(tmp_path):
    problem = small_problem(tmp_path)
    spec = problem.trial(VPT, small_recipe())
    with exclusively(tmp_path / "out" / "runs" / spec.key / "lock"), pytest.raises(Busy):
        run_training(spec, tmp_path / "out", problem, wait=False)
    assert RunTable(tmp_path / "out" / "runs.sqlite").rows() == ()


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    """Killed by SIGKILL in the middle: the resumed run ends with the loss and accuracy of one undisturbed."""
    problem, recipe = small_problem(tmp_path), small_recipe(epochs=23, base_lr=2.0)
    undisturbed = run_training(problem.trial(VPT, recipe), tmp_path / "whole", problem)
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=run_and_die, args=(str(tmp_path), str(tmp_path / "killed"), recipe))
    worker.start()
    worker.join(120)
    assert worker.exitcode == -9
    epochs = list((tmp_path / "killed" / "runs" / undisturbed.key).glob("epochs.csv"))
    assert epochs and 1 < len(epochs[0].read_text().splitlines()) < 23
    resumed = run_training(problem.trial(VPT, recipe), tmp_path / "killed", problem)
    assert (resumed.accuracy, resumed.train_loss) == (undisturbed.accuracy, undisturbed.train_loss)


def run_and_die(folder, out, recipe):
    from moe_prompt.vision.data.layouts.open_task import open_task

    problem = TuningProblem(small_backbone(), "small", open_task(Path(folder) / "bars"), VTAB((16, 12)))
    seen = []

    def progress(phase, done, total, note):
        seen.append(done)
        if len(seen) == 31:
            time.sleep(0.01)
            os.kill(os.getpid(), 9)

    run_training(problem.trial(VPT, recipe), out, problem, progress)


def test_what_stops_a_run_leaves_no_row(tmp_path):
    problem = small_problem(tmp_path)
    spec = problem.trial(VPT, small_recipe())
    (tmp_path / "bars" / "images" / "val200" / "000002.png").write_bytes(b"broken")
    fresh = small_problem_at(tmp_path)
    with pytest.raises(InputError, match=r"000002\.png"):
        run_training(replace(spec, label="x"), tmp_path / "out", fresh)
    assert RunTable(tmp_path / "out" / "runs.sqlite").rows() == ()


def small_problem_at(folder):
    from moe_prompt.vision.data.layouts.open_task import open_task

    return TuningProblem(small_backbone(), "small", open_task(folder / "bars"), VTAB((16, 12)))


def test_every_method_runs(tmp_path):
    from moe_prompt.vision.methods.by_name import METHODS

    problem = small_problem(tmp_path)
    for name in METHODS:
        row = run_training(problem.final(method_named(name), small_recipe(epochs=1)), tmp_path / "out", problem)
        assert not row.failed and row.label == name
        assert row.tuned_parameters == Classifier(small_backbone(), method_named(name), 3).num_tuned()


def test_frozen_prompts_of_a_file_have_features_of_their_own(tmp_path):
    """Nothing but the head learns, as in a linear probe, but it sees other features."""
    path = tmp_path / "frozen.py"
    path.write_text(
        "from moe_prompt.attention.prompts import ConstantPrompt\n\n\n"
        "def prompt(config):\n    return ConstantPrompt(5, config.dim, bound=3.0).requires_grad_(False)\n"
    )
    problem, recipe = small_problem(tmp_path / "task"), small_recipe()
    linear = run_training(problem.trial(method_named("linear"), recipe), tmp_path / "out", problem)
    frozen = run_training(problem.trial(method_from_file(path), recipe), tmp_path / "out", problem)
    alone = run_training(
        problem.trial(method_from_file(path), recipe), tmp_path / "alone", small_problem(tmp_path / "again")
    )
    assert frozen.tuned_parameters == 0 and frozen.train_loss == alone.train_loss != linear.train_loss


def test_too_little_memory_is_a_sentence(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(runs, "train", exhausted)
    problem = small_problem(tmp_path)
    with pytest.raises(InputError, match="needs more memory than there is: raise --accumulate"):
        run_training(problem.trial(VPT, small_recipe()), tmp_path / "out", problem)


def test_a_share_says_what_it_came_to(tmp_path):
    problem = small_problem(tmp_path)
    assert problem.shares() == ()
    problem.share, problem.evaluation_share = 0.01, 0.5
    told = problem.shares()
    assert len(told) == 3 and all("so that every class keeps a picture" in sentence for sentence in told[1:])
