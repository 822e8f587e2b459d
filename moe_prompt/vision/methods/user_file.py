"""A method of the user's own: a Python file that defines `method`, or `prompt(config)` for one expert per block.

    class Scaled(PromptExpert): ...

    def prompt(config):                      # a ViTConfig: dim, depth, grid, ...
        return Scaled(10, config.dim)

What such a file draws from torch's own generator is drawn from the run's seed: equal seeds, equal prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from moe_prompt.basics.user_files import defined_in, told
from moe_prompt.errors import require
from moe_prompt.vision.methods.base import DeepExperts, Method
from moe_prompt.vision.methods.by_name import METHODS
from moe_prompt.vision.vit.config import ViTConfig
from moe_prompt.vision.vit.prompting import Prompting
from moe_prompt.vision.vit.transformer import VisionTransformer


@dataclass(frozen=True)
class FileMethod(Method):
    """A method under the name of its file, with the hash of that file: an edit makes another method of it."""

    method: Method
    file: str
    sha256: str

    name = "file"

    @property
    def copies(self) -> str:  # type: ignore[override]
        return self.method.copies

    @property
    def optimizer(self) -> str:  # type: ignore[override]
        return self.method.optimizer

    def prompting(self, config: ViTConfig, generator: Generator | None = None) -> Prompting | None:
        with _drawing_from(generator), told(f"{self.file}.py", "cannot make its prompts"):
            return self.method.prompting(config, generator)

    def adapt(self, backbone: VisionTransformer, generator: Generator | None = None) -> None:
        with _drawing_from(generator), told(f"{self.file}.py", "cannot adapt the backbone"):
            self.method.adapt(backbone, generator)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.file, "sha256": self.sha256, "method": self.method.to_dict()}


def method_from_file(path: str | Path) -> FileMethod:
    """The `method` of a Python file, or a prompt expert in every block by its `prompt(config)`.

    Raises:
        InputError: no such file, one named as a method here, one that does not run, or one that defines neither.
    """
    path = Path(path)
    require(path.stem not in {*METHODS, "vapt-paper"}, f"{path} has the name of a method here, {path.stem}: rename it.")
    wanted = "`method`, a Method, or `prompt(config)`, which makes a prompt expert"
    name, found = defined_in(path, wanted, method=Method, prompt=Callable)
    method = DeepExperts(found) if name == "prompt" else found
    return FileMethod(method, path.stem, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


@contextmanager
def _drawing_from(generator: Generator | None) -> Iterator[None]:
    """Torch's own generator, meanwhile, as the given one would have it."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
