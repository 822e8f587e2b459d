"""A frozen backbone, a method to tune it, and a linear head. What is learned can be saved without the backbone.

logits = W f(image; prompts) + b
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from moe_prompt.errors import require
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.vit.transformer import Images, VisionTransformer


class Classifier(nn.Module):
    """Pictures (batch, 3, height, width), normalised, to logits (batch, classes).

    Classifiers on one backbone share its frozen weights; what a method changes is copied first.

    The head starts as in the released VPT: kaiming-normal weights and biases of -log 99, a logistic probability of 1 %.

    >>> from moe_prompt.vision.methods.prompts import VPTDeep
    >>> from moe_prompt.vision.vit.transformer import ViTConfig
    >>> vit = VisionTransformer(ViTConfig(dim=24, depth=2, heads=3, patch=4, image=(8, 12), mlp_dim=48))
    >>> classifier = Classifier(vit, VPTDeep(num_prompts=5), num_classes=7)
    >>> classifier.num_tuned(), classifier(torch.zeros(2, 3, 8, 12)).shape
    (240, torch.Size([2, 7]))
    """

    def __init__(
        self, backbone: VisionTransformer, method: Method, num_classes: int, generator: Generator | None = None
    ) -> None:
        super().__init__()
        require(num_classes >= 2, f"a classifier needs at least two classes: got {num_classes}.")
        self._pretrained = (backbone,)  # a tuple hides it from `modules()`
        self.backbone = method.borrow(backbone)
        self.method, self.num_classes = method, num_classes
        method.adapt(self.backbone, generator)
        self.prompting = method.prompting(backbone.config, generator)
        self.head = nn.Linear(backbone.config.dim, num_classes)
        nn.init.kaiming_normal_(self.head.weight, generator=generator)
        nn.init.constant_(self.head.bias, -math.log(99))

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.head(self.features(images))

    def features(self, images: Images) -> Float[Tensor, "batch dim"]:
        """The pooled features f(image; prompts), which are the input of the head."""
        return self.backbone(images, self.prompting)

    @property
    def features_are_fixed(self) -> bool:
        """Whether nothing but the head learns, so that features can be computed once."""
        return set(self.trainable()) == {"head.weight", "head.bias"}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, each once, head included."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def num_tuned(self) -> int:
        """How many numbers learn, without the head."""
        return sum(parameter.numel() for name, parameter in self.trainable().items() if not name.startswith("head."))

    def backbone_fingerprint(self) -> str:
        """SHA-256 of the backbone before anything was tuned."""
        return self._pretrained[0].fingerprint()

    def learned(self) -> dict[str, Tensor]:
        """Copies of what was learned, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.trainable().items()}

    @torch.no_grad()
    def put(self, tensors: dict[str, Tensor], source: str) -> None:
        """Set the learned parameters to tensors of the same names and shapes.

        Raises:
            InputError: naming `source`: names or shapes that are not this classifier's.
        """
        own = self.trainable()
        missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        require(
            not missing and not foreign,
            f"{source} needs exactly the {len(own)} learned tensors of {self.method.name}: "
            f"missing {', '.join(missing[:3]) or 'none'}; not asked for {', '.join(foreign[:3]) or 'none'}.",
        )
        for name, parameter in own.items():
            require(
                parameter.shape == tensors[name].shape,
                f"{name} in {source} needs shape {tuple(parameter.shape)}: got {tuple(tensors[name].shape)}; "
                "the number of prompts, the classes or the picture size differ.",
            )
            parameter.copy_(tensors[name])
