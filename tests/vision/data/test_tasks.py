"""What makes a task unusable, each fault planted once; a sound task has none."""

import re
from pathlib import Path

import numpy as np
import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.data.pictures import ArrayPictures, FilePictures
from moe_prompt.vision.data.tasks import Task, TaskSplit, faults, numbered_classes


def split(name: str, labels: list[int], pictures=None) -> TaskSplit:
    grey = np.zeros((len(labels), 2, 3), np.uint8)
    return TaskSplit(name, pictures or ArrayPictures(grey, f"{name}.npy"), np.array(labels, np.int64), f"{name}.txt")


def task(name: str = "mine", classes: int = 3, layout: str = "vtab", **labels: list[int]) -> Task:
    splits = {each: split(each, those) for each, those in labels.items()}
    return Task(name, tuple("abcdefghij"[:classes]), splits, Path(name), layout)


def test_a_sound_task_has_no_fault():
    assert list(faults(task(train=[0, 1, 2], val=[2], test=[0, 1]))) == []
    assert list(faults(task(test=[0, 1]))) == []  # nothing to be compared with


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"train": [0, 1, 2], "test": []}, "test.txt holds no pictures"),
        ({"train": [0, 3, 2], "test": [0]}, "train.txt gives picture 1 of train.npy the label 3, out of range"),
        ({"train": [0, 1, 2], "test": [-1, 5]}, r"test.txt gives picture 0 .* the label -1, .*\(2 labels are\)"),
        (
            {"train": [0, 1], "test": [1, 2]},
            r"test.txt holds pictures of 1 class that no training split has \(c; pict.* 1",
        ),
        ({"train": [0], "val": [2, 1], "test": [0]}, r"val.txt holds pictures of 2 classes .*\(b, c;"),
    ],
)
def test_each_fault_is_told_once(labels, says):
    (fault,) = faults(task(**labels))
    assert re.search(says, fault), fault
    assert fault.startswith(tuple(f"{name}.txt" for name in labels))


def test_missing_files(tmp_path):
    (tmp_path / "there.png").touch()
    files = FilePictures(tmp_path, ["there.png", "one.png", "deep/two.png"])
    broken = Task("mine", ("a",), {"test": split("test", [0, 0, 0], files)}, tmp_path, "vtab")
    (fault,) = faults(broken)
    assert fault.startswith(f"{tmp_path / 'one.png'}, listed in test.txt, does not exist (2 of its files do not)")


def test_validation_drawn_apart_may_hold_what_training_as_a_whole_holds():
    """A class in val200 and not in train800 is in train800val200: no gap for the classifier that is reported."""
    assert not list(faults(task(train800=[0, 1], val200=[2], train800val200=[0, 1, 2], test=[2])))
    assert list(faults(task(train800=[0, 1], val200=[2], test=[1])))


def test_sun397_alone_may_have_gaps():
    """1,000 pictures of 397 classes: the task as published does not hold them all."""
    labels = {"train800": [0], "val200": [0], "train800val200": [0, 0], "test": [1]}
    assert not list(faults(task("sun397", **labels)))
    assert list(faults(task("cifar", **labels)))


def test_numbered_classes_end_at_the_first_hole():
    assert numbered_classes([np.array([0, 2, 1]), np.array([1])]) == ("0", "1", "2")
    assert numbered_classes([np.array([0, 1]), np.array([3, -1])]) == ("0", "1")
    assert numbered_classes([np.array([1, 2])]) == () and numbered_classes([]) == ()


def test_split_by_name_and_chosen():
    whole = task(train=[0, 1, 2], test=[2])
    assert whole.split("train").chosen([2, 0]).labels.tolist() == [2, 0]
    assert whole.split("train").chosen([2, 0]).pictures.named(0) == "picture 2 of train.npy"
    with pytest.raises(
        InputError, match="unknown split of mine 'tset': choose one of train, test; did you mean 'test'"
    ):
        whole.split("tset")
