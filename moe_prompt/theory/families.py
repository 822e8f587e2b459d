r"""The families of the literature as data: one recipe per row of the table, each with a generic truth to describe.

    name -> Recipe;  Recipe.build() -> Setting(model, theta, covariates, symmetry)

Sizes are moderate and the seed is part of the recipe, so a row is the same numbers everywhere. What a row can do is
computed by :func:`~moe_prompt.theory.report.describe`, never written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.attention.activations import activation as named_activation
from moe_prompt.attention.gates import NonlinearResidualGate, SoftmaxGate
from moe_prompt.attention.prompts import (
    ConstantPrompt,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptExpert,
    ReparameterizedPrefix,
)
from moe_prompt.errors import choose, require
from moe_prompt.measures.alignment import Symmetry
from moe_prompt.measures.symmetries import HiddenUnits
from moe_prompt.models.covariates import Covariates, Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.theory.report import FamilyReport, describe


class Setting(NamedTuple):
    """A truth within its family: what a limit is computed from."""

    model: RegressionModel
    theta: Float64[Tensor, "p"]
    covariates: Covariates
    symmetry: Symmetry | None = None


@dataclass(frozen=True)
class Recipe:
    """How to draw a truth from a family.

    `expert` makes the expert from the recipe and a generator. `hidden` is the width r of VAPT's hidden layer.
    `key_rank` is the rank of B: the d_k of a single head, or the dimension. `outputs` = 0: as many as dimensions.
    """

    expert: Callable[[Recipe, torch.Generator], PromptExpert]
    activation: str | None = None
    hidden: int | None = None
    key_rank: int | None = None
    norga: bool = False
    random_maps: bool = True  # B and C as in a random head; otherwise the identity
    dim: int = 4
    outputs: int = 2
    atoms: int = 2
    frozen: int = 3
    seed: int = 0

    def build(self) -> Setting:
        """Every parameter normal at its own scale, log-weights too, and X uniform on [-2, 2]^dim."""
        rng = np.random.default_rng(self.seed)
        expert = self.expert(self, torch.Generator().manual_seed(self.seed)).double()
        outputs = self.outputs or self.dim
        tokens = expert(torch.zeros(1, self.dim, dtype=torch.float64))
        model = RegressionModel(
            FrozenExperts.random(self.frozen, self.dim, outputs, rng),
            expert,
            self._key_map(tokens.key.shape[-1], rng),
            self._map(outputs, tokens.value.shape[-1], rng),
            (NonlinearResidualGate() if self.norga else SoftmaxGate()).requires_grad_(False),
        )
        return Setting(model, _truth(model, rng), Uniform(-2.0, 2.0, self.dim), symmetry(expert))

    def _key_map(self, width: int, rng: np.random.Generator) -> Tensor:
        if self.key_rank is None:
            return self._map(self.dim, width, rng)
        return self._map(self.dim, self.key_rank, rng) @ self._map(self.key_rank, width, rng)

    def _map(self, rows: int, columns: int, rng: np.random.Generator) -> Tensor:
        if not self.random_maps:
            return torch.eye(rows, columns, dtype=torch.float64)
        return torch.from_numpy(rng.standard_normal((rows, columns))) / math.sqrt(columns)


def vpt(recipe: Recipe, generator: torch.Generator) -> PromptExpert:
    """One constant for key and value."""
    return ConstantPrompt(recipe.atoms, recipe.dim, generator=generator)


def prefix(recipe: Recipe, generator: torch.Generator) -> PromptExpert:
    """Two constants; the value in output space, where C is invertible."""
    return PrefixPrompt(recipe.atoms, recipe.dim, value_dim=recipe.outputs or recipe.dim, generator=generator)


def known_maps(recipe: Recipe, generator: torch.Generator) -> PromptExpert:
    """Key and value from one constant through two known maps."""
    return ReparameterizedPrefix(recipe.atoms, recipe.dim, recipe.activation or "tanh", generator=generator)


def free_maps(recipe: Recipe, generator: torch.Generator) -> PromptExpert:
    """Key and value from one constant through two learned maps."""
    return ReparameterizedPrefix(recipe.atoms, recipe.dim, recipe.activation or "tanh", True, generator=generator)


def vapt(recipe: Recipe, generator: torch.Generator) -> PromptExpert:
    """W_2 act(W_1j x), W_2 shared."""
    return FlatAdaptivePrompt(
        recipe.atoms, recipe.dim, recipe.hidden or 1, recipe.activation or "tanh", generator=generator
    )


def linear_gate(recipe: Recipe, generator: torch.Generator) -> PromptExpert:
    """Score beta_j^T x and value act(eta_j x)."""
    return LinearGateExpert(
        recipe.atoms, recipe.dim, recipe.outputs or recipe.dim, recipe.activation or "linear", generator=generator
    )


FAMILIES: dict[str, Recipe] = {
    "VPT, B injective": Recipe(vpt),
    "VPT, B singular": Recipe(vpt, key_rank=2),
    "prefix, non-shared": Recipe(prefix),
    "reparameterised prefix, maps known": Recipe(known_maps, "tanh"),
    "reparameterised, maps free, L' <= d": Recipe(free_maps, "tanh", outputs=0),
    "VAPT, tanh": Recipe(vapt, "tanh", hidden=2),
    "VAPT, gelu": Recipe(vapt, "gelu", hidden=2),
    "VAPT, sigmoid": Recipe(vapt, "sigmoid", hidden=2),
    "VAPT, relu": Recipe(vapt, "relu", hidden=2),
    "VAPT, linear, r = 1": Recipe(vapt, "linear", hidden=1),
    "VAPT, linear, r = 2": Recipe(vapt, "linear", hidden=2),
    "linear gate + linear expert": Recipe(linear_gate, "linear", random_maps=False),
    "linear gate + tanh ridge": Recipe(linear_gate, "tanh", random_maps=False),
    "NoRGa + linear expert": Recipe(linear_gate, "linear", norga=True, random_maps=False),
    "NoRGa + constant expert": Recipe(prefix, norga=True, random_maps=False),
    "NoRGa + tanh ridge": Recipe(linear_gate, "tanh", norga=True, random_maps=False),
}
"""The rows of the table, in its order."""

EXPERTS: dict[str, Recipe] = {
    "vpt": FAMILIES["VPT, B injective"],
    "prefix": FAMILIES["prefix, non-shared"],
    "reparameterized": FAMILIES["reparameterised prefix, maps known"],
    "reparameterized-free": FAMILIES["reparameterised, maps free, L' <= d"],
    "vapt": FAMILIES["VAPT, tanh"],
    "linear-gate": FAMILIES["linear gate + tanh ridge"],
    "norga": FAMILIES["NoRGa + tanh ridge"],
    "norga-constant": FAMILIES["NoRGa + constant expert"],
}
"""Short names for the command line."""


def select(expert: str, activation: str | None = None, rank: int | None = None) -> Recipe:
    """The recipe of a short name, with another activation or rank.

    `rank` is the width r of VAPT's hidden layer; elsewhere the rank of B, d_k in a single head.
    Raises InputError for unknown names, and for an activation or a rank that the expert does not have.

    >>> select("vapt", "gelu", rank=3).build().theta.shape
    torch.Size([38])
    """
    recipe = choose("expert", expert, EXPERTS)
    if activation is not None:
        have = ", ".join(name for name, r in EXPERTS.items() if r.activation)
        require(recipe.activation is not None, f"{expert!r} has no activation to choose; these have one: {have}.")
        recipe = replace(recipe, activation=named_activation(activation).name)
    if rank is None:
        return recipe
    if recipe.hidden is not None:
        require(1 <= rank <= 12, f"the table's quadrature takes hidden layers of 1 to 12 units: got {rank}.")
        return replace(recipe, hidden=rank)
    require(recipe.random_maps, f"{expert!r} has no rank to choose: its B is the identity; leave the rank out.")
    require(1 <= rank <= recipe.dim, f"the rank of B must be one of 1..{recipe.dim}: got {rank}.")
    return replace(recipe, key_rank=rank)


def symmetry(expert: PromptExpert) -> Symmetry | None:
    """The declared symmetry of a built-in expert; None where there is none to declare."""
    if isinstance(expert, FlatAdaptivePrompt) and expert.activation.name != "square":
        return HiddenUnits("w1", "w2", expert.activation)
    return None


def report(expert: str, activation: str | None = None, rank: int | None = None) -> FamilyReport:
    """The limits of one recipe, named as it was asked for."""
    words = [expert, activation, None if rank is None else f"rank {rank}"]
    return describe(*select(expert, activation, rank).build(), name=", ".join(word for word in words if word))


def table() -> list[FamilyReport]:
    """Every row of the table, computed: about half a minute on one core."""
    return [describe(*recipe.build(), name=name) for name, recipe in FAMILIES.items()]


def own_expert(make: Callable[[Any], PromptExpert]) -> Setting:
    """The table's common setting around an expert of the user's own: one token of 4 numbers, 2 outputs, 2 prompts.

    `make(config)` gets what a ViT's would: `dim`, `grid`, `depth` and the like; the number of prompts is set to 2.
    """
    config = SimpleNamespace(dim=4, grid=(1, 1), depth=1, heads=1, patch=1, image=(1, 1), extra=0, class_token=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make(config)
    require(isinstance(made, PromptExpert), f"prompt(config) has to return a PromptExpert: got {type(made).__name__}.")
    recipe = Recipe(lambda recipe, generator: made)
    model = recipe.build().model.with_atoms(recipe.atoms)
    return Setting(model, _truth(model, np.random.default_rng(1)), Uniform(-2.0, 2.0, recipe.dim))


def _truth(model: RegressionModel, rng: np.random.Generator) -> Float64[Tensor, "p"]:
    theta = torch.from_numpy(rng.standard_normal(model.num_parameters))
    for name, shape in model.shapes.items():
        theta[model.slices[name]] *= 0.5 if name == "b" else 1 / math.sqrt(shape[-1] if len(shape) > 2 else 1)
    return theta
