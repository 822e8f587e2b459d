r"""The part of a least-squares Hessian that Gauss-Newton leaves out, sum_i r_i d2 f(x_i), in closed form.

With T = sum_o r_o f_o at one sample, a function of scores s_j (log-weights included) and of v_j = sum_o r_o value_jo,

    T = [ D_0 T_0 + sum_j e^{s_j} v_j ] / [ D_0 + sum_j e^{s_j} ],     g_j the gates,
    dT/ds_j = g_j (v_j - T) =: c_j         d2T/ds_j ds_k = (delta_jk - g_k) c_j - g_j c_k
    dT/dv_j = g_j                          d2T/ds_j dv_k = g_k (delta_jk - g_j)

so that with A_j = d s_j and V_j = d v_j, both in the atom's own coordinates (log-weight, parameters, shared ones),

    d2T = sum_j { c_j A_j A_j' + g_j (A_j V_j' + V_j A_j') + c_j d2 s_j + g_j d2 v_j } - E a' - a E',
    a = sum_j g_j A_j,   E = sum_j (c_j A_j + g_j V_j).

Only d2 s_j and d2 v_j know the expert. Along a split of size t, J'J is of the order of n t^2 and this term of the order
of s sqrt(n): the same at the t ~ n^{-1/4} where an over-specified fit ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_prompt.expert_curvature import curvature
from moe_prompt.families import Covariate, Evaluation, Parameters, family
from moe_prompt.mixing import exponential
from moe_prompt.normal_equations import Problem
from moe_prompt.regression import Prepared, RegressionModel

CHUNK_BYTES = 1 << 20  # of the rows A and V: measured best between a half and three megabytes


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


def atom_places(model: RegressionModel) -> Tensor:
    """Where each atom's coordinates stand in theta, (L, q): log-weight, own parameters, shared ones."""
    places = []
    for name, shape in model.shapes.items():
        block = torch.arange(model.num_parameters)[model.slices[name]]
        own = name == "b" or not model.expert.is_shared(name)
        places.append(block.unflatten(0, (shape[0], -1)) if own else block.expand(model.num_atoms, -1))
    return torch.cat(places, 1)


class Atoms:
    """All atoms of K mixtures, each as a problem of its own with one atom: A, V and the expert's curvature."""

    def __init__(self, model: RegressionModel, theta: Tensor) -> None:
        self.model, self.gate = model, exponential(model.gate, "the second-order term")
        b, parameters = model.unflatten(theta)
        self.count, self.b = b.shape[1], b
        self.parameters: Parameters = {
            name: self._repeated(value) if model.expert.is_shared(name) else value.flatten(0, 1)[:, None]
            for name, value in parameters.items()
        }
        make, expert, tokens = family(model.expert), model.expert, model.num_tokens
        self.family = make(expert, model.value_map, tokens, self.parameters)
        self.scores_only = make(expert, model.value_map[:1], tokens, self.parameters)
        self.width = sum(math.prod(value.shape[1:]) for value in self.parameters.values())

    def _repeated(self, array: Tensor) -> Tensor:
        return array.expand(self.count, *array.shape[1:]) if len(array) == 1 else array.repeat_interleave(self.count, 0)

    def blocks(self, prepared: Prepared, y: Tensor, scale: Tensor | None) -> Tensor:
        """sum over samples of d2T in the atoms' coordinates, (K, L, L, q, q)."""
        at = Covariate(self._repeated(prepared.at.x), self._repeated(prepared.at.q))
        done = self.family.evaluate(at)
        raw, value = (array.flatten(0, 1).unflatten(0, (-1, self.count)) for array in (done.score, done.value))
        score, slope = self.gate.link(raw)
        gates = torch.softmax(torch.cat([prepared.log_frozen, score + self.b[..., None]], 1), 1)
        g = gates[:, 1:]
        f = (g[:, :, None] * value).sum(1).addcmul_(gates[:, :1], prepared.frozen_mean)
        r = f - y if scale is None else (f - y) * scale.square()
        c = g * ((value - f[:, None]) * r[:, None]).sum(2)
        r = self._repeated(r)
        score_rows, value_rows = self._rows(at, done, r)
        scaled = score_rows if slope is None else score_rows * slope.flatten(0, 1)[:, None]
        out = _outer(c, g, self._with_bias(scaled, 1.0), self._with_bias(value_rows, 0.0))
        weight, bend = c if slope is None else c * slope, self.gate.bend(raw)
        own = curvature(self.family, at, done, weight.flatten(0, 1), g.flatten(0, 1)[:, None] * r)
        if bend is not None:
            own = own + (score_rows * (c * bend).flatten(0, 1)[:, None]) @ score_rows.mT
        first, index = int(self.model.gating_bias), torch.arange(self.count)
        out[:, index, index, first:, first:] += own.unflatten(0, (-1, self.count))
        return out

    def _rows(self, at: Covariate, done: Evaluation, r: Tensor) -> tuple[Tensor, Tensor]:
        """d score_j and d v_j with respect to the atom's parameters, (K L, q, n) each."""
        n = r.shape[-1]
        one, zero = r.new_ones(len(r), 1, 1, 1, n), r.new_zeros(len(r), 1, 1, 1, n)
        scores = self.scores_only.evaluate(at)
        rows = []
        for kind, evaluation, s, g, outputs in (
            (self.scores_only, scores, one, zero, 1),
            (self.family, done, zero.expand(-1, -1, -1, r.shape[1], -1), one, r.shape[1]),
        ):
            out = {name: r.new_empty(len(r), *value.shape[1:], outputs, n) for name, value in self.parameters.items()}
            kind.pullback(at, evaluation, s, g, out)
            rows.append(torch.cat([block.flatten(1, -3) for block in out.values()], 1))
        return rows[0][:, :, 0], (rows[1] * r[:, None]).sum(2)

    def _with_bias(self, rows: Tensor, value: float) -> Tensor:
        """(K, L, q, n), with the row of the log-weight first if it is free."""
        if self.model.gating_bias:
            rows = torch.cat([torch.full_like(rows[:, :1], value), rows], 1)
        return rows.unflatten(0, (-1, self.count))


def _outer(c: Tensor, g: Tensor, a: Tensor, v: Tensor) -> Tensor:
    """sum over samples of the terms with A and V, (K, L, L, q, q)."""
    atoms, q = a.shape[1:3]
    ga, e = a * g[:, :, None], v * g[:, :, None]
    own = torch.addcmul(2 * e, a, c[:, :, None]) @ a.mT
    e.addcmul_(a, c[:, :, None])
    cross = (e.flatten(1, 2) @ ga.flatten(1, 2).mT).unflatten(2, (atoms, q)).unflatten(1, (atoms, q))
    out = -(cross + cross.permute(0, 3, 4, 1, 2)).transpose(2, 3).contiguous()
    index = torch.arange(atoms)
    out[:, index, index] += 0.5 * (own + own.mT)
    return out
