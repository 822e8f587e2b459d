"""Two processes end where one does: shared parameters, class weights, and a batch of which one has no part."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from moe_prompt.vision.runtime.distributed import Ranks, joined, local_device
from moe_prompt.vision.training.train import train
from tests.builders.small_training import Network, Pictures, learned, one_of_two, recipe

CHANGES = [
    {"epochs": 3, "batch": 8},
    {"epochs": 3, "batch": 8, "class_weights": "balanced", "accumulate": 2, "optimizer": "adamw", "base_lr": 0.1},
]


@pytest.mark.parametrize("changes", CHANGES, ids=["plain", "weighted, in pieces"])
def test_two_processes_end_where_one_does(tmp_path, changes):
    """49 pictures in batches of 8: of the last batch, one picture, the second process has nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.builders.small_training"])
    children = [context.Process(target=one_of_two, args=(rank, str(tmp_path), changes)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    alone = Network(seed=0, dropout=0.0)
    result = train(alone, Pictures(49, random=True), Pictures(29, seed=4), recipe(**changes))
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, weight in learned(alone).items():
        torch.testing.assert_close(both[0]["learned"][name], weight, rtol=1e-6, atol=1e-6)
        assert torch.equal(both[0]["learned"][name], both[1]["learned"][name])
    assert both[0]["accuracy"] == both[1]["accuracy"] == result.last_test_accuracy
    assert {path.name for path in (tmp_path / "run0").iterdir()} == {"state.pt", "steps.csv", "epochs.csv"}
    assert not (tmp_path / "run1").exists() or not list((tmp_path / "run1").iterdir())


def test_one_process_sends_nothing():
    parameter = nn.Parameter(torch.ones(3))
    sums = torch.tensor([2.0, 3.0])
    ranks = joined(torch.device("cpu"))
    assert ranks == Ranks() and ranks.first
    assert ranks.sum_gradients([parameter], sums) is sums and parameter.grad is None
    assert ranks.gather("a") == ["a"] and ranks.share("b") == "b"
    assert ranks.sum(sums) is sums


def test_device_without_cuda():
    if not torch.cuda.is_available():
        assert local_device() == torch.device("cpu")


def torchrun(folder, processes: int, dropout: float, pause: float = 0.0) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ("--nproc-per-node", str(processes), "--master-port", str(port), "-m", "tests.builders.under_torchrun")
    command = (sys.executable, "-m", "torch.distributed.run", *options, str(folder), str(dropout), str(pause))
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_torchrun_with_two_processes_ends_where_one_does(tmp_path):
    found = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        assert torchrun(tmp_path / str(processes), processes, dropout=0.0).wait(120) == 0
        found.append(torch.load(tmp_path / str(processes) / "found.pt", weights_only=True))
    for part in ("model", "head"):
        for name, weight in found[0][part].items():
            torch.testing.assert_close(found[1][part][name], weight, rtol=1e-6, atol=1e-6)
    assert found[0]["accuracies"] == found[1]["accuracies"]


@pytest.mark.slow
def test_torchrun_killed_ends_with_the_same_weights(tmp_path):
    """With dropout, which each process draws from its own generator; SIGKILL for all of them."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert torchrun(tmp_path / "whole", 2, dropout=0.1).wait(120) == 0
    for rows in (8, 19):
        running, log = torchrun(tmp_path / "killed", 2, 0.1, pause=0.05), tmp_path / "killed" / "run" / "steps.csv"
        while not log.exists() or len(log.read_text().splitlines()) <= rows:
            assert running.poll() is None
            time.sleep(0.01)
        for process in (running.pid, *map(int, (tmp_path / "killed" / "pids").read_text().split())):
            os.kill(process, signal.SIGKILL)
        (tmp_path / "killed" / "pids").unlink()
        running.wait()
    assert torchrun(tmp_path / "killed", 2, 0.1).wait(120) == 0
    whole, killed = (torch.load(tmp_path / run / "found.pt", weights_only=True) for run in ("whole", "killed"))
    for name, weight in whole["model"].items():
        assert torch.equal(killed["model"][name], weight), name
