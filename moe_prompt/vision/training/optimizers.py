"""SGD and AdamW over the learned parameters, and which of these weight decay pulls towards zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from moe_prompt.attention.tensor_files import ends_with
from moe_prompt.errors import choose

DecayRule = Callable[[str, nn.Parameter], bool]


def _matrices(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1


def _all(name: str, parameter: nn.Parameter) -> bool:
    return not ends_with(name, "head.bias")


DECAY_RULES: Mapping[str, DecayRule] = {"matrices": _matrices, "all": _all}
"""`matrices` decays prompts, kernels and weight matrices, but no bias, norm or scale: pulling the scale of a norm from
1 to 0 does not regularise. `all` decays everything but the bias of the head, as the released recipe does with SGD."""

OPTIMIZERS: Mapping[str, Callable[[list[dict], float], Optimizer]] = {
    "sgd": lambda groups, momentum: SGD(groups, lr=0.0, momentum=momentum),
    "adamw": lambda groups, momentum: AdamW(groups, lr=0.0),
}
"""Optimizers by name; the rate is set before every step. AdamW has betas (0.9, 0.999) and eps 1e-8."""


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    optimizer: str = "sgd",
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    decay: str = "matrices",
) -> Optimizer:
    """The optimizer of the named parameters, in a group that is decayed and one that is not.

    Raises:
        InputError: unknown optimizer or rule of decay.
    """
    decayed = choose("rule of weight decay", decay, DECAY_RULES)
    groups = [
        {
            "params": [p for name, p in parameters.items() if decayed(name, p) == wanted],
            "weight_decay": weight_decay * wanted,
        }
        for wanted in (True, False)
    ]
    return choose("optimizer", optimizer, OPTIMIZERS)([group for group in groups if group["params"]], momentum)
