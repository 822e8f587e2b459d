r"""Bad sequences: other measures, at a distance from the truth, with the very same function.

Where a family with one atom more than the truth is not identifiable, this module writes down G(t), t >= 0, with

    f_{G(t)} = f_{G*}  for every x,        split_error(G(t), G*) = t  at one atom,

so that G_n = G(t), all within a box, keeps its Voronoi loss e^b t^2 at any n while its function is the truth's.

All but one are halves of an atom, masses e^b / 2 at theta + t e and theta - t e. With V(x; theta) = exp(link(score)),

    e^b / 2 sum_{+,-} V(x; theta +- t e)        = e^b V(x; theta)          in the denominator of f,
    e^b / 2 sum_{+,-} V(x; theta +- t e) value  = e^b V(x; theta) value    in its numerator,

for every t, as soon as e leaves the score as it is and enters the value linearly. The link plays no part: NoRGa's gate
cannot help. What is left to find is e:

| family                  | score             | value       | e                                       |
|-------------------------|-------------------|-------------|-----------------------------------------|
| free prefix             | (B key)^T x       | C value     | any change of `value`                   |
| linear gate and expert  | beta^T x          | eta x       | any change of `eta`                     |
| VPT, B singular         | (B p)^T x         | C p         | p in ker B                              |
| linear VAPT, r >= 2     | x^T B W_2 W_1 x   | C W_2 W_1 x | W_1 along S (B W_2)^T, S antisymmetric  |

The last, because x^T A x sees only the symmetric part of A = B W_2 W_1, which S changes by B W_2 S (B W_2)^T. W_2 being
shared, these are all the antisymmetric changes of A within reach: u v^T - v u^T, u and v in the column space of B W_2.
An S != 0 needs r >= 2; that the product W_2 W_1 moves, W_2 S (B W_2)^T != 0, needs B W_2 S != 0 if W_2 (d, r) has rank
r, which asks for r <= d and no inverse of B. :func:`free_maps_split` is the other kind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import choose, require
from moe_prompt.measures.losses import VoronoiLoss, split_error
from moe_prompt.measures.mixing_measure import MixingMeasure
from moe_prompt.models.atoms import AtomLayout
from moe_prompt.models.gating import exponential
from moe_prompt.models.regression import RegressionModel
from moe_prompt.theory.local_geometry import Nodes
from moe_prompt.theory.report import as_prefix

RANGES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "tanh": (torch.atanh, -1.0, 1.0),
    "sigmoid": (torch.logit, 0.0, 1.0),
    "linear": (torch.clone, -math.inf, math.inf),
}
"""Activation -> its inverse and the interval of its values."""


@dataclass(frozen=True, eq=False)
class BadSequence(ABC):
    """G(t) beside the truth f_{theta_star} with L atoms: parameter vectors of `model`, the same family with L + 1."""

    truth: RegressionModel
    theta_star: Float64[Tensor, "p"]
    atom: int

    def __post_init__(self) -> None:
        exponential(self.truth.gate, "a bad sequence")
        atoms = self.truth.num_atoms
        require(0 <= self.atom < atoms, f"atom must be one of 0..{atoms - 1}: got {self.atom}.")
        require(
            self.truth.gating_bias,
            "halves share the mass of an atom, so the log-weights b must be parameters: set gating_bias=True.",
        )

    @cached_property
    def model(self) -> RegressionModel:
        """The family with one atom more; the second half is the last."""
        return self.truth.with_atoms(self.truth.num_atoms + 1)

    @cached_property
    def reach(self) -> float:
        """Below this t, G(t) exists and its halves are nearer to their own atom than to another: split_error is t."""
        gaps, e = _gaps(self.measure(self.truth, self.theta_star), self.atom), self._direction
        shadows = gaps @ e
        touching = gaps.square().sum(1) / (2 * shadows).abs()
        return min(self._longest, *touching[shadows.abs() > 1e-12].tolist(), math.inf)

    @abstractmethod
    def theta(self, t: float) -> Float64[Tensor, "q"]:
        """The parameters of G(t)."""

    def halves(self, name: str, offset: Tensor) -> Float64[Tensor, "q"]:
        """The atom in two halves of its mass, the parameter `name` at +offset and, in the last atom, at -offset."""
        layout = AtomLayout.of(self.truth)
        doubled, (first, last) = layout.doubled(self.theta_star, self.atom), layout.halves(self.atom)
        place = doubled[self.model.slices[name]].unflatten(0, self.model.shapes[name])
        place[first] += offset
        place[last] -= offset
        return doubled

    def measure(self, model: RegressionModel, theta: Tensor) -> MixingMeasure:
        """The measure in the coordinates in which t is measured: those without the family's continuous symmetry."""
        return model.symmetry.canonical(model.measure(theta))

    @property
    def _longest(self) -> float:
        return math.inf

    @property
    def _direction(self) -> Tensor:
        """e among those coordinates."""
        t = min(1.0, 0.5 * self._longest)
        half, centre = self.measure(self.model, self.theta(t)), self.measure(self.truth, self.theta_star)
        return (half.atom_vectors() - centre.atom_vectors()[self.atom])[self.atom] / t


@dataclass(frozen=True, eq=False)
class HalfSplit(BadSequence):
    """Halves of an atom's mass at theta + t e and theta - t e, `offset` being e in the parameter `name` of the atom.

    For any family and any e; f stays where e is invisible, which is what :func:`half_split` takes care of.
    """

    name: str
    offset: Tensor

    def theta(self, t: float) -> Float64[Tensor, "q"]:
        return self.halves(self.name, t * self.offset)


@dataclass(frozen=True, eq=False)
class FreeMapsSplit(BadSequence):
    """Halves of an atom's mass with equal keys and values that differ by +-t along `axis`: `free_maps_split`."""

    axis: int

    def theta(self, t: float) -> Float64[Tensor, "q"]:
        most = self._longest
        require(0 <= t < most, f"values stay in the range of the activation for t < {most:.3g}: got t = {t}.")
        measure = self.truth.measure(self.theta_star)
        beyond = torch.linalg.qr(measure.atoms["p"].mT, mode="complete").Q[:, -1]  # orthogonal to every p_j
        halves = self.model.measure(self.halves("p", beyond))
        repeated = measure.atoms["p"][[*range(measure.num_atoms), self.atom]]
        inputs = {name: repeated @ w.mT for name, w in measure.shared.items()}
        inverse, value = RANGES[self.truth.expert.activation.name][0], self.truth.expert.activation(inputs["w2"])
        for half, shift in ((self.atom, t), (-1, -t)):
            inputs["w2"][half, self.axis] = inverse(value[half, self.axis] + shift)
        p = halves.atoms["p"]
        pinv = torch.linalg.pinv(p)
        shared = {name: w + (pinv @ (inputs[name] - p @ w.mT)).mT for name, w in measure.shared.items()}
        return self.model.flatten(MixingMeasure(halves.log_weights, halves.atoms, shared))

    def measure(self, model: RegressionModel, theta: Tensor) -> MixingMeasure:
        """Atoms (key, value): p and the maps are known only up to any invertible change of p."""
        anywhere = theta.new_zeros(1, len(model.key_map)), theta.new_ones(1)
        prefix, tokens = as_prefix(model, theta, anywhere)
        return prefix.measure(tokens)

    @property
    def _longest(self) -> float:
        return _room(self.truth, self.theta_star)[self.atom, self.axis].item()


def half_split(truth: RegressionModel, theta_star: Tensor, atom: int, name: str, basis: Tensor) -> HalfSplit:
    """The split along that unit e in the span of `basis` (m, *shape) which is most nearly orthogonal to other atoms.

    Orthogonal to their differences from `atom`, so that its halves stay nearest to it for as long as they can.
    """
    splits = [HalfSplit(truth, theta_star, atom, name, element) for element in basis]
    q, r = torch.linalg.qr(torch.stack([split._direction for split in splits], 1))
    gaps = _gaps(splits[0].measure(truth, theta_star), atom)
    shadows = gaps / gaps.square().sum(1, keepdim=True) @ q
    e = torch.linalg.svd(shadows, full_matrices=True).Vh[-1]
    return HalfSplit(truth, theta_star, atom, name, torch.tensordot(torch.linalg.solve(r, e), basis, 1))


def free_values(truth: RegressionModel, theta_star: Tensor, atom: int = 0) -> HalfSplit:
    """Free prefixes: equal keys, values p^V + t e and p^V - t e, under any link of the score."""
    return half_split(truth, theta_star, atom, "value", torch.eye(truth.shapes["value"][1], dtype=theta_star.dtype))


def linear_experts(truth: RegressionModel, theta_star: Tensor, atom: int = 0) -> HalfSplit:
    """A linear gate with linear experts: equal beta, slopes eta + t E and eta - t E, under any link of the score."""
    activation, shape = truth.expert.activation, truth.shapes["eta"][1:]
    require(activation.linear, f"only a linear expert hides a change of its slopes: got {activation.name!r}.")
    basis = torch.eye(math.prod(shape), dtype=theta_star.dtype).unflatten(1, shape)
    return half_split(truth, theta_star, atom, "eta", basis)


def kernel_of_b(truth: RegressionModel, theta_star: Tensor, atom: int = 0) -> HalfSplit:
    """VPT with B singular: p + t e and p - t e with B e = 0, as in a single head, where rank B = d_k < d."""
    _, values, rows = torch.linalg.svd(truth.key_map, full_matrices=True)
    kernel = rows[int((values > 1e-12 * values[0]).sum()) :]
    require(len(kernel) > 0, f"B (shape {tuple(truth.key_map.shape)}) is injective: its kernel hides no split.")
    return half_split(truth, theta_star, atom, "p", kernel)


def antisymmetric(truth: RegressionModel, theta_star: Tensor, atom: int = 0) -> HalfSplit:
    """Linear VAPT with r >= 2: W_1 + t S (B W_2)^T and W_1 - t S (B W_2)^T, S antisymmetric (r, r)."""
    activation, (d, r) = truth.expert.activation, truth.shapes["w2"]
    require(
        activation.linear and 2 <= r <= d,
        f"antisymmetric changes hide in linear prompts of 2 to {d} hidden units: got {activation.name!r}, {r}.",
    )
    first, second = torch.triu_indices(r, r, 1)
    s = theta_star.new_zeros(len(first), r, r)
    s[torch.arange(len(s)), first, second], s[torch.arange(len(s)), second, first] = 1.0, -1.0
    w2 = truth.measure(theta_star).shared["w2"]
    return half_split(truth, theta_star, atom, "w1", s @ (truth.key_map @ w2).mT)


def free_maps_split(truth: RegressionModel, theta_star: Tensor, atom: int = 0) -> FreeMapsSplit:
    r"""Reparameterised prefixes with learned maps and L + 1 <= d: equal keys, values v + t e_k and v - t e_k.

    Key_j = act(W_1 p_j) and value_j = act(W_2 p_j) share p_j, but p_1, ..., p_{L+1} in R^d can be linearly independent;
    then W_1 p_j = act^{-1}(key_j) and W_2 p_j = act^{-1}(value_j) have a solution for *any* keys and values that act
    takes: the family holds every free prefix of L + 1 atoms, and the free prefix's split. Here p splits into
    p_atom + e' and p_atom - e', e' a unit vector orthogonal to all p_j, and the maps move as little as they need to:
    W + (Z - W P) P^+. Coordinate k is the one with most room in the range of act, and t is less than that room.
    """
    atoms, dim = truth.shapes["p"]
    require(atoms < dim, f"free maps undo the sharing of at most {dim} atoms in dimension {dim}: got {atoms} + 1.")
    return FreeMapsSplit(truth, theta_star, atom, int(_room(truth, theta_star)[atom].argmax()))


SEQUENCES: dict[str, Callable[..., BadSequence]] = {
    "VPT, B singular": kernel_of_b,
    "prefix, non-shared": free_values,
    "reparameterised, maps free, L' <= d": free_maps_split,
    "VAPT, linear, r = 2": antisymmetric,
    "linear gate + linear expert": linear_experts,
    "NoRGa + linear expert": linear_experts,
    "NoRGa + constant expert": free_values,
}
"""Family, as named in :data:`moe_prompt.theory.families.FAMILIES` -> (truth, theta_star, atom) -> its bad sequence."""


@dataclass(frozen=True)
class Evidence:
    """One G(t) beside its truth: how far as a measure, how far as a function."""

    t: float
    split_error: float
    voronoi: float
    distance: float  # |f_G - f_*|_{L2(mu)}
    largest: float  # max |f_G - f_*| over nodes and outputs

    @property
    def is_bad(self) -> bool:
        """The same function to rounding, from another measure."""
        return self.largest < 1e-12 and self.split_error > 1e-6


@torch.no_grad()
def evidence(sequence: BadSequence, t: float, nodes: Nodes) -> Evidence:
    """Losses and function distances of G(t).

    >>> from moe_prompt.theory.families import FAMILIES
    >>> truth = FAMILIES["prefix, non-shared"].build()
    >>> found = evidence(free_values(truth.model, truth.theta), 0.5, truth.covariates.nodes(256))
    >>> round(found.split_error, 12), found.is_bad
    (0.5, True)
    """
    points, weights = nodes
    theta = sequence.theta(t)
    moved, true = sequence.measure(sequence.model, theta), sequence.measure(sequence.truth, sequence.theta_star)
    change = sequence.model.mean(theta, points) - sequence.truth.mean(sequence.theta_star, points)
    return Evidence(
        t,
        float(split_error(moved, true)[sequence.atom]),
        float(VoronoiLoss()(moved, true)),
        math.sqrt(float(change.square().sum(1) @ weights)),
        float(change.abs().max()),
    )


def _gaps(measure: MixingMeasure, atom: int) -> Float64[Tensor, "others q"]:
    """From the atom to every other one."""
    vectors = measure.atom_vectors()
    return torch.cat([vectors[:atom], vectors[atom + 1 :]]) - vectors[atom]


def _room(truth: RegressionModel, theta: Tensor) -> Float64[Tensor, "atoms dim"]:
    """How far each coordinate of each value is from the ends of what the activation takes."""
    measure, activation = truth.measure(theta), truth.expert.activation
    _, low, high = choose("activation with an inverse", activation.name, RANGES)
    value = activation(measure.atoms["p"] @ measure.shared["w2"].mT)
    return torch.minimum(high - value, value - low)
