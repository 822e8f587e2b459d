"""Divide a set into splits by a hash of picture numbers: stratified by class, and groups stay together.

A hash in place of a random generator makes the same draw in every version of every library, for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


def hash_order(count: int, salt: str) -> Indices:
    """0, ..., count - 1 in the order of md5(salt followed by the number in decimal digits)."""
    prefix = salt.encode()
    digests = [hashlib.md5(prefix + b"%d" % index, usedforsecurity=False).digest() for index in range(count)]
    return np.array(sorted(range(count), key=digests.__getitem__), dtype=np.int64)


def quotas(labels: ArrayLike, size: int) -> NDArray[np.int64]:
    """How many of each class among `size`: size n_c / n, rounded so that they sum to `size` (largest remainders).

    >>> quotas([0, 0, 0, 1], 3).tolist()
    [2, 1]
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64))
    exact = min(size, counts.sum()) * counts / max(counts.sum(), 1)
    floor = np.floor(exact).astype(np.int64)
    missing = min(size, int(counts.sum())) - int(floor.sum())
    floor[np.argsort(floor - exact, kind="stable")[:missing]] += 1
    return floor


def stratified_split(
    labels: Sequence[int] | Indices,
    sizes: Mapping[str, int],
    seed: int,
    groups: Sequence[Hashable] | None = None,
    rest: str = "rest",
) -> dict[str, Indices]:
    """Disjoint splits of the given sizes with every class in its share; those left over are the split `rest`.

    Members of one group, such as films of one patient, all go to the same split, so a split ends smaller than asked
    where only large groups are left. Each split is in hash order, a mixture of the classes.
    """
    labels = np.asarray(labels, dtype=np.int64)
    room = {name: quotas(labels, size) for name, size in sizes.items()}
    taken: dict[str, list[int]] = {name: [] for name in [*sizes, rest]}
    for members in _in_hash_order(len(labels), seed, groups):
        need = np.bincount(labels[members], minlength=labels.max() + 1)
        split = next((name for name in sizes if (need <= room[name]).all()), rest)
        if split != rest:
            room[split] -= need
        taken[split] += members
    return {name: np.array(members, dtype=np.int64) for name, members in taken.items()}


def _in_hash_order(count: int, seed: int, groups: Sequence[Hashable] | None) -> list[list[int]]:
    """Members of each group; groups in the order of their first members, members in the order of their hashes."""
    gathered: dict[Hashable, list[int]] = {}
    for index in hash_order(count, f"{seed}:").tolist():
        gathered.setdefault(index if groups is None else groups[index], []).append(index)
    return list(gathered.values())


def linked(*keys: Sequence[Hashable]) -> list[int]:
    """Groups from several keys: two members are together if they share any key, directly or through others.

    >>> linked(["a", "a", "b", "c"], [1, 2, 2, 3])
    [0, 0, 0, 3]
    """
    parent = list(range(len(keys[0])))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for key in keys:
        first: dict[Hashable, int] = {}
        for index, value in enumerate(key):
            one, other = sorted((root(first.setdefault(value, index)), root(index)))
            parent[other] = one
    return [root(index) for index in range(len(parent))]
