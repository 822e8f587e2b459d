"""A network and pictures of seconds for the tests of training, and functions that child processes run."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from moe_prompt.errors import InputError
from moe_prompt.vision.training.batches import PictureBatch
from moe_prompt.vision.training.train import TrainingRecipe, train

CLASSES, COUNT, HEIGHT, WIDTH, DIM = 5, 53, 7, 11, 13


class Pictures(torch.utils.data.Dataset):
    """uint8 pictures whose mean colour tells the class; shifted by a draw of (seed, epoch, index) if `random`."""

    def __init__(self, count: int = COUNT, seed: int = 3, random: bool = False, classes: int = CLASSES) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, classes, count)
        colours = np.random.default_rng(0).integers(60, 200, (classes, 3, 1, 1))
        noise = rng.integers(-40, 40, (count, 3, HEIGHT, WIDTH))
        self.images = torch.from_numpy((colours[self.labels] + noise).astype(np.uint8))
        self.seed, self.random, self.epoch = seed, random, 0

    @property
    def deterministic(self) -> bool:
        return not self.random

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        if self.random:
            draw = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch, index)))
            image = image.roll(int(draw.integers(0, WIDTH)), dims=-1)
        return image, int(self.labels[index])


class Unreadable(Pictures):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 17:
            raise InputError("images/000017.jpg cannot be read: it is truncated.")
        return super().__getitem__(index)


class Network(nn.Module):
    """A frozen patch embedding, one learned map that two layers share, a prompt, dropout, an idle parameter, a head."""

    def __init__(self, seed: int = 0, dropout: float = 0.1, fixed: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # what is frozen is the same in all
            self.embed = nn.Conv2d(3, DIM, 3, stride=2).requires_grad_(False)
            torch.manual_seed(seed)
            self.shared = nn.Linear(DIM, DIM)
            self.head = nn.Linear(DIM, CLASSES)
        self.first = nn.Sequential(self.shared, nn.GELU())
        self.second = nn.Sequential(nn.LayerNorm(DIM), self.shared, nn.Dropout(dropout))
        self.prompt = nn.Parameter(torch.full((2, DIM), 0.1))
        self.idle = nn.Parameter(torch.ones(2, 3))
        self.features_are_fixed = fixed
        if fixed:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("head."))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(images).flatten(2).mT
        prompts = self.prompt.expand(len(images), -1, -1)
        return self.second(self.first(torch.cat([prompts, tokens], dim=1)).mean(dim=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def recipe(**changes) -> TrainingRecipe:
    given = {"base_lr": 0.8, "weight_decay": 1e-3, "epochs": 4, "warmup": 1, "batch": 8, "seed": 7}
    return TrainingRecipe(**(given | changes))


def learned(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def batch_of(dataset: Pictures, indices: list[int]) -> PictureBatch:
    labels = torch.from_numpy(dataset.labels[indices])
    return PictureBatch(torch.stack([dataset[index][0] for index in indices]), labels, len(indices))


def slow_step(folder: str, changes: dict) -> None:
    """Train in a process that is to be killed: steps take a few milliseconds, so that a kill can hit any of them."""
    train(Network(), Pictures(random=True), Pictures(29, seed=4), recipe(**changes), Path(folder), _pause, save_steps=3)


def one_of_two(rank: int, folder: str, changes: dict) -> None:
    """Train as `torchrun` would have this process do, and put the weights down."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = Network(seed=rank, dropout=0.0)  # another start in each process: the first one's counts
    home = Path(folder) / f"run{rank}"
    result = train(model, Pictures(49, random=True), Pictures(29, seed=4), recipe(**changes), home, test_every=2)
    torch.save({"learned": learned(model), "accuracy": result.last_test_accuracy}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _pause(phase: str, done: int, total: int, note: str) -> None:

    time.sleep(0.01)
