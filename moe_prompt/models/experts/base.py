r"""Score and value of a prompt expert, sample by sample, with two derivatives: what a regression model asks of it.

A regression model needs two functions of a covariate x and a parameter theta (arXiv 2410.02200, 2501.18936),

    score_j(x) = (B key_j(x))^T x        value_j(x) = C value_j(x)

for least squares what a change of theta does to output o of the mixture,

    d f_o = sum_j { S_jo d score_j + g_j d value_jo },

and for Newton's method their second derivatives, summed over samples with given weights,

    curvature_j = sum_i { c_j(x_i) d2 score_j(x_i) + g_j(x_i) sum_o r_o(x_i) d2 value_jo(x_i) }

in atom j's own parameters and the shared ones, in the order of `named_parameters`. :meth:`ExpertForm.pullback` writes
the rows of the Jacobian from S and g; :meth:`ExpertForm.rows` has the score's and the value's apart. Each built-in
expert has a file with its closed form, registered by :func:`closed_form`; any other is differentiated (`autograd`).

Arrays are feature-major: samples are the last, contiguous axis, so that every operation streams over samples.
Letters in shapes: B problems, L atoms, D covariates, k key features, v value features, o outputs, n samples, q
parameters of an atom.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.attention.prompts import PromptExpert

Parameters = dict[str, Tensor]  # name -> (B, *shape)
E = TypeVar("E", bound=PromptExpert)
F = TypeVar("F", bound="ExpertForm")


class Covariate:
    """What score and value see of the covariates: x (B, D, n) and q = B^T x (B, k, n).

    `x_row` and `q_row` are the same arrays with axes for the parameters and outputs they are multiplied with.
    """

    def __init__(self, x: Tensor, q: Tensor) -> None:
        self.x, self.q = x, q
        self.x_row, self.q_row = x[:, None, None, :, None], q[:, None, :, None]

    def repeated(self, times: int) -> Covariate:
        """The covariates of every problem so many times in a row."""
        return Covariate(self.x.repeat_interleave(times, 0), self.q.repeat_interleave(times, 0))


class ScoreAndValue(NamedTuple):
    """score (B, L, n), value (B, L, o, n) or (B, L, o, 1) where it is constant, and what the pullback needs again."""

    score: Tensor
    value: Tensor
    saved: tuple[Tensor, ...] = ()


class ExpertForm(ABC, Generic[E]):
    """An expert's score and value under B and C at given parameters, and their pullback."""

    def __init__(self, expert: E, value_map: Tensor, num_tokens: int, parameters: Parameters) -> None:
        self.expert, self.c, self.num_tokens, self.parameters = expert, value_map, num_tokens, parameters
        self.c_column = value_map.mT[:, :, None]  # (v, o, 1): the value map against outputs and samples
        self.prepare(**parameters)

    def prepare(self, **parameters: Any) -> None:
        """What depends on the parameters alone, computed once for all samples."""

    @abstractmethod
    def evaluate(self, at: Covariate) -> ScoreAndValue:
        """Scores and values at these covariates."""

    @abstractmethod
    def pullback(self, at: Covariate, done: ScoreAndValue, s: Tensor, g: Tensor, out: Parameters) -> None:
        """Write d f_o / d theta into `out`, name -> (B, *shape, o, n), from s (B, L, 1, o, n) and g (B, L, 1, 1, n)."""

    def rows(self, at: Covariate, done: ScoreAndValue, r: Tensor) -> tuple[Tensor, Tensor]:
        """d score_j and d sum_o r_o value_jo in atom j's own parameters and the shared ones; r (B, o, n).

        (B, L, q, n) each, in the order of `named_parameters`; (B, 1, q, n) where they are the same for all atoms.
        Here by pulling back through an output of its own for the score, whose value is zero.
        """
        count, outputs, n = done.score.shape[1], *r.shape[1:]
        made, at = self.apart(count, torch.cat([self.c, torch.zeros_like(self.c[:1])])), at.repeated(count)
        out = {
            name: r.new_empty(len(r) * count, *value.shape[1:], outputs + 1, n)
            for name, value in made.parameters.items()
        }
        s = r.new_zeros(len(r) * count, 1, 1, outputs + 1, n)
        s[:, :, :, -1] = 1
        made.pullback(at, made.evaluate(at), s, torch.ones_like(s[:, :, :, :1]), out)
        both = torch.cat([block.flatten(1, -3) for block in out.values()], 1).unflatten(0, (-1, count))
        return both[:, :, :, -1], (both[:, :, :, :-1] * r[:, None, None]).sum(3)

    @abstractmethod
    def curvature(
        self, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor
    ) -> Float64[Tensor, "B L q q"]:
        """The curvature of every atom for weights c and g (B, L, n) and r (B, o, n)."""

    def no_curvature(self, like: Float64[Tensor, "B L n"]) -> Float64[Tensor, "B L q q"]:
        """Zeros in the shape of :meth:`curvature`."""
        shared = self.expert.is_shared
        q = sum(math.prod(value.shape[1 if shared(name) else 2 :]) for name, value in self.parameters.items())
        return like.new_zeros(*like.shape[:2], q, q)

    def apart(self, count: int, value_map: Tensor | None = None) -> ExpertForm[E]:
        """The same `count` atoms as B L problems of one atom, under C or another value map."""
        parameters = {
            name: value.repeat_interleave(count, 0) if self.expert.is_shared(name) else value.flatten(0, 1)[:, None]
            for name, value in self.parameters.items()
        }
        return type(self)(self.expert, self.c if value_map is None else value_map, self.num_tokens, parameters)


CLOSED_FORMS: dict[type[PromptExpert], type[ExpertForm]] = {}
"""Built-in expert -> its closed form."""


def closed_form(expert: type[PromptExpert]) -> Callable[[type[F]], type[F]]:
    """Registers a class as the closed form of an expert."""

    def register(form: type[F]) -> type[F]:
        CLOSED_FORMS[expert] = form
        return form

    return register


def moments(weights: Float64[Tensor, "B L h n"], x: Float64[Tensor, "B D n"]) -> Float64[Tensor, "B L h D D"]:
    """sum_i weights(x_i) x_i x_i'."""
    weighted = weights[:, :, :, None] * x[:, None, None]
    return (weighted.flatten(1, 3) @ x.mT).unflatten(1, weighted.shape[1:4])
