r"""Score and value of each prompt family, sample by sample, with their derivatives.

A regression model needs two functions of a covariate x and a parameter theta (arXiv 2410.02200, 2501.18936),

    score_j(x) = (B key_j(x))^T x        value_j(x) = C value_j(x)

and, for least squares, what a change of theta does to output o of the mixture,

    d f_o = sum_j { S_jo d score_j + g_j d value_jo }.

:meth:`Family.pullback` writes those rows of the Jacobian from S and g; :meth:`Family.rows` has the score's and the
value's apart, for second derivatives of f. Every built-in expert has them in closed form; :class:`AutogradFamily`
obtains them from any expert's `forward` with torch.func, more slowly.

Arrays are feature-major: samples are the last, contiguous axis, so that every operation streams over samples.
Letters in shapes: B problems, L atoms, D covariates, k key features, v value features, o outputs, n samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from moe_prompt.attention.prompts import (
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

    def repeated(self, times: int) -> Covariate:
        """The covariates of every problem so many times in a row."""
        return Covariate(self.x.repeat_interleave(times, 0), self.q.repeat_interleave(times, 0))


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

    def rows(self, at: Covariate, done: Evaluation, r: Tensor) -> tuple[Tensor, Tensor]:
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

    def apart(self, count: int, value_map: Tensor | None = None) -> Family[E]:
        """The same `count` atoms as B L problems of one atom, under C or another value map."""
        parameters = {
            name: value.repeat_interleave(count, 0) if self.expert.is_shared(name) else value.flatten(0, 1)[:, None]
            for name, value in self.parameters.items()
        }
        return type(self)(self.expert, self.c if value_map is None else value_map, self.num_tokens, parameters)


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

    def rows(self, at: Covariate, done: Evaluation, r: Tensor) -> tuple[Tensor, Tensor]:
        return at.q[:, None], (self.c.mT @ r)[:, None]


class PrefixFamily(Family[PrefixPrompt]):
    """key_j and value_j are free."""

    def prepare(self, key: Tensor, value: Tensor) -> None:  # type: ignore[override]
        self.key, self.value = key, (value @ self.c.mT)[..., None]

    def evaluate(self, at: Covariate) -> Evaluation:
        return Evaluation(self.key @ at.q, self.value)

    def pullback(self, at: Covariate, done: Evaluation, s: Tensor, g: Tensor, out: Parameters) -> None:
        torch.mul(at.q_row, s, out=out["key"])
        torch.mul(self.c_column, g, out=out["value"])

    def rows(self, at: Covariate, done: Evaluation, r: Tensor) -> tuple[Tensor, Tensor]:
        back = self.c.mT @ r
        score, value = [at.q, torch.zeros_like(back)], [torch.zeros_like(at.q), back]
        return torch.cat(score, 1)[:, None], torch.cat(value, 1)[:, None]


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

    def rows(self, at: Covariate, done: Evaluation, r: Tensor) -> tuple[Tensor, Tensor]:
        if "w1" in self.parameters:  # the maps are learned too
            return super().rows(at, done, r)
        return self.key_pull @ at.q[:, None], self.value_pull[..., 0] @ r[:, None]


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

    def rows(self, at: Covariate, done: Evaluation, r: Tensor) -> tuple[Tensor, Tensor]:
        z, u, readout = done.saved
        back, slope = self.c.mT @ r, self.expert.activation.derivative(z, u)
        rows = []
        for unit, output in ((readout, at.q), (self.w2_transposed @ back, back)):
            inner = (unit[:, None] * slope)[:, :, :, None] * at.x[:, None, None]  # (B, L, r, D, n)
            outer = output[:, None, :, None] * u[:, :, None]  # (B, L, dim, r, n)
            rows.append(torch.cat([inner.flatten(2, 3), outer.flatten(2, 3)], 2))
        return rows[0], rows[1]


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

    def rows(self, at: Covariate, done: Evaluation, r: Tensor) -> tuple[Tensor, Tensor]:
        bent = (self.c.mT @ r)[:, None] * self.expert.activation.derivative(*done.saved)
        inner = (bent[:, :, :, None] * at.x[:, None, None]).flatten(2, 3)
        score, value = (at.q.new_zeros(*inner.shape[:2], at.q.shape[1] + inner.shape[2], r.shape[2]) for _ in range(2))
        score[:, :, : at.q.shape[1]], value[:, :, at.q.shape[1] :] = at.q[:, None], inner
        return score, value


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
