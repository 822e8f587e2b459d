r"""How a gate mixes the experts of a regression model: f from scores and values, and what either does to f.

With s_j the score of prompt j, b_j its log-weight, v_j its value, and frozen experts of scores a_i and values u_i,

| gate    | f                                                         | S_jo = df_o / db_j          |
|---------|-----------------------------------------------------------|-----------------------------|
| softmax | softmax(a, s + b) of (u, v)                               | g_j (v_jo - f_o)            |
| NoRGa   | the same with link(s) + b                                 | the same                    |
| top-K   | the same without all prompts but K: largest s + b at x    | the same; 0 if not chosen   |
| sigmoid | sum_i sigma(a_i + c) u_i + sum_j sigma(s_j + b_j + c) v_j | g_j (1 - g_j) v_jo          |
| zero    | softmax(a) of u + tanh(a_0) softmax(s + b) of v           | g_j (v_jo - prompts' mean)  |

with g_j = df_o / dv_jo the weight of prompt j, and df_o / ds_j = link'(s_j) S_jo. The frozen experts do not depend on
the prompts: a sample's are evaluated once, and :meth:`Mixing.frozen` says what is kept of them.

Shapes: B problems, L prompts, N frozen experts, o outputs, n samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from moe_prompt.attention.gates import ExponentialGate, Gate, SigmoidGate, TopKGate, ZeroInitGate
from moe_prompt.errors import InputError, require

G = TypeVar("G", bound=Gate)


class Mixed(NamedTuple):
    """f (B, o, n), the prompts' weights g (B, L, 1, n), and link' (B, L, n) where the link is not the identity."""

    f: Tensor
    g: Tensor
    slope: Tensor | None = None


class Mixing(ABC, Generic[G]):
    """f and its derivatives under one gate."""

    averages_queries: ClassVar[bool] = False
    """Whether a prompt has one score in all rows of a head, their average."""
    jumps: ClassVar[bool] = False
    """Whether f is discontinuous in x at places that depend on theta: E[J'J] is then no information matrix."""
    no_split: ClassVar[str] = "nobody has said whether two halves of an atom's mass are that atom"
    """Why two halves of an atom's mass are not that atom; empty under the gates where they are."""

    def __init__(self, gate: G) -> None:
        self.gate = gate

    def check(self, num_atoms: int) -> None:
        """Raise InputError for a number of atoms that the gate cannot take."""

    @abstractmethod
    def frozen(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What prompts compete with (B, 1 or 0, n), and the frozen experts' weights among themselves (B, N, n)."""

    @abstractmethod
    def mix(self, score: Tensor, b: Tensor, value: Tensor, log_frozen: Tensor, frozen_mean: Tensor) -> Mixed:
        """f from scores (B, L, n), b (B, L, 1), values (B, L, o, n or 1), and the frozen experts' parts."""

    @abstractmethod
    def seeds(self, value: Tensor, mixed: Mixed) -> tuple[Tensor, Tensor]:
        """df_o / db_j and df_o / ds_j, (B, L, o, n) each."""


class _Softmax(Mixing[G]):
    """The frozen experts are kept as the log of their summed gates and as their own mixture."""

    @abstractmethod
    def logits(self, score: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logs of the prompts' weights before they are normalised, and link'."""

    def frozen(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores.logsumexp(1, keepdim=True), scores.softmax(1)

    def mix(self, score: Tensor, b: Tensor, value: Tensor, log_frozen: Tensor, frozen_mean: Tensor) -> Mixed:
        logits, slope = self.logits(score, b)
        gates = torch.softmax(torch.cat([log_frozen, logits], 1), 1)
        g = gates[:, 1:, None]
        return Mixed((g * value).sum(1).addcmul_(gates[:, :1], frozen_mean), g, slope)

    def seeds(self, value: Tensor, mixed: Mixed) -> tuple[Tensor, Tensor]:
        s = torch.mul(mixed.g, value - mixed.f[:, None])
        return s, s if mixed.slope is None else s * mixed.slope[:, :, None]


class ExponentialMixing(_Softmax[ExponentialGate]):
    """Softmax, after a link on the prompts' scores."""

    no_split = ""

    def logits(self, score: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
        score, slope = self.gate.link(score)
        return score + b, slope


class TopKMixing(_Softmax[TopKGate]):
    r"""Softmax over the frozen experts and the K prompts with the largest score + b at x.

    The derivative is that of the chosen prompts, at almost every x: f jumps in x where s_j + b_j = s_k + b_k are K-th
    and next, both weights being equal there, by g_j (v_j - v_k). What follows from the jump, derived here:

    1. E |f_{theta + h} - f_theta|^2 is of order |h|, not |h|^2, along h that move such a boundary: the jump squared,
       times the mass of X that changes sides. Least squares finds those combinations of theta within O_P(1 / n), as
       in a regression with a change point, and the others within n^{-1/2}.
    2. Hence E[J^T J] is not the information about them and s^2 I^{-1} / n no bound. It still is for the directions
       that move no boundary, once the boundaries are known.
    3. On a sample, the objective is smooth between the theta at which some x_i changes sides and jumps there, in O(n)
       pieces. A method that follows derivatives stops at a jump that it cannot pass, has no rate, and says so
       itself; :mod:`moe_prompt.estimation.top_one.least_squares` does not follow them alone.
    """

    averages_queries = True
    jumps = True
    no_split = "f jumps where the choice of prompts changes, and both halves of an atom take a place among the K"

    def check(self, num_atoms: int) -> None:
        k = self.gate.k
        require(k <= num_atoms, f"a top-K gate needs k <= number of prompts: got k = {k}, {num_atoms} prompts.")

    def logits(self, score: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = score + b
        dropped = torch.ones_like(logits, dtype=torch.bool).scatter_(1, logits.topk(self.gate.k, dim=1).indices, False)
        return logits.masked_fill_(dropped, -torch.inf), None


class SigmoidMixing(Mixing[SigmoidGate]):
    r"""A sum, not an average: every expert is weighed by itself (arXiv 2405.13997).

    What a measure with atoms too many can do here, derived for scores a'x + b and constant values: 1 and the functions
    sigma(a'x + b), a != 0, (a, b) up to sign, are linearly independent (their poles in a complex x differ), and
    sigma(-z) = 1 - sigma(z). So f knows G as the measure sum_j v_j delta_(a_j, b_j), whose masses are *values*, and
    with one atom more than the truth f_G = f_* leaves

    1. an empty atom, v = 0 or b = -infinity, anywhere. The other atoms are learned as if it were not there, n^{-1/2};
       its place never is. This costs VPT, B injective, no power of n: there p_1 = p_2 = p_* counts the value twice.
    2. a mirror image: (-a, -b) with the value -v, and beside it v at b = +infinity. Families odd in theta have it, VPT
       by -p: another measure, whose function is the truth's up to e^{-b}. In a large box nothing tells the two apart.
    3. where the value is free of the score (prefixes), two atoms with equal a and b and v_1 + v_2 = v_*, whatever v_1:
       the values are not identified, only their sum. Of the places' errors d_i, f sees sum_i v_i d_i and then
       sum_i v_i d_i d_i'. If v_1 and v_2 are not parallel, the first makes d_i of order n^{-1/2}; else the second
       n^{-1/4}. As these masses have signs, three atoms in a cell can cancel the second, too, and leave n^{-1/6}.

    Halves of a mass e^b are not among them: sigma(s + b_1) + sigma(s + b_2) = sigma(s + b) for no finite b_1, b_2.
    """

    no_split = "two sigmoids never add up to one, so that halves of an atom's mass are another function"

    def frozen(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores[:, :0], torch.sigmoid(scores + self.gate.bias)

    def mix(self, score: Tensor, b: Tensor, value: Tensor, log_frozen: Tensor, frozen_mean: Tensor) -> Mixed:
        g = torch.sigmoid(score + (b + self.gate.bias))[:, :, None]
        return Mixed((g * value).sum(1).add_(frozen_mean), g)

    def seeds(self, value: Tensor, mixed: Mixed) -> tuple[Tensor, Tensor]:
        s = mixed.g * (1 - mixed.g) * value
        return s, s


class ZeroInitMixing(Mixing[ZeroInitGate]):
    """Prompts compete among themselves alone, and their mixture enters times tanh(a) (arXiv 2502.03029)."""

    no_split = "prompts compete with each other alone, so that log-weights are known up to a common constant only"

    def frozen(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores[:, :0], scores.softmax(1)

    def mix(self, score: Tensor, b: Tensor, value: Tensor, log_frozen: Tensor, frozen_mean: Tensor) -> Mixed:
        g = (torch.tanh(self.gate.a) * torch.softmax(score + b, 1))[:, :, None]
        return Mixed((g * value).sum(1).add_(frozen_mean), g)

    def seeds(self, value: Tensor, mixed: Mixed) -> tuple[Tensor, Tensor]:
        total = mixed.g.sum(1, keepdim=True)  # tanh(a): where it is 0, so are all weights
        centre = (mixed.g * value).sum(1, keepdim=True) / torch.where(total == 0, 1.0, total)
        s = mixed.g * (value - centre)
        return s, s


MIXINGS: dict[type[Gate], type[Mixing]] = {
    SigmoidGate: SigmoidMixing,
    TopKGate: TopKMixing,
    ZeroInitGate: ZeroInitMixing,
}
"""Beside these, a regression model takes every :class:`~moe_prompt.attention.gates.ExponentialGate`, and every gate
with a method `mixing()` that returns the :class:`Mixing` of its own."""


def mixing(gate: Gate) -> Mixing:
    """How a gate mixes.

    A gate of the user's own is taken if it is a subclass of :class:`~moe_prompt.attention.gates.ExponentialGate`, or
    if it says how it mixes: its method `mixing()` returns a :class:`Mixing`.

    Raises:
        InputError: any other gate, or a `mixing()` that returns something else.
    """
    own = getattr(gate, "mixing", None)
    if own is not None:
        found = own()
        require(
            isinstance(found, Mixing),
            f"{type(gate).__name__}.mixing() needs to return a moe_prompt.models.gating.Mixing: got "
            f"{type(found).__name__}.",
        )
        return found
    if isinstance(gate, ExponentialGate):
        return ExponentialMixing(gate)
    require(
        type(gate) in MIXINGS,
        f"{type(gate).__name__} works in attention heads, `view` and `classify`, but a regression model (studies, "
        "`identifiability`) also needs the derivatives of what a gate makes of its scores: derive the gate from "
        "ExponentialGate if it is a softmax of transformed scores, or give it a method mixing() that returns a Mixing.",
    )
    return MIXINGS[type(gate)](gate)


def exponential(gate: Gate, what: str) -> ExponentialGate:
    """The gate, if it is exponential: `what` is derived for no other."""
    if isinstance(gate, ExponentialGate):
        return gate
    raise InputError(
        f"{what} needs an exponential gate (softmax, NoRGa): got {type(gate).__name__}, under which "
        f"{mixing(gate).no_split}; use an exponential gate, or as many atoms as the truth has."
    )
