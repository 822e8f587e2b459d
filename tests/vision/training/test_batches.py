"""Which pictures a step sees: of the seed, the epoch and the step alone; and that reading changes nothing."""

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.training.batches import BatchSource, evaluation_keys, labels_of, to_input, training_keys
from tests.builders.small_training import COUNT, Pictures, Unreadable

BATCH = 8


def test_every_picture_once_an_epoch_and_the_last_batch_is_kept():
    keys = list(training_keys(COUNT, BATCH, seed=1, epoch=0))
    assert [len(key.indices) for key in keys] == [8] * 6 + [5] == [key.size for key in keys]
    assert sorted(index for key in keys for index in key.indices) == list(range(COUNT))


def test_order_is_of_the_seed_and_the_epoch():
    orders = {
        (seed, epoch): next(training_keys(COUNT, COUNT, seed, epoch)).indices for seed in (1, 2) for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert next(training_keys(COUNT, COUNT, 2, 1)).indices == orders[2, 1]


def test_skipping_gives_the_rest_of_the_epoch():
    assert list(training_keys(COUNT, BATCH, 1, 2, skip=3)) == list(training_keys(COUNT, BATCH, 1, 2))[3:]
    assert not list(training_keys(COUNT, BATCH, 1, 2, skip=7))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_the_same_batches(world):
    whole = list(training_keys(COUNT, BATCH, 1, 0))
    shares = [list(training_keys(COUNT, BATCH, 1, 0, rank=rank, world=world)) for rank in range(world)]
    for step, key in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sorted(index for part in parts for index in part.indices) == sorted(key.indices)
        assert {part.size for part in parts} == {key.size}


@pytest.mark.parametrize("world", [1, 2, 5])
def test_processes_share_the_test_set(world):
    parts = [key.indices for rank in range(world) for key in evaluation_keys(29, 4, rank, world)]
    assert sorted(index for part in parts for index in part) == list(range(29))


def everything(dataset, workers: int) -> list[tuple[bytes, list[int]]]:
    with BatchSource(dataset, workers) as source:
        read = [batch for epoch in range(3) for batch in source.read(training_keys(COUNT, BATCH, 1, epoch))]
    return [(batch.images.numpy().tobytes(), batch.labels.tolist()) for batch in read]


def test_workers_change_nothing():
    """Pictures that depend on the epoch, read over several epochs by the same two workers."""
    here = everything(Pictures(random=True), workers=0)
    assert everything(Pictures(random=True), workers=2) == here
    assert here != everything(Pictures(random=False), workers=0)


def test_pictures_are_those_of_the_epoch():
    """Crops of epoch 2, picture by picture."""
    dataset, loop = Pictures(random=True), Pictures(random=True)
    loop.set_epoch(2)
    keys = list(training_keys(COUNT, BATCH, 1, 2))
    for key, batch in zip(keys, BatchSource(dataset).read(keys), strict=True):
        assert all(torch.equal(image, loop[at][0]) for image, at in zip(batch.images, key.indices, strict=True))


def test_workers_leave_the_random_numbers_of_dropout_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    everything(Pictures(), workers=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_picture_is_one_sentence(workers):
    with pytest.raises(InputError) as raised, BatchSource(Unreadable(), workers) as source:
        list(source.read(evaluation_keys(COUNT, BATCH)))
    assert str(raised.value) == "images/000017.jpg cannot be read: it is truncated."


class Batched(Pictures):
    asked: list[list[int]]

    def batch(self, indices):
        self.asked.append(indices)
        return self.images[indices], torch.from_numpy(self.labels[indices])


def test_whole_batches_are_asked_for_where_the_dataset_has_them():
    dataset = Batched()
    dataset.asked = []
    batches = list(BatchSource(dataset).read(evaluation_keys(11, 4)))
    assert dataset.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert torch.equal(torch.cat([batch.images for batch in batches]), dataset.images[:11])


def test_an_empty_share_is_no_error():
    keys = list(training_keys(9, 4, 1, 0, rank=1, world=2))
    assert [len(batch.labels) for batch in BatchSource(Pictures()).read(keys)] == [2, 2, 0]


def test_pictures_are_normalised_to_new_numbers():
    """The bytes are what they were: nothing drifts from epoch to epoch."""
    images = Pictures().images
    before = images.clone()
    found = to_input(images, "imagenet", torch.float64, torch.device("cpu"))
    assert torch.equal(images, before)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (before.numpy().transpose(0, 2, 3, 1) / 255 - mean) / std
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-12)


def test_floating_point_input_is_taken_as_it_is():
    features = torch.randn(3, 7)
    assert torch.equal(to_input(features, "imagenet", torch.float32, torch.device("cpu")), features)


def test_labels_are_told_or_read():
    class Silent(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.zeros(3, 2, 2), 2 - index

    assert labels_of(Silent()).tolist() == [2, 1, 0]
    assert labels_of(Pictures()).tolist() == Pictures().labels.tolist()
