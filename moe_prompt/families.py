r"""Score and value of each prompt family, sample by sample, with their derivatives.

A regression model needs two functions of a covariate x and a parameter theta (arXiv 2410.02200, 2501.18936),

    score_j(x) = (B key_j(x))^T x        value_j(x) = C value_j(x)

and, for least squares, what a change of theta does to output o of the mixture,

    d f_o = sum_j { S_jo d score_j + g_j d value_jo }.

:meth:`Family.pullback` writes those rows of the Jacobian from S and g. Every built-in expert has them in closed form;
:class:`AutogradFamily` obtains them from any expert's `forward` with torch.func, more slowly.

Arrays are feature-major: samples are the last, contiguous axis, so that every operation streams over samples.
Letters in shapes: B problems, L atoms, D covariates, k key features, v value features, o outputs, n samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from moe_prompt.prompts import (
    ConstantPrompt,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptExpert,
    ReparameterizedPrefix,
)

Parameters = dict[str, Tensor]  # name -> (B, *shape)
E = TypeVar("E", bound=PromptExpert)


class Covariate:
    """What score and value see of the covariates: x (B, D, n) and q = B^T x (B, k, n).

    `x_row` and `q_row` are the same arrays with axes for the parameters and outputs they are multiplied with.
    """

    def __init__(self, x: Tensor, q: Tensor) -> None:
        self.x, self.q = x, q
        self.x_row, self.q_row = x[:, None, None, :, None], q[:, None, :, None]


class Evaluation(NamedTuple):
    """score (B, L, n), value (B, L, o, n) or (B, L, o, 1) where it is constant, and what the pullback needs again."""

    score: Tensor
    value: Tensor
    saved: tuple[Tensor, ...] = ()


class Family(ABC, Generic[E]):
    """An expert's score and value under B and C at given parameters, and their pullback."""

    def __init__(self, expert: E, value_map: Tensor, num_tokens: int, parameters: Parameters) -> None:
        self.expert, self.c, self.num_tokens, self.parameters = expert, value_map, num_tokens, parameters
        self.c_column = value_map.mT[:, :, None]  # (v, o, 1): the value map against outputs and samples
        self.prepare(**parameters)

    def prepare(self, **parameters: Any) -> None:
        """What depends on the parameters alone, computed once for all samples."""

    @abstractmethod
    def evaluate(self, at: Covariate) -> Evaluation:
        """Scores and values at these covariates."""

    @abstractmethod
    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        """Write d f_o / d theta into `out`, name -> (B, *shape, o, n), from s (B, L, 1, o, n) and g (B, L, 1, 1, n)."""


def family(expert: PromptExpert) -> type[Family]:
    """The family of an expert: closed form where it has one, else by automatic differentiation."""
    return CLOSED_FORM.get(type(expert), AutogradFamily)


class ConstantFamily(Family[ConstantPrompt]):
    """key_j = value_j = p_j."""

    def prepare(self, p: Tensor) -> None:  # type: ignore[override]
        self.key, self.value = p, (p @ self.c.mT)[..., None]

    def evaluate(self, at: Covariate) -> Evaluation:
        return Evaluation(self.key @ at.q, self.value)

    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        torch.mul(at.q_row, s, out=out["p"]).addcmul_(self.c_column, g)


class PrefixFamily(Family[PrefixPrompt]):
    """key_j and value_j are free."""

    def prepare(self, key: Tensor, value: Tensor) -> None:  # type: ignore[override]
        self.key, self.value = key, (value @ self.c.mT)[..., None]

    def evaluate(self, at: Covariate) -> Evaluation:
        return Evaluation(self.key @ at.q, self.value)

    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        torch.mul(at.q_row, s, out=out["key"])
        torch.mul(self.c_column, g, out=out["value"])


class ReparameterizedFamily(Family[ReparameterizedPrefix]):
    """key_j = act(W_1 p_j), value_j = act(W_2 p_j); the maps known or free."""

    def prepare(self, p: Tensor, w1: Tensor | None = None, w2: Tensor | None = None) -> None:  # type: ignore[override]
        act = self.expert.activation
        maps = (self.expert.w1 if w1 is None else w1, self.expert.w2 if w2 is None else w2)
        z1, z2 = (p @ weight.mT for weight in maps)
        self.key, value = act(z1), act(z2)
        self.value = (value @ self.c.mT)[..., None]
        self.slopes = act.derivative(z1, self.key), act.derivative(z2, value)
        key_jacobian, value_jacobian = (d[..., None] * _per_atom(w) for d, w in zip(self.slopes, maps, strict=True))
        self.key_pull, self.value_pull = key_jacobian.mT, (self.c @ value_jacobian).mT[..., None]

    def evaluate(self, at: Covariate) -> Evaluation:
        return Evaluation(self.key @ at.q, self.value)

    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        key_row = (self.key_pull @ at.q[:, None])[:, :, :, None]
        torch.mul(key_row, s, out=out["p"]).addcmul_(self.value_pull, g)
        if "w1" in out:
            p, (d1, d2) = self.parameters["p"], self.slopes
            out["w1"].copy_(torch.einsum("bjk,bkn,bjx,bjon->bkxon", d1, at.q, p, s[:, :, 0]))
            out["w2"].copy_(torch.einsum("ok,bjk,bjx,bjn->bkxon", self.c, d2, p, g[:, :, 0, 0]))


class FlatAdaptiveFamily(Family[FlatAdaptivePrompt]):
    r"""key_j = value_j = W_2 u_j, u_j = act(W_{1,j} x).

    Scores and values are taken straight from u_j, (W_2^T q)^T u_j and (C W_2) u_j: a prompt has dim coordinates, u_j
    only rank.
    """

    def prepare(self, w1: Tensor, w2: Tensor) -> None:  # type: ignore[override]
        self.units, self.w1, self.w2_transposed = w1.shape[1:3], w1.flatten(1, 2), w2.mT
        readout = self.c @ w2
        self.value_map, self.value_column = readout[:, None], readout.mT[:, None, :, :, None]

    def evaluate(self, at: Covariate) -> Evaluation:
        z = (self.w1 @ at.x).unflatten(1, self.units)
        u = self.expert.activation(z)
        readout = self.w2_transposed @ at.q
        return Evaluation((u * readout[:, None]).sum(2), self.value_map @ u, (z, u, readout))

    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        z, u, readout = done.saved
        unit = torch.mul(readout[:, None, :, None], s).addcmul_(self.value_column, g)
        unit.mul_(self.expert.activation.derivative(z, u)[:, :, :, None])
        torch.mul(unit[:, :, :, None], at.x_row, out=out["w1"])  # unit: (B, L, r, o, n), what an input does to f_o
        u_row = u[:, :, :, None]
        through_score, through_value = (s[:, :, 0, None] * u_row).sum(1), (g[:, :, 0] * u).sum(1)
        torch.mul(at.q[:, :, None, None], through_score[:, None], out=out["w2"])
        out["w2"].addcmul_(self.c.mT[:, None, :, None], through_value[:, None, :, None])


class LinearGateFamily(Family[LinearGateExpert]):
    """key_j = beta_j, value_j = act(eta_j x)."""

    def prepare(self, beta: Tensor, eta: Tensor) -> None:  # type: ignore[override]
        self.key, self.units, self.eta = beta, eta.shape[1:3], eta.flatten(1, 2)

    def evaluate(self, at: Covariate) -> Evaluation:
        z = (self.eta @ at.x).unflatten(1, self.units)
        h = self.expert.activation(z)
        return Evaluation(self.key @ at.q, self.c @ h, (z, h))

    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        slope = self.expert.activation.derivative(*done.saved)[:, :, :, None]
        torch.mul(at.q_row, s, out=out["beta"])
        torch.mul((g * slope * self.c_column)[:, :, :, None], at.x_row, out=out["eta"])


class AutogradFamily(Family[PromptExpert]):
    """Score, value and pullback of any expert, one vector-Jacobian product per sample and output."""

    # vmap misplaces any out_dims but 0 where an output does not depend on what it maps over: a constant key or value.

    def evaluate(self, at: Covariate) -> Evaluation:
        over_samples = vmap(self._single, in_dims=(None, 1, 1))
        score, value = vmap(over_samples)(self.parameters, at.x, at.q)
        return Evaluation(score.movedim(1, -1), value.movedim(1, -1))

    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        def rows(params: Parameters, x: Tensor, q: Tensor, s_x: Tensor, g_x: Tensor) -> Parameters:
            pull = vjp(lambda theta: self._single(theta, x, q), params)[1]
            value_cotangent = g_x[:, :, None] * torch.eye(s_x.shape[1], dtype=g_x.dtype, device=g_x.device)
            return vmap(lambda a, b: pull((a, b))[0], in_dims=(1, 1))(s_x, value_cotangent)

        over_samples = vmap(rows, in_dims=(None, 1, 1, 2, 2))
        jacobian = vmap(over_samples)(self.parameters, at.x, at.q, s[:, :, 0], g[:, :, :, 0])
        for name, block in jacobian.items():
            out[name].copy_(block.movedim((1, 2), (-1, -2)))

    def _single(self, parameters: Parameters, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        tokens = functional_call(self.expert, parameters, (x.unflatten(0, (self.num_tokens, -1)),))
        return tokens.key @ q, tokens.value @ self.c.mT


CLOSED_FORM: dict[type[PromptExpert], type[Family]] = {
    ConstantPrompt: ConstantFamily,
    PrefixPrompt: PrefixFamily,
    ReparameterizedPrefix: ReparameterizedFamily,
    FlatAdaptivePrompt: FlatAdaptiveFamily,
    LinearGateExpert: LinearGateFamily,
}


def _per_atom(weight: Tensor) -> Tensor:
    """A map shared by all atoms, known (k, x) or free (B, k, x), with an axis for the atoms."""
    return weight if weight.ndim == 2 else weight[:, None]
