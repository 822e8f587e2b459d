"""Locks that the dead give up."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from moe_prompt.vision.runtime.locks import Busy, exclusively


def test_a_lock_keeps_others_out_until_its_holder_is_gone(tmp_path):
    path, context = tmp_path / "lock", multiprocessing.get_context("spawn")
    with exclusively(path), pytest.raises(Busy), exclusively(path, wait=False):
        pass
    held = context.Event()
    holder = context.Process(target=hold, args=(str(path), held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(Busy), exclusively(path, wait=False):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    with exclusively(path, wait=False):
        pass


def hold(path, held):
    import time

    with exclusively(Path(path)):
        held.set()
        time.sleep(600)
