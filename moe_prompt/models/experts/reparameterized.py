"""Reparameterised prefixes: key and value are maps of one parameter, known or learned."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_prompt.attention.prompts import ReparameterizedPrefix
from moe_prompt.models.experts.autograd import differentiated_curvature
from moe_prompt.models.experts.base import Covariate, ExpertForm, Parameters, ScoreAndValue, closed_form


@closed_form(ReparameterizedPrefix)
class ReparameterizedForm(ExpertForm[ReparameterizedPrefix]):
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

    def evaluate(self, at: Covariate) -> ScoreAndValue:
        return ScoreAndValue(self.key @ at.q, self.value)

    def pullback(self, at: Covariate, done: ScoreAndValue, s: Tensor, g: Tensor, out: Parameters) -> None:
        key_row = (self.key_pull @ at.q[:, None])[:, :, :, None]
        torch.mul(key_row, s, out=out["p"]).addcmul_(self.value_pull, g)
        if "w1" in out:
            p, (d1, d2) = self.parameters["p"], self.slopes
            out["w1"].copy_(torch.einsum("bjk,bkn,bjx,bjon->bkxon", d1, at.q, p, s[:, :, 0]))
            out["w2"].copy_(torch.einsum("ok,bjk,bjx,bjn->bkxon", self.c, d2, p, g[:, :, 0, 0]))

    def rows(self, at: Covariate, done: ScoreAndValue, r: Tensor) -> tuple[Tensor, Tensor]:
        if "w1" in self.parameters:  # the maps are learned too
            return super().rows(at, done, r)
        return self.key_pull @ at.q[:, None], self.value_pull[..., 0] @ r[:, None]

    def curvature(self, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
        r"""d2/dp2 = W_1' diag(c q act''(W_1 p)) W_1 + W_2' diag(g C' r act''(W_2 p)) W_2, summed over samples."""
        if "w1" in self.parameters:  # the maps are learned too
            return differentiated_curvature(self, at, done, c, g, r)
        p, act = self.parameters["p"], self.expert.activation
        out = self.no_curvature(c)
        pulls = (c @ at.q.mT, g @ r.mT @ self.c)  # (B, L, k) and (B, L, v)
        for weight, pull in zip((self.expert.w1, self.expert.w2), pulls, strict=True):
            z = p @ weight.mT
            out += weight.mT @ ((pull * act.second(z, act(z)))[..., None] * weight)
        return out


def _per_atom(weight: Tensor) -> Tensor:
    """A map shared by all atoms, known (k, x) or free (B, k, x), with an axis for the atoms."""
    return weight if weight.ndim == 2 else weight[:, None]
