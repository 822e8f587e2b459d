"""A checkpoint and a task as a user has them, small enough that a training takes a tenth of a second."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from moe_prompt.vision.data.writing import write_vtab_task
from moe_prompt.vision.vit.transformer import VisionTransformer, ViTConfig

CONFIG = ViTConfig(dim=24, depth=2, heads=3, patch=4, image=(16, 16), mlp_dim=48)
COUNTS = {"train800": 31, "val200": 13, "test": 17}
CLASSES = ("top", "middle", "bottom")
HEIGHT, WIDTH = 16, 12


def vit_file(path: Path, config: ViTConfig = CONFIG, seed: int = 0) -> Path:
    """A ViT with random weights in timm's names, as safetensors that say how many heads it has."""
    vit = VisionTransformer(config, torch.Generator().manual_seed(seed))
    tensors = {name: tensor.contiguous() for name, tensor in vit.state_dict().items()}
    save_file(tensors, path, {"format": "pt", "heads": str(config.heads)})
    return path


def bars(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    """A task in the VTAB layout: a bright bar whose row says the class, on noise."""
    splits = {}
    for seed, (split, count) in enumerate(counts.items()):
        generator = np.random.default_rng(seed)
        labels = [index % len(CLASSES) for index in range(count)]
        pixels = generator.integers(0, 120, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
        for picture, label in zip(pixels, labels, strict=True):
            picture[5 * label : 5 * label + 4] += np.uint8(100)
        splits[split] = (iter(pixels), labels)
    return write_vtab_task(folder, splits, CLASSES)
