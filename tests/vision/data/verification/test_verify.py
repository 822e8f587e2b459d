"""Each thing that verify looks for, planted once in a sound folder; a sound folder is sound."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_prompt.errors import InputError
from moe_prompt.vision.data import benchmarks
from moe_prompt.vision.data.benchmarks import KNOWN_TASKS
from moe_prompt.vision.data.verification.verify import verify
from tests.builders.planted_tasks import COUNTS, pixels, relabel, save, vtab


def only(sentences, says: str) -> str:
    """The one sentence there is, which says this."""
    assert len(sentences) == 1, sentences
    assert re.search(says, sentences[0]), sentences[0]
    return sentences[0]


@pytest.fixture
def folder(tmp_path):
    return vtab(tmp_path / "mine")


def test_a_sound_task(folder):
    report = verify(folder)
    assert report.ok and report.problems == report.warnings == ()
    assert report.counts == {**COUNTS, "train800val200": 18} and report.decoded == COUNTS and report.classes == 3
    only(report.notes, "mine is none of the 24 published tasks")
    assert report.sentence() == f"{folder} is sound." and "test" in report.render()
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_what_cannot_be_opened_is_a_problem_too(tmp_path):
    report = verify(tmp_path / "absent")
    assert not report.ok and only(report.problems, "absent does not exist")
    assert report.sentence().startswith(f"{tmp_path / 'absent'} has a problem: ") and "problem: " in report.render()
    with pytest.raises(InputError, match="most = 0"):
        verify(tmp_path, most=0)


def test_all_faults_are_told_at_once(folder):
    relabel(folder / "val200.txt", 1, 7)
    (folder / "images/test/000004.png").unlink()
    (folder / "images/test/000005.png").write_text("no picture")
    whole = (folder / "images/train800/000001.png").read_bytes()
    (folder / "images/train800/000001.png").write_bytes(whole[:-40])
    report = verify(folder)
    told = " ".join(report.problems)
    assert len(report.problems) == 5 and not report.ok
    for says in (
        "val200.txt gives .* the label 7",
        "test/000004.png, listed in .*test.txt, does not exist",
        "test/000005.png cannot be read as a picture",
        "train800/000001.png cannot be read as a picture",
        "train800val200.txt is not the union of",
    ):
        assert re.search(says, told), told


def test_copies_in_two_splits(folder):
    """The same bytes, the same pixels in another encoding, and not a picture that is merely alike."""
    (folder / "images/test/000003.png").write_bytes((folder / "images/train800/000006.png").read_bytes())
    save(folder / "images/test/000004.png", pixels(5), format="BMP")
    save(folder / "images/test/000006.png", pixels(1) ^ (np.arange(7 * 11 * 3) == 9).reshape(7, 11, 3))
    report = verify(folder)
    says = only(report.problems, "test/000003.png have the same pixels: 2 of the pictures looked at in .*test.txt are")
    assert "train800/000006.png" in says and "1 of them with another label" in says  # 5 % 3 is not 4 % 3


def test_a_union_shares_pictures_with_its_parts(folder):
    """Without val200.txt the union is looked at whole; that it repeats train800 is no fault."""
    (folder / "val200.txt").unlink()
    save(folder / "images/val200/000003.png", pixels(0))
    report = verify(folder)
    assert report.ok and report.decoded["train800val200"] == 18
    only(report.warnings, "train800val200.txt are one of 1 group")


def test_turned_shapes_are_no_copies(folder):
    """The same bytes in another shape are another picture."""
    flat = np.arange(7 * 11 * 3, dtype=np.uint8)
    save(folder / "images/test/000000.png", flat.reshape(11, 7, 3))
    save(folder / "images/train800/000000.png", flat.reshape(7, 11, 3))
    assert verify(folder).ok


def test_files_listed_twice(folder):
    lines = (folder / "test.txt").read_text().splitlines()
    lines[0] = "images/../images/train800/000000.png 0"
    lines[1] = lines[4]
    (folder / "test.txt").write_text("\n".join(lines))
    report = verify(folder)
    assert len(report.problems) == 2
    assert re.search(r"test/000004.png is listed twice in .*test.txt:", report.problems[0])
    assert re.search(r"train800/000000.png is listed both in .*train800.txt and in .*test.txt:", report.problems[1])


def test_copies_within_a_split(folder):
    save(folder / "images/test/000003.png", pixels(2000))
    save(folder / "images/test/000004.png", pixels(2000))
    says = only(
        verify(folder).warnings, "3 pictures of .*test.txt are one of 1 group of equal ones, and 1 of the 1 groups"
    )
    assert "test/000000.png and " in says


@pytest.mark.parametrize(
    ("picture", "note"),
    [
        (Image.new("CMYK", (11, 7), (0, 90, 200, 10)), "CMYK"),
        (Image.fromarray(pixels(0)[..., 0].astype(np.uint16) * 200), "16-bit grey"),
        (Image.fromarray(pixels(0)).quantize(16), "palette"),
        (Image.new("RGBA", (11, 7), (0, 90, 200, 10)), "transparent"),
    ],
)
def test_what_had_to_be_converted_is_told(folder, picture, note):
    for index in (2, 5):
        save(folder / f"images/test/{index:06d}.png", picture, format="TIFF" if picture.mode == "CMYK" else "PNG")
    report = verify(folder)
    assert report.ok
    assert re.search(rf"test/000002.png in \S*test.txt is .*{note}.*, and so is 1 other", report.warnings[0])


def test_floating_point_is_a_problem(folder):
    save(folder / "images/test/000002.png", Image.fromarray(pixels(0)[..., 0].astype(np.float32)), format="TIFF")
    only(verify(folder).problems, "test/000002.png holds numbers of mode F")


def test_large_sets_are_sampled_and_it_is_said(folder):
    report = verify(folder, most=11, seed=3)
    assert report.ok and report.decoded == {"train800": 11, "val200": 5, "test": 11}
    assert "11 of the 17 pictures" in " ".join(report.notes) and "drawn with seed 3" in report.notes[1]
    assert len(report.notes) == 3
    listed = (folder / "test.txt").read_text().replace("images/test/000007.png", "images/train800/000007.png")
    (folder / "test.txt").write_text(listed)
    only(verify(folder, most=1).problems, "listed both")  # paths are compared for all


def test_known_counts_and_classes(folder, monkeypatch):
    """The planted folder under a name that stands for its own counts, then for others."""
    counts = {**COUNTS, "train800val200": 18}
    mine = replace(KNOWN_TASKS["svhn"], name="mine", title="Mine", classes=3, counts=counts, side=None, aliases=())
    monkeypatch.setattr(benchmarks, "KNOWN_TASKS", {"mine": mine})
    assert verify(folder).ok and verify(folder).notes == ()
    monkeypatch.setattr(benchmarks, "KNOWN_TASKS", {"mine": replace(mine, counts={**counts, "test": 26_032})})
    only(verify(folder).problems, r"test.txt has 17 pictures: Mine has 26,032 there \(arXiv 1910.04867\)")
    (folder / "val200.txt").unlink()
    monkeypatch.setattr(benchmarks, "KNOWN_TASKS", {"mine": replace(mine, classes=4)})
    problems = verify(folder).problems
    assert "lacks the split val200 of Mine" in problems[0] and len(problems) == 1
    (folder / "classes.txt").write_text("a\nb\nc\n")
    assert "has 3 classes: Mine has 4" in verify(folder).problems[1]


@pytest.mark.parametrize(
    ("name", "says"), [("cifar", "is lossless, so this is a lossy"), ("dtd", "zips in circulation")]
)
def test_lossy_zips_in_circulation(tmp_path, monkeypatch, name, says):
    known = replace(KNOWN_TASKS[name], classes=3, counts={}, side=None)
    monkeypatch.setattr(benchmarks, "KNOWN_TASKS", {name: known})
    report = verify(vtab(tmp_path / name, ".jpg", quality=90))
    assert report.ok and len(report.warnings) == 3
    assert re.search(rf"test/000000.jpg in \S*test.txt .*and so are 16 others.*{says}|{says}", report.warnings[2])
    assert says in report.warnings[2]
    assert not verify(vtab(tmp_path / "png" / name)).warnings


def test_sizes(tmp_path, monkeypatch):
    known = replace(KNOWN_TASKS["cifar"], classes=3, counts={}, side=(11, 7))
    monkeypatch.setattr(benchmarks, "KNOWN_TASKS", {"cifar": known})
    folder = vtab(tmp_path / "cifar")
    assert not verify(folder).warnings
    save(folder / "images/test/000002.png", pixels(0, 5, 6))
    only(verify(folder).warnings, r"test/000002.png in \S*test.txt is 6 x 5: .* are 11 x 7, and 1 here are not")


def test_twins_of_the_original_are_warned_of(tmp_path, monkeypatch):
    known = replace(KNOWN_TASKS["dsprites_ori"], classes=3, counts={}, side=None)
    monkeypatch.setattr(benchmarks, "KNOWN_TASKS", {"dsprites_ori": known})
    folder = vtab(tmp_path / "dsprites_ori")
    save(folder / "images/test/000003.png", pixels(6))
    report = verify(folder)
    assert report.ok and only(report.warnings, "have the same pixels")


def test_lacking_classes_are_warned_of(folder):
    (folder / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    report = verify(folder)
    assert report.ok and len(report.warnings) == 4
    assert re.search(r"train800.txt has no picture of 1 of the 4 classes \(dog\)", report.warnings[0])


def test_fgvc_and_arrays_are_verified_too(tmp_path):
    for split, first in (("train", 0), ("val", 20), ("test", 40)):
        for index in range(3):
            save(tmp_path / f"cars/{split}/{index}.png", pixels(first + index))
        listed = {f"{split}/{index}.png": index + 1 for index in range(3)}
        (tmp_path / f"cars/{split}.json").write_text(json.dumps(listed))
    problems = verify(tmp_path / "cars").problems
    assert len(problems) == 4 and "7,329" in problems[0] and "has 3 classes: Stanford Cars has 196" in problems[3]
    images = np.stack([pixels(index) for index in range(6)])
    images[5] = images[0]
    np.savez(
        tmp_path / "mine.npz", train_images=images[:4], train_labels=[0, 1, 0, 1], x_test=images[4:], y_test=[0, 1]
    )
    report = verify(tmp_path / "mine.npz")
    only(report.problems, r"picture 0 of train_images in \S*mine.npz and picture 1 of x_test .* with another label")
