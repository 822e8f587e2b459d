"""A real task and a real backbone, small enough that a training takes a tenth of a second."""

from pathlib import Path

import numpy as np
import torch

from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.data.preprocessing import VTAB
from moe_prompt.vision.data.writing import write_vtab_task
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.tuning.problem import TuningProblem
from moe_prompt.vision.vit.transformer import VisionTransformer, ViTConfig

HEIGHT, WIDTH, CLASSES = 16, 12, 3
SIZES = {"train800": 31, "val200": 13, "test": 17}


def pictures_and_labels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright bar whose row says the class, on noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = generator.integers(0, 120, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for picture, label in zip(pixels, labels, strict=True):
        picture[5 * label : 5 * label + 4] += np.uint8(100)
    return pixels, labels


def small_task(folder: Path, fgvc_names: bool = False):
    names = {"train800": "train", "val200": "val", "test": "test"} if fgvc_names else {name: name for name in SIZES}
    splits = {}
    for seed, (split, count) in enumerate(SIZES.items()):
        pixels, labels = pictures_and_labels(count, seed)
        splits[names[split]] = (iter(pixels), labels.tolist())
    return open_task(write_vtab_task(folder / "bars", splits, ["top", "middle", "bottom"]))


def small_backbone(seed: int = 0) -> VisionTransformer:
    config = ViTConfig(dim=24, depth=2, heads=3, patch=4, image=(HEIGHT, WIDTH), mlp_dim=40)
    return VisionTransformer(config, torch.Generator().manual_seed(seed))


def small_problem(folder: Path, **options) -> TuningProblem:
    return TuningProblem(small_backbone(), "small", small_task(folder), VTAB((HEIGHT, WIDTH)), **options)


def small_recipe(**changes) -> TrainingRecipe:
    return TrainingRecipe(**{"base_lr": 1.0, "epochs": 2, "warmup": 0, "batch": 16, **changes})
