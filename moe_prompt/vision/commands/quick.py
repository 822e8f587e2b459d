"""The whole path from pictures to a table in a minute or two, with nothing to download.

    1. scikit-learn's digits, 1,797 real handwritten ones of 8 x 8 pixels, are written as two tasks in the VTAB layout:
       0 to 4 to pre-train on, 5 to 9 to tune on.
    2. A small ViT is trained on the first: the pre-trained backbone, frozen from here on.
    3. Linear probe, VPT-deep and VAPT are searched on validation pictures of the second, each by as many trials, and
       trained and tested with several seeds.

Everything is trained on the spot and seeded, so the same machine gives the same table. It shows that the path works. It
is no evidence for or against a method: the backbone has seen only 700 pictures, and the task is easy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from moe_prompt.vision.data.datasets import PictureDataset, in_memory
from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.data.preprocessing import VTAB, Preprocessing
from moe_prompt.vision.data.tasks import Task
from moe_prompt.vision.data.writing import write_vtab_task
from moe_prompt.vision.downloads.registries import Teller
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.report.report import Report, tuning_report
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.training.train import train
from moe_prompt.vision.tuning.problem import TuningProblem
from moe_prompt.vision.tuning.recipes import OURS, Grid
from moe_prompt.vision.tuning.run_table import RunRow
from moe_prompt.vision.tuning.searches import GridSearch
from moe_prompt.vision.tuning.tune import go_through, tune, untold
from moe_prompt.vision.vit.config import ViTConfig
from moe_prompt.vision.vit.transformer import VisionTransformer

SIZE = 16  # pixels: the digits, twice as large
CONFIG = ViTConfig(dim=48, depth=4, heads=4, patch=4, image=(SIZE, SIZE), mlp_dim=96)
SOURCE, TARGET = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
DIGIT_SPLITS: Mapping[str, Mapping[str, int]] = {
    "digits-0-to-4": {"train800": 700, "test": 201},
    "digits-5-to-9": {"train800": 240, "val200": 120, "test": 536},
}
"""Pictures of each split, named as the VTAB layout names them."""
PRETRAINING = TrainingRecipe(base_lr=0.008, weight_decay=0.05, optimizer="adamw", epochs=30, warmup=3, seed=0)
TUNING = TrainingRecipe(base_lr=0.0, epochs=30, warmup=3)
QUICK_SEARCH = GridSearch(Grid("quick", "sgd", (25.0, 5.0, 1.0), (0.001, 0.0001), OURS, "six trials for every method"))
QUICK_SEEDS = (42, 44, 82)
COMPARED = {
    "linear": method_named("linear"),
    "vpt-deep": method_named("vpt-deep", num_prompts=4),
    "vapt": method_named("vapt", num_prompts=4, rank=4),
}


@dataclass(frozen=True)
class Demonstration:
    """What the quick run gave."""

    report: Report
    rows: tuple[RunRow, ...]
    source_accuracy: float
    """Of the pre-trained ViT on pictures of its own classes that it had not seen, percent."""

    def text(self) -> str:
        """The table, and what it is and is not."""
        target = DIGIT_SPLITS["digits-5-to-9"]
        return (
            f"{self.report.text()}\n"
            f"Real pictures, real training: a ViT of {CONFIG.depth} blocks was pre-trained here on the digits 0 to 4 "
            f"({self.source_accuracy:.1f} % on those it had not seen), frozen, and tuned on "
            f"{target['train800'] + target['val200']} of the digits 5 to 9, with learning rate and weight decay chosen "
            f"on {target['val200']} of them and {target['test']} others to test on. It demonstrates the path from "
            "pictures to a table. It is no evidence on VPT against VAPT: for that take a backbone and tasks of real "
            "size.\n"
        )


def demonstrate(folder: str | Path, tell: Teller = untold) -> Demonstration:
    """Run the whole path in `folder`. An interrupted run continues, and a finished one is read.

    Raises:
        InputError: `folder` cannot be written.
    """
    with _one_thread():
        return _demonstrated(Path(folder), tell)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: several are slower on matrices this small, the more so beside another program."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _demonstrated(folder: Path, tell: Teller) -> Demonstration:
    source, target = (
        _digits(folder, name, classes) for name, classes in zip(DIGIT_SPLITS, (SOURCE, TARGET), strict=True)
    )
    tell(f"{folder}: 1,797 handwritten digits written as two tasks.")
    backbone, accuracy = _pretrained(source, folder / "pretraining")
    tell(f"ViT pre-trained on the digits 0 to 4: {accuracy:.1f} % on those it had not seen.")
    name = f"ViT {CONFIG.dim} x {CONFIG.depth} pre-trained on digits 0 to 4"
    problem = TuningProblem(backbone, name, target, VTAB(SIZE))
    tuned = partial(
        tune, problem, recipe=TUNING, search=QUICK_SEARCH, seeds=QUICK_SEEDS, tell=tell, explorer=go_through
    )
    found = [tuned(method, folder=folder, label=label) for label, method in COMPARED.items()]
    rows = tuple(row for each in found for row in (*each.trials, *each.finals))
    return Demonstration(tuning_report(rows), rows, accuracy)


def _digits(folder: Path, name: str, classes: tuple[int, ...]) -> Task:
    """The digits of these classes as a VTAB folder, divided by a seeded, stratified draw."""
    if not (folder / name).exists():
        from sklearn.datasets import load_digits

        pictures, digits = load_digits(return_X_y=True)
        order = _stratified(digits, classes)
        pixels = np.rint(pictures * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        splits, start = {}, 0
        for split, count in DIGIT_SPLITS[name].items():
            part = order[start : start + count]
            splits[split] = (pixels[part], [classes.index(digit) for digit in digits[part].tolist()])
            start += count
        write_vtab_task(folder / name, splits, [f"digit {digit}" for digit in classes])
    return open_task(folder / name)


def _stratified(digits: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Places of these digits, shuffled, each class spread evenly over the order."""
    generator = np.random.default_rng(0)
    places, keys = [], []
    for digit in classes:
        own = generator.permutation(np.flatnonzero(digits == digit))
        places.append(own)
        keys.append((np.arange(len(own)) + generator.random()) / len(own))
    return np.concatenate(places)[np.argsort(np.concatenate(keys), kind="stable")]


def _pretrained(source: Task, folder: Path) -> tuple[VisionTransformer, float]:
    """A ViT trained from random weights on the source task, and its accuracy there in percent."""
    generator = torch.Generator().manual_seed(PRETRAINING.seed)
    model = Classifier(VisionTransformer(CONFIG, generator), method_named("full"), len(source.classes), generator)
    shifted = Preprocessing((SIZE, SIZE), shorter=SIZE + 3, crop="random")
    training = PictureDataset(source.split("train800"), shifted, training=True, seed=PRETRAINING.seed)
    unseen = in_memory(PictureDataset(source.split("test"), shifted, training=False))
    result = train(model, in_memory(training), unseen, PRETRAINING, folder)
    return model.backbone.requires_grad_(False).eval(), 100 * (result.last_test_accuracy or 0.0)
