"""Sequences of pictures: what they hold, what they say of missing files, and what of them is sent to workers."""

import pickle
import re

import numpy as np
import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.data.pictures import ArrayPictures, FilePictures

HEIGHT, WIDTH = 5, 7


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    pictures = FilePictures(tmp_path, ["notes.png", "empty.png", "folder.png", "absent.png"])
    for index, says in enumerate(["it is no picture", "it is no picture", "cannot be read", "does not exist"]):
        with pytest.raises(InputError, match=f"^{re.escape(pictures.named(index))} .*{says}"):
            pictures[index]
    assert pictures.missing() == [3]
    assert pictures.chosen([3, 0, 3]).missing() == [0, 2]


def test_arrays_grey_and_rgb():
    grey = np.random.default_rng(6).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    assert (np.asarray(ArrayPictures(grey, "a")[2]) == grey[2][..., None]).all()
    assert (np.asarray(ArrayPictures(grey[..., None], "a")[1]) == grey[1][..., None]).all()
    colour = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    assert (np.asarray(ArrayPictures(colour, "a")[-1]) == colour[-1]).all()
    assert ArrayPictures(grey, "digits.npz").named(2) == "picture 2 of digits.npz"
    for wrong in (grey.astype(np.float32), grey[0], np.zeros((2, 3, 4, 5), np.uint8)):
        with pytest.raises(InputError, match=r"^digits\.npz needs pictures as uint8"):
            ArrayPictures(wrong, "digits.npz")


def test_chosen_pictures_and_the_end_of_the_sequence():
    grey = np.random.default_rng(7).integers(0, 256, (11, HEIGHT, WIDTH), dtype=np.uint8)
    part = ArrayPictures(grey, "a").chosen([7, 3, 5]).chosen(np.array([2, 0]))
    assert len(part) == 2 and part.named(0) == "picture 5 of a"
    assert [np.asarray(picture)[0, 0, 0] for picture in part] == [grey[5, 0, 0], grey[7, 0, 0]]
    assert len(list(ArrayPictures(grey, "a"))) == 11


def test_a_mapped_array_is_sent_to_workers_by_its_name(tmp_path):
    grey = np.random.default_rng(8).integers(0, 256, (101, 31, 37), dtype=np.uint8)
    for order in "CF":
        np.save(tmp_path / "grey.npy", np.asarray(grey, order=order))
        mapped = ArrayPictures(np.load(tmp_path / "grey.npy", mmap_mode="r"), "grey.npy")
        sent = pickle.dumps(mapped)
        assert len(sent) < 1000
        assert (np.asarray(pickle.loads(sent)[100])[..., 0] == grey[100]).all()
