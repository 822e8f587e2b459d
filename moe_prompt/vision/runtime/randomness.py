"""Random numbers of dropout: a training draws from its own and leaves the caller's generators unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def own_randomness(seed: int, rank: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's generators are seeded by (seed, rank), so that no two processes drop the same units."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        drawn = int(np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1, np.uint64)[0]) >> 1
        torch.default_generator.manual_seed(drawn)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(drawn)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the generators; one that is missing in `state` stays as it is."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
