"""What `torchrun` runs in the test of it: a training with dropout, and a head on fixed features."""

import os
import sys
import time
from pathlib import Path

import torch

from moe_prompt.vision.runtime.distributed import joined
from moe_prompt.vision.training.train import train
from tests.builders.small_training import Network, Pictures, learned, recipe


def main(folder: Path, dropout: float, pause: float) -> None:
    torch.set_num_threads(1)
    with (folder / "pids").open("a") as stream:  # a worker outlives the launcher that is killed
        stream.write(f"{os.getpid()}\n")
    model, head = Network(dropout=dropout), Network(dropout=0.0, fixed=True)
    options = (Pictures(49, random=True), Pictures(29, seed=4), recipe())
    result = train(model, *options, folder / "run", lambda *_: time.sleep(pause), save_steps=3)
    fixed = train(head, Pictures(49), Pictures(29, seed=4), recipe())
    if joined(torch.device("cpu")).first:
        found = {"model": learned(model), "head": learned(head)}
        torch.save(found | {"accuracies": [result.last_test_accuracy, fixed.last_test_accuracy]}, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
