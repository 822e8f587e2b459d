"""A written task is read back pixel for pixel, whole or not at all."""

from collections.abc import Iterator

import numpy as np
import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.data.writing import write_vtab_task
from tests.builders.planted_tasks import COUNTS, labels, pixels


def planted() -> dict:
    return {
        split: ([pixels(100 * place + index) for index in range(count)], labels(count))
        for place, (split, count) in enumerate(COUNTS.items())
    }


def test_written_and_read_back(tmp_path):
    folder = write_vtab_task(tmp_path / "deep" / "mine", planted(), ["ant", "bee hive", "çat"])
    task = open_task(folder)
    assert task.classes == ("ant", "bee hive", "çat") and task.layout == "vtab"
    for split, (pictures, given) in planted().items():
        assert task.split(split).labels.tolist() == given
        for ours, theirs in zip(pictures, task.split(split).pictures, strict=True):
            assert (np.asarray(theirs) == ours).all()
    assert (folder / "test.txt").read_text().splitlines()[4] == "images/test/000004.png 1"
    both = [(folder / f"{part}.txt").read_text() for part in ("train800", "val200")]
    assert (folder / "train800val200.txt").read_text() == "".join(both)
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["test", "train800", "val200"]
    assert [path.name for path in tmp_path.joinpath("deep").iterdir()] == ["mine"]


def test_grey_pictures_stay_grey(tmp_path):
    grey = pixels(3)[..., 0]
    folder = write_vtab_task(tmp_path / "mine", {"train": ([grey], [0]), "test": (iter([grey]), iter([0]))})
    decoded = open_task(folder).split("test").pictures.decoded(0)
    assert decoded.mode == "L" and decoded.format == "PNG" and (np.asarray(decoded.picture)[..., 0] == grey).all()
    assert not (folder / "classes.txt").exists()


def test_one_picture_in_memory_at_a_time(tmp_path):
    """Each picture is on disk before the next is asked for, and the folder is renamed, not copied, when all are."""
    files: set[int] = set()

    def stream() -> Iterator[np.ndarray]:
        for index in range(5):
            written = list(tmp_path.glob(".mine.partial-*/images/train/*.png"))
            assert len(written) == index
            files.update(path.stat().st_ino for path in written)
            assert not list(tmp_path.glob("**/*.txt"))
            yield pixels(index)

    write_vtab_task(tmp_path / "mine", {"train": (stream(), labels(5))})
    assert len(open_task(tmp_path / "mine").split("train")) == 5
    assert files < {path.stat().st_ino for path in (tmp_path / "mine/images/train").iterdir()}


@pytest.mark.parametrize(
    ("pictures", "given", "says"),
    [
        ([pixels(0)], [], "more pictures than its 0 labels"),
        ([pixels(0)], [0, 1], "more labels than its 1 pictures"),
        ([], [], "has no pictures"),
        ([pixels(0).astype(np.float32)], [0], "picture 0 of split test needs to be uint8"),
        ([pixels(0)[..., :2]], [0], "picture 0 of split test needs"),
        ([pixels(0), pixels(1)], [0, 3], "picture 1 of split test has the label 3, out of range"),
        ([pixels(0)], [-1], "picture 0 of split test has the label -1"),
    ],
)
def test_nothing_is_left_of_a_task_that_is_wrong(tmp_path, pictures, given, says):
    with pytest.raises(InputError, match=says):
        write_vtab_task(tmp_path / "mine", {**planted(), "test": (pictures, given)}, ["ant", "bee", "cat"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_task_that_is_interrupted(tmp_path):
    def interrupted() -> Iterator[np.ndarray]:
        yield pixels(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_vtab_task(tmp_path / "mine", {"train": (interrupted(), [0, 1])})
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(InputError, match="mine is there already"):
        write_vtab_task(tmp_path / "mine", planted())
    assert [path.name for path in tmp_path.glob("**/*")] == ["mine", "notes"]
    with pytest.raises(InputError, match=r"cannot write .*notes/mine"):
        write_vtab_task(tmp_path / "mine" / "notes" / "mine", planted())
    with pytest.raises(InputError, match="names of classes"):
        write_vtab_task(tmp_path / "other", planted(), ["ant", "bee\nhive", "cat"])
    (tmp_path / "empty").mkdir()
    assert open_task(write_vtab_task(tmp_path / "empty", planted())).classes == ("0", "1", "2")
