"""Splits by hash against plain loops: the same order, disjoint, in share, groups whole."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from moe_prompt.vision.data.sets.splits import hash_order, linked, quotas, stratified_split


@pytest.mark.parametrize("salt", ["train", "0:", ""])
def test_order_is_that_of_the_hashes(salt):
    expected = sorted(range(211), key=lambda i: hashlib.md5(f"{salt}{i}".encode()).hexdigest())
    assert hash_order(211, salt).tolist() == expected


def test_quotas_sum_to_the_size_and_are_within_one_of_the_share():
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.integers(0, 7, rng.integers(20, 90))
        size = int(rng.integers(1, 100))
        found = quotas(labels, size)
        counts = np.bincount(labels)
        assert found.sum() == min(size, len(labels)) and (found <= counts).all()
        assert (np.abs(found - min(size, len(labels)) * counts / len(labels)) < 1).all()


def draw(seed: int = 0, groups=None):
    labels = np.repeat([0, 1, 2], [53, 31, 17])
    return labels, stratified_split(labels, {"train": 41, "val": 13}, seed, groups)


def test_splits_are_disjoint_whole_and_stratified():
    labels, split = draw()
    assert sorted(np.concatenate([*split.values()]).tolist()) == list(range(101))
    assert {name: len(chosen) for name, chosen in split.items()} == {"train": 41, "val": 13, "rest": 47}
    for name, size in (("train", 41), ("val", 13)):
        counts = Counter(labels[split[name]].tolist())
        assert all(abs(counts[c] - size * n / 101) < 1 for c, n in ((0, 53), (1, 31), (2, 17)))


def test_the_draw_depends_on_the_seed_alone():
    _, one = draw(3)
    _, again = draw(3)
    _, other = draw(4)
    assert all((one[name] == again[name]).all() for name in one)
    assert set(one["train"].tolist()) != set(other["train"].tolist())


def test_labels_are_mixed_within_a_split():
    labels, split = draw()
    assert (np.diff(labels[split["train"]]) != 0).sum() > 10


def test_groups_are_never_torn_apart():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 61, 101).tolist()
    _, split = draw(0, groups)
    of_group = {name: {groups[i] for i in chosen.tolist()} for name, chosen in split.items()}
    assert not of_group["train"] & of_group["val"] and not of_group["train"] & of_group["rest"]
    assert not of_group["val"] & of_group["rest"]
    assert sum(map(len, split.values())) == 101 and 38 <= len(split["train"]) <= 41 and len(split["val"]) <= 13


def test_a_large_group_does_not_burst_a_split():
    _, split = draw(0, [0] * 50 + list(range(1, 52)))
    assert set(range(50)) <= set(split["rest"].tolist())
    assert len(split["train"]) <= 41


def test_joined_groups_are_the_connected_ones():
    rng = np.random.default_rng(2)
    for _ in range(20):
        one, two = rng.integers(0, 23, 29).tolist(), rng.integers(0, 19, 29).tolist()
        expected = list(range(29))
        for _ in range(29):  # spread the smallest name along shared keys until nothing changes
            expected = [
                min(expected[j] for j in range(29) if i == j or one[i] == one[j] or two[i] == two[j]) for i in range(29)
            ]
        assert linked(one, two) == expected


def test_the_order_is_that_of_vtab():
    """Positions published for the start of VTAB's dSprites test split (as its exports list them), by md5 alone.

    The sprites are numbered with y running fastest, then x. By chance all twelve agree once in 32^12.
    """
    start = hash_order(737_280, "train")[663_552:][:6]
    assert (start // 32 % 32).tolist() == [28, 9, 15, 27, 26, 31]
    assert (start % 32).tolist() == [3, 12, 8, 2, 15, 21]
