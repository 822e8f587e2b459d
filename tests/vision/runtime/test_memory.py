"""Measured memory against what is known to be taken."""

import pytest
import torch

from moe_prompt.vision.runtime import memory as module
from moe_prompt.vision.runtime.memory import PeakMemory

CPU = torch.device("cpu")


def test_peak_is_what_was_taken_for_a_moment():
    """100 MB taken and given back; a later watch does not see them."""
    memory = PeakMemory(CPU)
    if memory.kind != "resident":
        pytest.skip("the system does not set the peak back")
    torch.ones(100 * 2**18)
    assert 95 < memory.increase() < 130
    later = PeakMemory(CPU)
    assert later.increase() < 30 and later.megabytes() > 50


def test_where_the_peak_cannot_be_set_back_it_is_called_so(monkeypatch):
    monkeypatch.setattr(module, "_reset_peak", lambda: False)
    memory = PeakMemory(CPU)
    assert memory.kind == "resident-ever" and memory.megabytes() > 50
