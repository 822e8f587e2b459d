"""Shares of a split: exact totals, no class lost, nested, and nothing but the seed decides."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.data.pictures import ArrayPictures
from moe_prompt.vision.data.subsets import TRAINING_SHARES, stratified_fraction, with_validation
from moe_prompt.vision.data.tasks import Task, TaskSplit
from moe_prompt.vision.tuning.run_spec import FINAL, SEARCH, protocol_of


def split(labels) -> TaskSplit:
    labels = np.asarray(labels, np.int64)
    marks = np.arange(len(labels), dtype=np.int64).astype(np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return TaskSplit("train", ArrayPictures(marks, "marks.npy"), labels, "train.txt")


def uneven(classes: int = 7, seed: int = 0) -> TaskSplit:
    counts = [101, 61, 37, 23, 11, 5, 2][:classes]
    labels = np.repeat(np.arange(classes), counts)
    return split(np.random.default_rng(seed).permutation(labels))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 1.0])
def test_counts_of_every_class(share):
    whole = uneven()
    part = stratified_fraction(whole, share, seed=1, classes=7)
    assert len(part.split) == np.floor(share * len(whole) + 0.5) and not part.missing and part.kept == tuple(range(7))
    for label in range(7):
        number, wanted = (part.split.labels == label).sum(), share * (whole.labels == label).sum()
        assert abs(number - wanted) < 2 and number >= 1
    assert len(part.split) + len(part.rest) == len(whole)


def names(some: TaskSplit) -> list[str]:
    return [some.pictures.named(index) for index in range(len(some))]


def test_shares_are_nested_in_order_and_disjoint_from_the_rest():
    whole = uneven()
    parts = [stratified_fraction(whole, share, seed=5, classes=7) for share in TRAINING_SHARES]
    for small, large in pairwise(parts):
        assert set(names(small.split)) < set(names(large.split))
    for part in parts:
        assert sorted(names(part.split) + names(part.rest)) == sorted(names(whole))
        places = [int(name.split()[1]) for name in names(part.split)]
        assert places == sorted(places) and part.split.labels.tolist() == whole.labels[places].tolist()
    assert names(parts[-1].split) == names(whole)


@pytest.mark.parametrize("seed", range(20))
def test_no_class_is_lost_at_one_per_cent(seed):
    """Fault of released pipelines: 1 % of Stanford Dogs, 90 pictures a class, without some of the 120 classes."""
    dogs = split(np.random.default_rng(seed).permutation(np.repeat(np.arange(120), 90)))
    part = stratified_fraction(dogs, 0.01, seed, 120)
    assert np.bincount(part.split.labels, minlength=120).min() == 1 and len(part.split) == 120
    assert part.share == 120 / 10800 and not part.missing
    assert part.sentence() == (
        "120 of 10800 pictures of train.txt, 1.11% instead of 1.00% so that every class keeps a picture."
    )


def test_classes_without_pictures_are_told():
    part = stratified_fraction(split([0, 0, 2, 2, 2, 4]), 0.5, 0, 6)
    assert part.kept == (0, 2, 4) and part.missing == (1, 3, 5)
    assert part.sentence() == "3 of 6 pictures of train.txt; no picture of the classes 1, 3, 5."


def test_only_the_seed_decides():
    whole = uneven()
    again, other = (stratified_fraction(whole, 0.3, seed, 7) for seed in (5, 6))
    assert names(stratified_fraction(whole, 0.3, 5, 7).split) == names(again.split) != names(other.split)
    one_more_class = split([*whole.labels, 7, 7, 7])
    kept = set(names(stratified_fraction(one_more_class, 0.3, 5, 8).split))
    assert len(kept ^ set(names(again.split))) <= 6  # the new class, and a picture or two where the cut falls


def test_classes_are_shuffled_apart():
    whole = split(np.repeat([0, 1], 50))
    kept = [int(name.split()[1]) for name in names(stratified_fraction(whole, 0.5, 0, 2).split)]
    assert {place for place in kept if place < 50} != {place - 50 for place in kept if place >= 50}


def test_the_picture_too_many_goes_to_any_class():
    """Half of six classes of three pictures: three classes keep two, by lot. False alarm below 1e-5."""
    whole = split(np.repeat(np.arange(6), 3))
    counts = [np.bincount(stratified_fraction(whole, 0.5, seed, 6).split.labels) for seed in range(400)]
    assert np.abs(np.mean(counts, axis=0) - 1.5).max() < 5 * 0.5 / np.sqrt(400)


def test_every_picture_is_as_likely():
    """Counts over seeds within five standard errors of the share: false alarm below 1e-4 for all 40 pictures."""
    whole = split(np.repeat([0, 1], [30, 10]))
    counts = np.zeros(40)
    for seed in range(1000):
        for name in names(stratified_fraction(whole, 0.3, seed, 2).split):
            counts[int(name.split()[1])] += 1
    for label in (0, 1):
        of_class = counts[whole.labels == label] / 1000
        assert np.abs(of_class - of_class.mean()).max() < 5 * np.sqrt(0.21 / 1000)
    assert counts.sum() == 1000 * 12


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_impossible_shares(share):
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        stratified_fraction(uneven(), share, 0, 7)
    with pytest.raises(InputError, match=r"train.txt needs pictures with labels from 0 to 2"):
        stratified_fraction(uneven(), 0.5, 0, 3)


def test_a_task_without_validation_gets_a_fifth_of_its_training_pictures():
    whole = uneven()
    task = with_validation(Task("mine", tuple("abcdefg"), {"train": whole, "test": split(range(7))}, Path("here")))
    assert task.splits["train"] is whole and set(task.splits) == {"train80", "val", "train", "test"}
    left, taken = names(task.splits["train80"]), names(task.splits["val"])
    assert sorted(left + taken) == sorted(names(whole)) and len(taken) == round(0.2 * len(whole))
    assert set(task.splits["train80"].labels.tolist()) == set(range(7))
    protocol = protocol_of(tuple(task.splits), "here")
    assert protocol.splits(SEARCH) == ("train80", "val") and protocol.splits(FINAL) == ("train", "test")


@pytest.mark.parametrize(
    "there", [("train", "val", "test"), ("train800", "val200", "train800val200", "test"), ("train",)]
)
def test_any_other_task_stays_as_it_is(there):
    task = Task("mine", tuple("abcdefg"), dict.fromkeys(there, uneven()), Path("here"))
    assert with_validation(task) is task
