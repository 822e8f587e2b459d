"""Accuracy and loss against loops over pictures, whatever the batches; pictures stream and are not kept."""

import math

import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.data.preprocessing import normalise
from moe_prompt.vision.runtime.distributed import Ranks
from moe_prompt.vision.training.evaluation import evaluate
from tests.builders.small_training import Network, Pictures, Unreadable


def by_hand(model: Network, dataset: Pictures) -> tuple[float, float, float]:
    """Top-1, the mean of the classes' shares and the mean cross-entropy, picture by picture."""
    model.eval()
    right: dict[int, list[bool]] = {}
    losses = []
    for image, label in (dataset[index] for index in range(len(dataset))):
        logits = model(normalise(image[None], "imagenet"))[0].tolist()
        right.setdefault(label, []).append(max(range(len(logits)), key=logits.__getitem__) == label)
        losses.append(math.log(sum(math.exp(z) for z in logits)) - logits[label])
    every = [hit for hits in right.values() for hit in hits]
    shares = [sum(hits) / len(hits) for hits in right.values()]
    return sum(every) / len(every), sum(shares) / len(shares), sum(losses) / len(losses)


@pytest.mark.parametrize("classes", [5, 3], ids=["all classes", "two classes without a picture"])
@pytest.mark.parametrize("batch", [1, 8, 100])
def test_is_what_a_loop_finds_whatever_the_batch(batch, classes):
    model, dataset = Network(seed=4), Pictures(classes=classes)
    accuracy, class_mean, loss = by_hand(model, dataset)
    found = evaluate(model, dataset, batch)
    assert (found.accuracy, found.class_mean) == pytest.approx((accuracy, class_mean), abs=1e-12)
    assert found.loss == pytest.approx(loss, rel=1e-5) and found.count == len(dataset)
    assert 0 < found.accuracy < 1 and found.accuracy != found.class_mean


def test_no_dropout_and_the_mode_is_put_back():
    model, dataset = Network(dropout=0.9), Pictures()
    model.train()
    assert evaluate(model, dataset) == evaluate(model, dataset) and model.training
    model.eval()
    evaluate(model, dataset)
    assert not model.training


class Watched(Pictures):
    largest = 0

    def batch(self, indices):
        self.largest = max(self.largest, len(indices))
        return self.images[indices], torch.from_numpy(self.labels[indices])


class Types(torch.nn.Module):
    """Notes how many pictures it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images):
        self.seen.append(len(images))
        return torch.zeros(len(images), 5)


def test_pictures_stream_as_bytes():
    dataset, model = Watched(), Types()
    evaluate(model, dataset, batch=7)
    assert dataset.largest == 7 and model.seen == [7] * 7 + [4]
    assert dataset.images.dtype == torch.uint8


class OneShare(Ranks):
    """One of three processes whose sums nobody else adds to."""

    def sum(self, tensor):
        return tensor

    def gather(self, thing):
        return [thing, 11, 11]


def test_a_process_looks_at_its_own_share():
    found = [evaluate(Network(), Pictures(), 4, ranks=OneShare(rank, 3)) for rank in range(3)]
    assert [one.count for one in found] == [20, 17, 16]
    whole = evaluate(Network(), Pictures(), 4)
    assert sum(one.accuracy * one.count for one in found) == pytest.approx(whole.accuracy * whole.count)


def test_progress_counts_pictures():
    seen = []
    evaluate(Network(), Pictures(), 20, progress=lambda *told: seen.append(told))
    assert seen == [("test", 20, 53, ""), ("test", 40, 53, ""), ("test", 53, 53, "")]


def test_bad_input_is_told():
    with pytest.raises(InputError, match="no pictures"):
        evaluate(Network(), Pictures(count=0))
    with pytest.raises(InputError, match="000017"):
        evaluate(Network(), Unreadable())
    with pytest.raises(InputError, match=r"labels 0 to 4: got label [56]"):
        evaluate(Network(), Pictures(seed=1, classes=7))
