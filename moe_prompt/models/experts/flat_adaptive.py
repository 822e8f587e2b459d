"""VAPT in its flat form: a prompt is a readout of hidden units of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_prompt.attention.prompts import FlatAdaptivePrompt
from moe_prompt.models.experts.base import Covariate, ExpertForm, Parameters, ScoreAndValue, closed_form, moments


@closed_form(FlatAdaptivePrompt)
class FlatAdaptiveForm(ExpertForm[FlatAdaptivePrompt]):
    r"""key_j = value_j = W_2 u_j, u_j = act(W_{1,j} x).

    Scores and values are taken straight from u_j, (W_2^T q)^T u_j and (C W_2) u_j: a prompt has dim coordinates, u_j
    only rank.
    """

    def prepare(self, w1: Tensor, w2: Tensor) -> None:  # type: ignore[override]
        self.units, self.w1, self.w2_transposed = w1.shape[1:3], w1.flatten(1, 2), w2.mT
        readout = self.c @ w2
        self.value_map, self.value_column = readout[:, None], readout.mT[:, None, :, :, None]

    def evaluate(self, at: Covariate) -> ScoreAndValue:
        z = (self.w1 @ at.x).unflatten(1, self.units)
        u = self.expert.activation(z)
        readout = self.w2_transposed @ at.q
        return ScoreAndValue((u * readout[:, None]).sum(2), self.value_map @ u, (z, u, readout))

    def pullback(self, at: Covariate, done: ScoreAndValue, s: Tensor, g: Tensor, out: Parameters) -> None:
        z, u, readout = done.saved
        unit = torch.mul(readout[:, None, :, None], s).addcmul_(self.value_column, g)
        unit.mul_(self.expert.activation.derivative(z, u)[:, :, :, None])
        torch.mul(unit[:, :, :, None], at.x_row, out=out["w1"])  # unit: (B, L, r, o, n), what an input does to f_o
        u_row = u[:, :, :, None]
        through_score, through_value = (s[:, :, 0, None] * u_row).sum(1), (g[:, :, 0] * u).sum(1)
        torch.mul(at.q[:, :, None, None], through_score[:, None], out=out["w2"])
        out["w2"].addcmul_(self.c.mT[:, None, :, None], through_value[:, None, :, None])

    def rows(self, at: Covariate, done: ScoreAndValue, r: Tensor) -> tuple[Tensor, Tensor]:
        z, u, readout = done.saved
        back, slope = self.c.mT @ r, self.expert.activation.derivative(z, u)
        rows = []
        for unit, output in ((readout, at.q), (self.w2_transposed @ back, back)):
            inner = (unit[:, None] * slope)[:, :, :, None] * at.x[:, None, None]  # (B, L, r, D, n)
            outer = output[:, None, :, None] * u[:, :, None]  # (B, L, dim, r, n)
            rows.append(torch.cat([inner.flatten(2, 3), outer.flatten(2, 3)], 2))
        return rows[0], rows[1]

    def curvature(self, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
        r"""score = sum_h (W_2' q)_h u_h and value = C W_2 u with u_h = act(z_h), z_h = w1_h . x.

        d2/dw1_h2 = { c (W_2' q)_h + g (r' C W_2)_h } act''(z_h) x x',
        d2/dw1_h dW2_kh = { c q_k + g (r' C)_k } act'(z_h) x.
        """
        z, u, readout = done.saved  # (B, L, h, n) twice, (B, h, n)
        act, rank, width = self.expert.activation, z.shape[2], at.x.shape[1]
        back = self.c.mT @ r  # (B, dim, n)
        rho = c[:, :, None] * readout[:, None] + g[:, :, None] * (self.w2_transposed @ back)[:, None]
        pull = c[:, :, None] * at.q[:, None] + g[:, :, None] * back[:, None]  # (B, L, dim, n)
        own = moments(rho * act.second(z, u), at.x)
        sloped = (act.derivative(z, u)[:, :, :, None] * at.x[:, None, None]).flatten(2, 3)
        cross = (sloped @ pull.mT).unflatten(2, (rank, width))
        out = self.no_curvature(c)
        for h in range(rank):
            rows = slice(h * width, (h + 1) * width)
            columns = slice(rank * width + h, None, rank)  # W2 is (dim, rank)
            out[:, :, rows, rows] = own[:, :, h]
            out[:, :, rows, columns] = cross[:, :, h]
            out[:, :, columns, rows] = cross[:, :, h].mT
        return out
