"""Where the atoms of a mixing measure stand in a parameter vector, and an atom doubled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.models.regression import RegressionModel


@dataclass(frozen=True, eq=False)
class AtomLayout:
    """Places in theta (p,): of the log-weights (L,), none where they are not free, and of each atom's own parameters.

    `own` is (L, q), in the order of the model's parameters; `pairs` are all pairs of atoms that can trade mass.
    """

    model: Any  # a regression model
    log_weights: Int64[Tensor, "free"]
    own: Int64[Tensor, "atoms q"]
    pairs: Int64[Tensor, "pairs 2"]

    @classmethod
    def of(cls, model: RegressionModel) -> AtomLayout:
        every, names = torch.arange(model.num_parameters), own_names(model)
        places = [every[model.slices[name]].unflatten(0, (model.num_atoms, -1)) for name in names]
        free = model.gating_bias and bool(names)
        b = every[model.slices["b"]] if free else every[:0]
        pairs = torch.tensor(list(combinations(range(model.num_atoms), 2)) if free else [], dtype=torch.int64)
        return cls(model, b, torch.cat(places, 1) if names else every[:0, None], pairs.reshape(-1, 2))

    @property
    def size(self) -> int:
        """p."""
        return int(self.model.num_parameters)

    @property
    def width(self) -> int:
        """q, the number of parameters that an atom has to itself."""
        require(
            len(self.own) > 0,
            "splitting an atom needs parameters of its own: all parameters of this expert are shared.",
        )
        return self.own.shape[1]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what belongs to one atom."""
        return {name: self.model.shapes[name][1:] for name in own_names(self.model)}

    @cached_property
    def bigger(self) -> RegressionModel:
        """The family with one atom more."""
        bigger: RegressionModel = self.model.with_atoms(self.model.num_atoms + 1)
        return bigger

    def doubled(
        self, theta: Float64[Tensor, "*batch p"], atom: int, first: bool = False
    ) -> Float64[Tensor, "*batch r"]:
        """theta of one atom more: `atom` and a copy of it, each with half of its mass.

        The copy is the last atom, or with `first` the first.
        """
        atoms, bigger = self.model.num_atoms, self.bigger
        order = [atom, *range(atoms)] if first else [*range(atoms), atom]
        index = torch.tensor(order).expand(*theta.shape[:-1], -1)
        whole = bigger.flatten(self.model.measure(theta).take_atoms(index))
        halves = torch.zeros(bigger.num_parameters, dtype=theta.dtype)
        halves[bigger.slices["b"]][self.halves(atom, first)] = math.log(2)
        return whole - halves

    def halves(self, atom: int, first: bool = False) -> list[int]:
        """The numbers of the two halves among the atoms of :meth:`doubled`."""
        return [0, atom + 1] if first else [atom, self.model.num_atoms]


def own_names(model: RegressionModel) -> list[str]:
    """The parameters that every atom has to itself, log-weights apart."""
    return [name for name in model.shapes if name != "b" and not model.expert.is_shared(name)]


def own_columns(model: RegressionModel) -> Int64[Tensor, "q"]:
    """Which of an atom's parameters, its own and the shared ones in the model's order, are its own."""
    own, sizes = set(own_names(model)), {}
    for name, shape in model.shapes.items():
        if name != "b":
            sizes[name] = math.prod(shape[1:] if name in own else shape)
    return torch.cat([torch.full((size,), name in own) for name, size in sizes.items()]).nonzero()[:, 0]


def atom_places(model: RegressionModel) -> Tensor:
    """Where each atom's coordinates stand in theta, (L, q): log-weight, own parameters, shared ones."""
    places = []
    for name, shape in model.shapes.items():
        block = torch.arange(model.num_parameters)[model.slices[name]]
        own = name == "b" or not model.expert.is_shared(name)
        places.append(block.unflatten(0, (shape[0], -1)) if own else block.expand(model.num_atoms, -1))
    return torch.cat(places, 1)


def parameter_names(model: RegressionModel) -> tuple[str, ...]:
    """One name for every entry of a parameter vector: "b[0]", "w1[0,1,2]"."""
    return tuple(
        f"{name}[{','.join(map(str, index))}]"
        for name, shape in model.shapes.items()
        for index in product(*map(range, shape))
    )
