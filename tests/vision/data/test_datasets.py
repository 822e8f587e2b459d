"""Bytes and labels as the preprocessing says, the same from disk, from memory and from workers."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from moe_prompt.errors import InputError
from moe_prompt.vision.data.datasets import PictureDataset, in_memory
from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.data.preprocessing import FGVC, VTAB, Preprocessing, draw_for
from tests.builders.planted_tasks import COUNTS, vtab

RANDOM = Preprocessing((5, 7), shorter=11, crop="random", flip=True)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return open_task(vtab(tmp_path_factory.mktemp("data") / "mine")).split("train800")


def test_a_picture_is_bytes_and_a_label(split):
    dataset = PictureDataset(split, VTAB((7, 11)), training=True)
    assert len(dataset) == COUNTS["train800"] and dataset.deterministic
    for index in (0, 12):
        pixels, label = dataset[index]
        assert pixels.dtype == torch.uint8 and label == index % 3
        assert (pixels.movedim(0, -1).numpy() == np.asarray(split.pictures[index])).all()
    images, labels = dataset.batch([12, 0])
    assert images.shape == (2, 3, 7, 11) and labels.tolist() == [0, 0] and torch.equal(images[1], dataset[0][0])


def test_crops_are_those_of_the_coordinates(split):
    dataset = PictureDataset(split, RANDOM, training=True, seed=3)
    assert not dataset.deterministic
    dataset.set_epoch(5)
    expected = RANDOM.cropped(RANDOM.resized(split.pictures[4]), draw_for(3, 5, 4))
    assert torch.equal(dataset[4][0], expected)
    dataset.set_epoch(6)
    assert not torch.equal(dataset[4][0], expected)
    test = PictureDataset(split, RANDOM, training=False, seed=3)
    assert test.deterministic and torch.equal(test[4][0], RANDOM.cropped(RANDOM.resized(split.pictures[4]), None))


@pytest.mark.parametrize("preprocessing", [VTAB((13, 17)), RANDOM, FGVC(14)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_memory_changes_nothing(split, preprocessing, training, threads):
    """Also not in the second epoch: what is kept is never written to."""
    on_disk = PictureDataset(split, preprocessing, training, seed=2)
    on_disk.set_epoch(3)
    kept = in_memory(on_disk, threads=threads)
    assert torch.equal(kept[2][0], on_disk[2][0])
    assert kept.deterministic == on_disk.deterministic and in_memory(kept) is kept
    for epoch in (0, 7, 0):
        on_disk.set_epoch(epoch)
        kept.set_epoch(epoch)
        for index in range(len(split)):
            assert torch.equal(kept[index][0], on_disk[index][0]) and kept[index][1] == on_disk[index][1]
        for ours, theirs in zip(kept.batch([5, 3]), on_disk.batch(torch.tensor([5, 3])), strict=True):
            assert torch.equal(ours, theirs)
    if kept.deterministic:
        assert kept.images.dtype == torch.uint8 and kept.images.shape == (len(split), 3, *preprocessing.size)
    else:
        with pytest.raises(InputError, match="at random"):
            _ = kept.images


@pytest.mark.parametrize("preprocessing", [VTAB((13, 17)), RANDOM])
def test_memory_has_a_limit(split, preprocessing):
    dataset = PictureDataset(split, preprocessing, training=True)
    needed = sum(preprocessing.resized(picture).nelement() for picture in split.pictures)
    assert len(in_memory(dataset, most_bytes=needed)) == len(split)
    with pytest.raises(InputError, match="leave them on disk"):
        in_memory(dataset, most_bytes=needed - 1)


def test_a_whole_vtab_test_set_is_refused_as_float_and_kept_as_bytes(split):
    """Fault of released pipelines: 73,728 pictures of 224 x 224 as float32, 44 GB; bytes are a quarter."""
    tested = PictureDataset(split, VTAB((224, 224)), training=False)
    kept = in_memory(tested)
    assert kept.images.untyped_storage().nbytes() == len(split) * 3 * 224 * 224
    with pytest.raises(InputError, match="allowed"):
        in_memory(PictureDataset(split.chosen(np.zeros(73_728, np.int64)), VTAB(224), training=False))


@pytest.mark.parametrize("keep", [False, True])
def test_workers_change_nothing(split, keep):
    dataset = PictureDataset(split, RANDOM, training=True, seed=1)
    dataset = in_memory(dataset) if keep else dataset
    dataset.set_epoch(4)
    here = [dataset[index] for index in range(len(split))]
    from_workers = [
        item for batch in DataLoader(dataset, batch_size=4, num_workers=2) for item in zip(*batch, strict=True)
    ]
    assert len(from_workers) == len(here)
    for (image, label), (other, other_label) in zip(here, from_workers, strict=True):
        assert torch.equal(image, other) and label == int(other_label)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[3][0], here[3][0])
