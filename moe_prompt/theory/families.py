r"""The families of the literature as data: one for each row of the table, each with a generic truth to look at.

    name -> Family;  Family.build() -> Population, a truth of the family with the covariates it is looked at under

A family says which expert, which gate and which maps; sizes are moderate, and the seed is part of the family, so that a
row is the same numbers everywhere. What a row can do is computed by
`identifiability_report`; the flags here say beforehand what it finds, and a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.attention.activations import activation as named_activation
from moe_prompt.attention.gates import Gate, NonlinearResidualGate, SoftmaxGate
from moe_prompt.attention.prompts import (
    ConstantPrompt,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptExpert,
    ReparameterizedPrefix,
)
from moe_prompt.errors import choose, require
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.theory.report import FamilyReport, identifiability_report


@dataclass(frozen=True)
class Family:
    """A prompt expert, a gate and maps B and C as the literature has them, and the sizes of a generic truth.

    `expert` makes the expert from the family and a generator. `hidden` is the width r of VAPT's hidden layer.
    `key_rank` is the rank of B: the d_k of a single head, or the dimension. `outputs` = 0: as many as dimensions.
    `splits_show`: sigma_2 > 0 at a generic truth. `kinked`: the expert has no second derivative in its parameters.
    """

    name: str
    expert: Callable[[Family, torch.Generator], PromptExpert]
    activation: str | None = None
    hidden: int | None = None
    key_rank: int | None = None
    norga: bool = False
    random_maps: bool = True  # B and C as in a random head; otherwise the identity
    splits_show: bool = False
    kinked: bool = False
    dim: int = 4
    outputs: int = 2
    atoms: int = 2
    frozen: int = 3
    seed: int = 0

    def make_expert(self) -> PromptExpert:
        """The prompt expert, with `atoms` prompts, in float64."""
        return self.expert(self, torch.Generator().manual_seed(self.seed)).double()

    @property
    def gate(self) -> Gate:
        """NoRGa's gate or the softmax, with nothing to learn."""
        return (NonlinearResidualGate() if self.norga else SoftmaxGate()).requires_grad_(False)

    def build(self) -> Population:
        """A truth: every parameter normal at its own scale, log-weights too, X uniform on [-2, 2]^dim, noise 1."""
        rng = np.random.default_rng(self.seed)
        expert, outputs = self.make_expert(), self.outputs or self.dim
        tokens = expert(torch.zeros(1, self.dim, dtype=torch.float64))
        model = RegressionModel(
            FrozenExperts.random(self.frozen, self.dim, outputs, rng),
            expert,
            self._key_map(tokens.key.shape[-1], rng),
            self._map(outputs, tokens.value.shape[-1], rng),
            self.gate,
        )
        return Population(model, _truth(model, rng), Uniform(-2.0, 2.0, self.dim), 1.0, self.name)

    def _key_map(self, width: int, rng: np.random.Generator) -> Tensor:
        if self.key_rank is None:
            return self._map(self.dim, width, rng)
        return self._map(self.dim, self.key_rank, rng) @ self._map(self.key_rank, width, rng)

    def _map(self, rows: int, columns: int, rng: np.random.Generator) -> Tensor:
        if not self.random_maps:
            return torch.eye(rows, columns, dtype=torch.float64)
        return torch.from_numpy(rng.standard_normal((rows, columns))) / math.sqrt(columns)


def vpt(family: Family, generator: torch.Generator) -> PromptExpert:
    """One constant for key and value."""
    return ConstantPrompt(family.atoms, family.dim, generator=generator)


def prefix(family: Family, generator: torch.Generator) -> PromptExpert:
    """Two constants; the value in output space, where C is invertible."""
    return PrefixPrompt(family.atoms, family.dim, value_dim=family.outputs or family.dim, generator=generator)


def known_maps(family: Family, generator: torch.Generator) -> PromptExpert:
    """Key and value from one constant through two known maps."""
    return ReparameterizedPrefix(family.atoms, family.dim, family.activation or "tanh", generator=generator)


def free_maps(family: Family, generator: torch.Generator) -> PromptExpert:
    """Key and value from one constant through two learned maps."""
    return ReparameterizedPrefix(family.atoms, family.dim, family.activation or "tanh", True, generator=generator)


def vapt(family: Family, generator: torch.Generator) -> PromptExpert:
    """W_2 act(W_1j x), W_2 shared."""
    return FlatAdaptivePrompt(
        family.atoms, family.dim, family.hidden or 1, family.activation or "tanh", generator=generator
    )


def linear_gate(family: Family, generator: torch.Generator) -> PromptExpert:
    """Score beta_j^T x and value act(eta_j x)."""
    return LinearGateExpert(
        family.atoms, family.dim, family.outputs or family.dim, family.activation or "linear", generator=generator
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("VPT, B injective", vpt, splits_show=True),
        Family("VPT, B singular", vpt, key_rank=2),
        Family("prefix, non-shared", prefix),
        Family("reparameterised prefix, maps known", known_maps, "tanh", splits_show=True),
        Family("reparameterised, maps free, L' <= d", free_maps, "tanh", outputs=0),
        Family("VAPT, tanh", vapt, "tanh", hidden=2, splits_show=True),
        Family("VAPT, gelu", vapt, "gelu", hidden=2, splits_show=True),
        Family("VAPT, sigmoid", vapt, "sigmoid", hidden=2, splits_show=True),
        Family("VAPT, relu", vapt, "relu", hidden=2, kinked=True),
        Family("VAPT, linear, r = 1", vapt, "linear", hidden=1, splits_show=True),
        Family("VAPT, linear, r = 2", vapt, "linear", hidden=2),
        Family("linear gate + linear expert", linear_gate, "linear", random_maps=False),
        Family("linear gate + tanh ridge", linear_gate, "tanh", random_maps=False, splits_show=True),
        Family("NoRGa + linear expert", linear_gate, "linear", norga=True, random_maps=False),
        Family("NoRGa + constant expert", prefix, norga=True, random_maps=False),
        Family("NoRGa + tanh ridge", linear_gate, "tanh", norga=True, random_maps=False, splits_show=True),
    )
}
"""The rows of the table, in its order."""

EXPERTS: dict[str, Family] = {
    short: FAMILIES[name]
    for short, name in {
        "vpt": "VPT, B injective",
        "prefix": "prefix, non-shared",
        "reparameterized": "reparameterised prefix, maps known",
        "reparameterized-free": "reparameterised, maps free, L' <= d",
        "vapt": "VAPT, tanh",
        "linear-gate": "linear gate + tanh ridge",
        "norga": "NoRGa + tanh ridge",
        "norga-constant": "NoRGa + constant expert",
    }.items()
}
"""Short names for the command line."""


def select(expert: str, activation: str | None = None, rank: int | None = None) -> Family:
    """The family of a short name, with another activation or rank, named as it was asked for.

    `rank` is the width r of VAPT's hidden layer; elsewhere the rank of B, d_k in a single head.
    Raises InputError for unknown names, and for an activation or a rank that the expert does not have.

    >>> select("vapt", "gelu", rank=3).build().theta.shape
    torch.Size([38])
    """
    family = choose("expert", expert, EXPERTS)
    words = [expert, activation, None if rank is None else f"rank {rank}"]
    named = replace(family, name=", ".join(word for word in words if word))
    if activation is not None or rank is not None:
        named = replace(named, splits_show=False, kinked=False)  # which is told of the table's rows alone
    if activation is not None:
        have = ", ".join(name for name, f in EXPERTS.items() if f.activation)
        require(family.activation is not None, f"{expert!r} has no activation to choose; these have one: {have}.")
        named = replace(named, activation=named_activation(activation).name)
    if rank is None:
        return named
    if family.hidden is not None:
        require(1 <= rank <= 12, f"the table's quadrature takes hidden layers of 1 to 12 units: got {rank}.")
        return replace(named, hidden=rank)
    require(family.random_maps, f"{expert!r} has no rank to choose: its B is the identity; leave the rank out.")
    require(1 <= rank <= family.dim, f"the rank of B must be one of 1..{family.dim}: got {rank}.")
    return replace(named, key_rank=rank)


def table() -> list[FamilyReport]:
    """Every row of the table, computed: a few seconds."""
    return [identifiability_report(family.build()) for family in FAMILIES.values()]


def own_expert(make: Callable[[Any], PromptExpert], name: str) -> Population:
    """A truth of the user's own expert in the table's setting: one token of 4 numbers, 2 outputs, 2 prompts.

    `make(config)` gets what a ViT's would: `dim`, `grid`, `depth` and the like; the number of prompts is set to 2.
    """
    config = SimpleNamespace(dim=4, grid=(1, 1), depth=1, heads=1, patch=1, image=(1, 1), extra=0, class_token=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make(config)
    require(isinstance(made, PromptExpert), f"prompt(config) has to return a PromptExpert: got {type(made).__name__}.")
    family = Family(name, lambda family, generator: made)
    truth = family.build()
    model = truth.model.with_atoms(family.atoms)
    return replace(truth, model=model, theta=_truth(model, np.random.default_rng(1)))


def _truth(model: RegressionModel, rng: np.random.Generator) -> Float64[Tensor, "p"]:
    theta = torch.from_numpy(rng.standard_normal(model.num_parameters))
    for name, shape in model.shapes.items():
        theta[model.slices[name]] *= 0.5 if name == "b" else 1 / math.sqrt(shape[-1] if len(shape) > 2 else 1)
    return theta
