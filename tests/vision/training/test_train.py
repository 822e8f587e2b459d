"""Training as a whole: it learns, fails as a result, resumes to the same weights, and reports the last epoch."""

import csv
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.training.train import train
from tests.builders.small_training import COUNT, Network, Pictures, Unreadable, learned, recipe, slow_step

STEPS = 7  # of an epoch: 53 pictures in batches of 8


def test_it_learns():
    """Classes that differ in colour, linearly separable but for noise; a guess is right one time in five."""
    result = train(Network(), Pictures(), Pictures(101, seed=4), recipe(epochs=20, base_lr=2.0))
    assert result.last_test_accuracy > 0.9 and result.last_train_loss < 0.5 and not result.failed
    assert (result.epochs, result.steps) == (20, 20 * STEPS)
    assert result.seconds > 0 and result.images_per_second == pytest.approx(20 * COUNT / result.seconds)
    assert result.best_test_epoch_accuracy is None and result.best_test_epoch is None


def steps_of(folder) -> list[dict[str, str]]:
    with (folder / "steps.csv").open() as stream:
        return list(csv.DictReader(stream))


def epochs_of(folder) -> list[dict[str, str]]:
    with (folder / "epochs.csv").open() as stream:
        return list(csv.DictReader(stream))


CHANGES = {"epochs": 6}


def test_killed_three_times_it_ends_with_the_same_weights(tmp_path):
    """SIGKILL at random steps, of a training with dropout, pictures that depend on the epoch, and a test at its end."""
    undisturbed = Network()
    expected = train(undisturbed, Pictures(random=True), Pictures(29, seed=4), recipe(**CHANGES), tmp_path / "whole")
    folder, context = tmp_path / "killed", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.builders.small_training"])
    rng = np.random.default_rng(11)
    for kill in np.sort(rng.choice(np.arange(2, 6 * STEPS - 1), 3, replace=False)):
        child = context.Process(target=slow_step, args=(str(folder), CHANGES))
        child.start()
        deadline = time.monotonic() + 60
        while not ((folder / "steps.csv").exists() and len(steps_of(folder)) >= kill):
            assert time.monotonic() < deadline and child.exitcode is None
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    resumed = Network(seed=5)  # another start: everything learned comes out of the state
    result = train(resumed, Pictures(random=True), Pictures(29, seed=4), recipe(**CHANGES), folder)
    for name, weight in learned(undisturbed).items():
        assert torch.equal(learned(resumed)[name], weight), name
    assert result.last_test_accuracy == expected.last_test_accuracy
    assert result.last_train_loss == expected.last_train_loss
    for name in ("step", "epoch", "lr", "loss", "accuracy"):
        assert [row[name] for row in steps_of(folder)] == [row[name] for row in steps_of(tmp_path / "whole")]
    assert [row["train_loss"] for row in epochs_of(folder)] == [
        row["train_loss"] for row in epochs_of(tmp_path / "whole")
    ]


class Stop(Exception):
    pass


def stopped_at(step: int):
    def progress(phase, done, total, note):
        if phase == "train" and done == step:
            raise Stop

    return progress


@pytest.mark.parametrize(
    "changes",
    [{"precision": "fp16"}, {"precision": "bf16", "workers": 1}, {"optimizer": "adamw", "base_lr": 0.1}],
    ids=["fp16", "bf16", "adamw"],
)
def test_scale_and_moments_are_resumed(tmp_path, changes):
    models = [Network(), Network()]
    options = (Pictures(), None, recipe(epochs=2, **changes))
    train(models[0], *options)
    with pytest.raises(Stop):
        train(models[1], *options, tmp_path, stopped_at(10), save_steps=2)
    train(models[1], *options, tmp_path)
    assert all(torch.equal(weight, learned(models[1])[name]) for name, weight in learned(models[0]).items())
    if options[2].precision == "fp16":
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert state["scaler"]["_growth_tracker"] == 2 * STEPS  # steps since the scale last changed


def test_a_kill_during_the_last_test_loses_no_step(tmp_path):
    def in_test(phase, done, total, note):
        if phase == "test":
            raise Stop

    options = (Pictures(), Pictures(29, seed=4), recipe())
    with pytest.raises(Stop):
        train(Network(), *options, tmp_path, in_test)
    taken = []
    result = train(Network(), *options, tmp_path, lambda phase, *_: taken.append(phase))
    assert set(taken) == {"test"} and result.last_test_accuracy is not None
    assert len(steps_of(tmp_path)) == result.steps and len(epochs_of(tmp_path)) == result.epochs == 4


def test_a_finished_training_is_not_repeated(tmp_path):
    options = (Pictures(), Pictures(29, seed=4), recipe(epochs=2))
    model, again = Network(), Network(seed=8)
    result = train(model, *options, tmp_path)
    taken = []
    assert train(again, *options, tmp_path, lambda *told: taken.append(told)) == result
    assert not taken and torch.equal(model.prompt, again.prompt)


def test_the_state_is_small(tmp_path):
    model = Network()
    model.frozen = torch.nn.Parameter(torch.zeros(300_000), requires_grad=False)
    train(model, Pictures(), None, recipe(epochs=1), tmp_path)
    assert (tmp_path / "state.pt").stat().st_size < 60_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("recipe", r"another recipe \(base_lr was 0.8 and is 0.4 now\)"),
        ("model", "another model"),
        ("data", "another training set"),
        ("test", "another test set"),
    ],
)
def test_a_state_of_another_training_is_refused(tmp_path, change, says):
    train(Network(), Pictures(), Pictures(29, seed=4), recipe(epochs=1, warmup=0), tmp_path)
    with pytest.raises(InputError, match=says):
        train(
            Network(dropout=0.3 if change == "model" else 0.1),
            Pictures(seed=5 if change == "data" else 3),
            None if change == "test" else Pictures(29, seed=4),
            recipe(epochs=1, warmup=0, base_lr=0.4 if change == "recipe" else 0.8),
            tmp_path,
        )


def test_the_number_of_workers_is_no_other_training(tmp_path):
    with pytest.raises(Stop):
        train(Network(), Pictures(random=True), None, recipe(), tmp_path, stopped_at(9), save_steps=1)
    model, undisturbed = Network(), Network()
    train(model, Pictures(random=True), None, recipe(workers=2), tmp_path)
    train(undisturbed, Pictures(random=True), None, recipe())
    assert torch.equal(model.prompt, undisturbed.prompt)


class Diverging(Network):
    """Its loss is not a number from the eleventh batch on."""

    batches = 0

    def forward(self, images):
        self.batches += self.training
        return super().forward(images) * (float("nan") if self.batches > 10 else 1.0)


def test_a_loss_that_is_no_number_is_a_failed_result(tmp_path):
    """It stops at once, keeps the weights of the step before, is logged, and is not tried again."""
    model = Diverging()
    result = train(model, Pictures(), Pictures(29, seed=4), recipe(), tmp_path)
    assert result.failed and result.last_test_accuracy is None and result.steps == 11
    assert result.message == "the loss was nan in step 11 (epoch 2): lower base_lr (0.8)."
    assert all(weight.isfinite().all() for weight in learned(model).values())
    assert [row["loss"] for row in steps_of(tmp_path)][-1] == "nan"
    again = train(Diverging(), Pictures(), Pictures(29, seed=4), recipe(), tmp_path, pytest.fail)
    assert again.failed and again.message == result.message


def test_a_huge_rate_fails_and_does_not_crash():
    result = train(Network(), Pictures(), Pictures(29, seed=4), recipe(base_lr=1e38, epochs=3))
    assert result.failed and "lower base_lr (1e+38)" in result.message and result.last_test_accuracy is None


def test_best_test_epoch_is_apart_from_the_result(tmp_path):
    result = train(Network(), Pictures(), Pictures(101, seed=4), recipe(epochs=5), tmp_path, test_every=2)
    curve = {int(row["epoch"]): row["test_accuracy"] for row in epochs_of(tmp_path)}
    assert [epoch for epoch, accuracy in curve.items() if accuracy] == [2, 4, 5]
    accuracies = {epoch: float(accuracy) for epoch, accuracy in curve.items() if accuracy}
    assert result.last_test_accuracy == pytest.approx(accuracies[5], rel=1e-6)
    assert result.best_test_epoch_accuracy == pytest.approx(max(accuracies.values()), rel=1e-6)
    assert accuracies[result.best_test_epoch] == max(accuracies.values())


def test_first_epoch_is_idle_only_by_the_released_switch():
    def moved(**changes) -> bool:
        model = Network()
        train(model, Pictures(), None, recipe(epochs=1, warmup=1, **changes))
        return not torch.equal(model.prompt, Network().prompt)

    assert moved() and moved(lr_per_step=True) and not moved(zero_first_epoch=True)


def test_frozen_parameters_and_the_callers_random_numbers_stay():
    model, before, pictures = Network().eval(), Network(), Pictures()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(model, pictures, None, recipe(epochs=2))
    assert torch.equal(pictures.images, Pictures().images)
    assert torch.equal(torch.rand(2), expected) and not model.training
    assert torch.equal(model.embed.weight, before.embed.weight) and not torch.equal(model.prompt, before.prompt)


def test_the_seed_is_all_that_chooses():
    def weights(seed: int) -> torch.Tensor:
        model = Network()
        train(model, Pictures(random=True), None, recipe(seed=seed, epochs=1))
        return model.prompt

    torch.manual_seed(1)
    first = weights(1)
    torch.manual_seed(2)
    assert torch.equal(weights(1), first) and not torch.equal(weights(2), first)


def test_log_has_a_row_per_step(tmp_path):
    result = train(Network(), Pictures(), Pictures(29, seed=4), recipe(epochs=3, warmup=1), tmp_path, tensorboard=True)
    rows = steps_of(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(1, 3 * STEPS + 1))
    rates = [0.8 * 8 / 256 * factor for factor in (0.5, 1.0, 0.5)]
    assert [float(row["lr"]) for row in rows[::STEPS]] == pytest.approx(rates)
    last = [float(row["loss"]) for row in rows[-STEPS:]]
    sizes = [8] * 6 + [5]
    assert np.average(last, weights=sizes) == pytest.approx(result.last_train_loss, rel=1e-5)
    assert sum(float(row["seconds"]) for row in rows) == pytest.approx(result.seconds, rel=1e-3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_progress_counts_steps(tmp_path):
    seen = []
    train(Network(), Pictures(), None, recipe(epochs=2), progress=lambda *told: seen.append(told[:3]))
    assert seen == [("train", step, 2 * STEPS) for step in range(1, 2 * STEPS + 1)]


def test_unusable_input_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="training set has no pictures"):
        train(Network(), Pictures(count=0), None, recipe())
    with pytest.raises(InputError, match="nothing to learn"):
        train(Network().requires_grad_(False), Pictures(), None, recipe())
    with pytest.raises(InputError, match="000017"):
        train(Network(), Unreadable(), None, recipe(), tmp_path / "unreadable")
    with pytest.raises(InputError, match="got label"):
        train(Network(), Pictures(classes=9), None, recipe())


def test_denormals_are_zero_while_it_trains():
    seen = []

    class Watching(Network):
        def forward(self, images):
            seen.append(float(torch.tensor(1e-30) * torch.tensor(1e-10)))
            return super().forward(images)

    train(Watching(), Pictures(), Pictures(11, seed=4), recipe(epochs=1))
    assert set(seen) == {0.0}
