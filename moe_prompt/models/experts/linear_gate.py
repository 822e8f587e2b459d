"""A linear gate with an expert of its own: the score is linear in x, the value an activation of a linear map."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_prompt.attention.prompts import LinearGateExpert
from moe_prompt.models.experts.base import Covariate, ExpertForm, Parameters, ScoreAndValue, closed_form, moments


@closed_form(LinearGateExpert)
class LinearGateForm(ExpertForm[LinearGateExpert]):
    """key_j = beta_j, value_j = act(eta_j x)."""

    def prepare(self, beta: Tensor, eta: Tensor) -> None:  # type: ignore[override]
        self.key, self.units, self.eta = beta, eta.shape[1:3], eta.flatten(1, 2)

    def evaluate(self, at: Covariate) -> ScoreAndValue:
        z = (self.eta @ at.x).unflatten(1, self.units)
        h = self.expert.activation(z)
        return ScoreAndValue(self.key @ at.q, self.c @ h, (z, h))

    def pullback(self, at: Covariate, done: ScoreAndValue, s: Tensor, g: Tensor, out: Parameters) -> None:
        slope = self.expert.activation.derivative(*done.saved)[:, :, :, None]
        torch.mul(at.q_row, s, out=out["beta"])
        torch.mul((g * slope * self.c_column)[:, :, :, None], at.x_row, out=out["eta"])

    def rows(self, at: Covariate, done: ScoreAndValue, r: Tensor) -> tuple[Tensor, Tensor]:
        bent = (self.c.mT @ r)[:, None] * self.expert.activation.derivative(*done.saved)
        inner = (bent[:, :, :, None] * at.x[:, None, None]).flatten(2, 3)
        score, value = (at.q.new_zeros(*inner.shape[:2], at.q.shape[1] + inner.shape[2], r.shape[2]) for _ in range(2))
        score[:, :, : at.q.shape[1]], value[:, :, at.q.shape[1] :] = at.q[:, None], inner
        return score, value

    def curvature(self, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
        r"""score is linear; value = C act(eta x): d2/deta_k2 = g (C' r)_k act''(z_k) x x'."""
        out = self.no_curvature(c)
        bent = (self.c.mT @ r)[:, None] * g[:, :, None] * self.expert.activation.second(*done.saved)
        own, dim, width = moments(bent, at.x), at.q.shape[1], at.x.shape[1]
        for k in range(own.shape[2]):
            rows = slice(dim + k * width, dim + (k + 1) * width)
            out[:, :, rows, rows] = own[:, :, k]
        return out
