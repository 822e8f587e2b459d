"""The networks that can be viewed: a backbone, stored or random, with prompts by name, of a user's file, or trained.

| prompts                           | trained | where they come from                                                |
|-----------------------------------|---------|---------------------------------------------------------------------|
| a name in :data:`PROMPTS`         | no      | drawn as before a training                                          |
| a Python file                     | no      | its `prompt(config)` or its `method`                                |
| a file `tuned.safetensors`        | yes     | `moe-prompt classify train` and `tune`                              |
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Generator, Tensor

from moe_prompt.attention.prompts import PromptExpert, ReparameterizedPrefix
from moe_prompt.attention.tensor_files import TensorFile
from moe_prompt.errors import InputError, choose, require
from moe_prompt.vision.checkpoints.backbones import BACKBONES
from moe_prompt.vision.checkpoints.loading import load_backbone
from moe_prompt.vision.data.preprocessing import VTAB, Preprocessing
from moe_prompt.vision.downloads.registries import Teller
from moe_prompt.vision.methods.base import DeepMethod, Method, check_positive
from moe_prompt.vision.methods.prompts import VAPT, NoRGa, Prefix, VPTDeep, VPTShallow
from moe_prompt.vision.methods.tuned_file import load_tuned, read_notes
from moe_prompt.vision.methods.user_file import method_from_file
from moe_prompt.vision.vit.config import ViTConfig
from moe_prompt.vision.vit.prompting import Prompting
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer


@dataclass(frozen=True)
class Reparameterized(DeepMethod):
    """Key and value from one constant through two known maps, in every block (arXiv 2410.02200)."""

    name = "reparameterized"
    num_prompts: int = 10

    def __post_init__(self) -> None:
        check_positive("the number of prompts", self.num_prompts)

    def expert(self, block: int, config: ViTConfig, generator: Generator | None) -> PromptExpert | None:
        return ReparameterizedPrefix(self.num_prompts, config.dim, generator=generator)


PROMPTS: dict[str, Any] = {
    "vapt": VAPT(static_blocks=0, zero_init=False),
    "vapt-paper": VAPT.paper(),
    "vpt": VPTDeep(),
    "vpt-deep": VPTDeep(),
    "vpt-shallow": VPTShallow(),
    "prefix": Prefix(),
    "reparameterized": Reparameterized(),
    "norga": NoRGa(),
}
"""Untrained prompts by name, drawn as before a training. Released VAPT starts with all prompts at zero, where there is
nothing to see: here its token-wise projector is drawn, in every block."""


@dataclass(frozen=True)
class Network:
    """A vision transformer with prompts, its pictures' preprocessing, and what a reader must know of it."""

    name: str
    vit: VisionTransformer
    prompting: Prompting
    preprocessing: Preprocessing
    prompt: str
    notes: tuple[str, ...]

    def pixels(self, picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """The picture as the network sees it, in bytes."""
        return self.preprocessing.cropped(self.preprocessing.resized(picture), None)


def untrained_network(
    backbone: str | Path | None,
    prompt: str,
    num_prompts: int | None,
    block: int,
    heads: int | None,
    size: int | tuple[int, int] | None,
    normalisation: str | None,
    seed: int,
    progress: Teller | None = None,
) -> Network:
    """A backbone with prompts that are drawn; without a backbone a random one that is deep enough for the block."""
    method = _method(prompt, num_prompts)
    if backbone is None:
        vit, notes = _random_vit(block, heads, size, seed), ("the network is random",)
    else:
        vit, loaded = load_backbone(backbone, size, heads=heads, progress=progress)
        notes = (loaded.sentence(),)
    vit = method.borrow(vit).eval()
    prompting = _prompting(prompt, method, vit, stream(seed, 1))
    named = BACKBONES.get(str(backbone))
    kind = normalisation or (named.normalisation if named else "imagenet")
    return Network(_called(backbone), vit, prompting, VTAB(vit.config.image, kind), prompt, notes)


def tuned_network(
    tuned: str | Path,
    backbone: str | Path,
    prompt: str | None = None,
    heads: int | None = None,
    progress: Teller | None = None,
) -> Network:
    """A backbone with the prompts of a tuned file, which says how its pictures were preprocessed.

    `prompt` is the Python file of the method, where it is the user's own.
    """
    TensorFile(tuned)  # a missing or damaged file is told as for any other tensors
    notes = read_notes(tuned)
    require(prompt is None or prompt.endswith(".py"), f"{tuned} says which prompts it has: leave {prompt!r} out.")
    vit, loaded = load_backbone(backbone, tuple(json.loads(notes["image"])), notes["pooling"], heads, progress=progress)
    classifier, _ = load_tuned(tuned, vit, None if prompt is None else method_from_file(prompt))
    name = json.loads(notes["method"])["name"]
    if classifier.prompting is None:
        raise InputError(f"{tuned} was tuned by {name}, which has no prompts to view: give a file that has.")
    kept = notes.get("preprocessing")
    preprocessing = Preprocessing.from_dict(json.loads(kept)) if kept else VTAB(vit.config.image)
    classifier.eval()
    network = classifier.backbone, classifier.prompting, preprocessing
    return Network(_called(backbone), *network, prompt or name, (loaded.sentence(), f"prompts from {tuned}"))


def stream(seed: int, number: int) -> Generator:
    """One of the independent random streams of a seed, so that no part's size changes another part's numbers."""
    state = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _method(prompt: str, num_prompts: int | None) -> Method:
    if prompt.endswith(".py"):
        require(num_prompts is None, f"{prompt} sets its own number of prompts: change it in the file.")
        return method_from_file(prompt)
    method = choose("prompt", prompt, PROMPTS)
    return method if num_prompts is None else replace(method, num_prompts=num_prompts)


def _prompting(prompt: str, method: Method, vit: VisionTransformer, generator: Generator) -> Prompting:
    method.adapt(vit, generator)
    found = method.prompting(vit.config, generator)
    if found is None:
        raise InputError(f"{prompt} has no prompts to view: choose one of {', '.join(PROMPTS)}, or another file.")
    return found.eval()


def _random_vit(block: int, heads: int | None, size: int | tuple[int, int] | None, seed: int) -> VisionTransformer:
    """The smallest of the usual ViTs, without a class token: every map has entries from N(0, 1 / columns)."""
    image = (224, 224) if size is None else (size, size) if isinstance(size, int) else size
    plain = replace(VIT_SIZES["vit-ti/16"], image=image, depth=max(block, 0) + 1, class_token=False, pooling="avg")
    vit = VisionTransformer(plain if heads is None else replace(plain, heads=heads))
    generator = stream(seed, 0)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name == "pos_embed":
                parameter.zero_()
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return vit


def _called(backbone: str | Path | None) -> str:
    return "a random network" if backbone is None else Path(backbone).name if Path(backbone).exists() else str(backbone)
