r"""The term of a least-squares Hessian that Gauss-Newton leaves out, sum_i r_i d2 f(x_i), in closed form.

At one observation let r be the residual and T = sum_o r_o f_o. T is a function of the scores s_j (with log-weights) and
of v_j = sum_o r_o value_jo:

    T = [ D_0 T_0 + sum_j e^{s_j} v_j ] / [ D_0 + sum_j e^{s_j} ],     g_j the gates,
    dT/ds_j = g_j (v_j - T) =: c_j         d2T/ds_j ds_k = (delta_jk - g_k) c_j - g_j c_k
    dT/dv_j = g_j                          d2T/ds_j dv_k = g_k (delta_jk - g_j)

so that with A_j = d s_j and V_j = d v_j, both in the atom's own coordinates (log-weight, parameters, shared ones),

    d2T = sum_j { c_j A_j A_j' + g_j (A_j V_j' + V_j A_j') + c_j d2 s_j + g_j d2 v_j } - E a' - a E',
    a = sum_j g_j A_j,   E = sum_j (c_j A_j + g_j V_j).

Only d2 s_j and d2 v_j depend on the kind of expert (`models.experts`). Along a split of length t, J'J is of
order n t^2 and this term of order s sqrt(n). Both are equally large at t ~ n^{-1/4}, the length of splits in an
over-specified fit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.models.atoms import atom_places
from moe_prompt.models.gating import exponential
from moe_prompt.models.regression import Prepared, RegressionModel

CHUNK_BYTES = 1 << 21  # size of the rows A and V of a chunk of observations; two to four megabytes were fastest


def second_order(problem: Problem, theta: Tensor, index: Tensor) -> Tensor:
    """sum_i w_i r_i d2 f(x_i) at theta (K, p) of the problems in `index`, r = f - y: (K, p, p)."""
    model = problem.model
    places = atom_places(model)
    out = theta.new_zeros(len(theta), theta.shape[1], theta.shape[1])
    width = max(256, CHUNK_BYTES // (16 * places.numel()))
    for some, replicates in problem.groups(index, width):
        atoms = Atoms(model, theta[some])
        total = torch.stack([atoms.blocks(*piece) for piece in problem.pieces(replicates, width)]).sum(0)
        blocks = total.permute(0, 1, 3, 2, 4)  # (K, L, q, L, q)
        where = places.flatten()
        flat = blocks.flatten(3, 4).flatten(1, 2)
        rows = flat.new_zeros(len(flat), out.shape[1], flat.shape[2]).index_add_(1, where, flat)
        out[some] = rows.new_zeros(out[some].shape).index_add_(2, where, rows)
    return out


class Atoms:
    """A, V and the experts' curvature for K mixtures, each in its atom's own coordinates."""

    def __init__(self, model: RegressionModel, theta: Tensor) -> None:
        self.model, self.gate = model, exponential(model.gate, "the second-order term")
        mixture = model.at(theta)
        self.b, self.form, self.mixing = mixture.b, mixture.prompts, mixture.mixing

    def blocks(self, prepared: Prepared, y: Tensor, scale: Tensor | None) -> Tensor:
        """sum over samples of d2T in the atoms' coordinates, (K, L, L, q, q)."""
        at = prepared.at
        done = self.form.evaluate(at)
        f, g, slope = self.mixing.mix(done.score, self.b, done.value, prepared.log_frozen, prepared.frozen_mean)
        g, r = g[:, :, 0], f - y
        if scale is not None:
            r *= scale.square()
        c = g * ((done.value * r[:, None]).sum(2) - (f * r).sum(1)[:, None])
        score_rows, value_rows = self.form.rows(at, done, r)
        scaled = score_rows if slope is None else score_rows * slope[:, :, None]
        out = _outer(c, g, self._with_bias(scaled, 1.0), self._with_bias(value_rows, 0.0))
        own = self.form.curvature(at, done, c if slope is None else c * slope, g, r)
        if (bend := self.gate.bend(done.score)) is not None:
            own += (score_rows * (c * bend)[:, :, None]) @ score_rows.mT
        first, index = int(self.model.gating_bias), torch.arange(len(self.b[0]))
        out[:, index, index, first:, first:] += own
        return out

    def _with_bias(self, rows: Tensor, value: float) -> Tensor:
        """Rows with that of the log-weight put first, if log-weights are learned."""
        return pad(rows, (0, 0, 1, 0), value=value) if self.model.gating_bias else rows


def _outer(c: Tensor, g: Tensor, a: Tensor, v: Tensor) -> Tensor:
    """sum over samples of the terms with A and V, (K, L, L, q, q); a and v (K, L, q, n), or (K, 1, q, n) for all."""
    ga, gv = a * g[:, :, None], v * g[:, :, None]
    e = torch.addcmul(gv, a, c[:, :, None])
    atoms, q = e.shape[1:3]
    cross = (e.flatten(1, 2) @ ga.flatten(1, 2).mT).unflatten(2, (atoms, q)).unflatten(1, (atoms, q))
    out = -(cross + cross.permute(0, 3, 4, 1, 2)).transpose(2, 3).contiguous()
    e += gv
    own = (e.flatten(1, 2) @ a[:, 0].mT).unflatten(1, (atoms, q)) if a.shape[1] == 1 else e @ a.mT
    index = torch.arange(atoms)
    out[:, index, index] += 0.5 * (own + own.mT)
    return out
