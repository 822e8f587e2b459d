r"""Coordinates in which the valleys of an over-specified fit are straight.

At first order, f depends on a mixing measure through its masses m_i = exp(b_i) and first moments m_i theta_i. At second
order, it depends on two near atoms i, j through their second moment m e e' about their centre c. This suggests two
changes of coordinates:

    an atom           m_i = m_i0 (1 + s),  theta_i = theta_i0 + v / (1 + s):   m_i and m_i theta_i are linear in (s, v)
    the nearest pair  b_i = tau + log sigma(l),   theta_i = c + e^{-l/2} e,
                      b_j = tau + log sigma(-l),  theta_j = c - e^{l/2} e

where (tau, c) is treated as an atom. If l alone changes, mass moves from one atom of the pair to the other while total
mass, centre and second moment stay the same, and f changes at third order only. In b and theta this is a long bent
valley of the objective; in these coordinates it is straight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from moe_prompt.models.atoms import AtomLayout

LEAST, MOST = -0.9, 9.0  # bounds of s, the relative growth of a mass, in one step
TRADE = 3.0  # bound of |change of l| in one step
LOPSIDED = 100.0  # two atoms with |l| above this are not paired, long before exp(l / 2) overflows


class Chart:
    """Coordinates about theta (K, p): step 0 is theta; `paired` says which problems may use those of a pair."""

    def __init__(self, layout: AtomLayout, theta: Tensor, paired: Tensor) -> None:
        self.layout, self.theta, self.paired = layout, theta, paired
        self.mass = torch.full(theta.shape, layout.size)  # whose log-weight a parameter grows with; size: none
        self.grows = torch.zeros_like(theta, dtype=torch.bool)
        if len(layout.log_weights):
            self.mass[:, layout.own] = layout.log_weights[:, None].expand_as(layout.own)
            self.grows[:, layout.log_weights] = True
        self.rows = torch.arange(len(theta))[paired] if len(layout.pairs) else torch.arange(0)
        if len(self.rows):
            self._pair(*self._nearest())

    def _nearest(self) -> tuple[Tensor, Tensor]:
        """The nearest two atoms of each problem; problems where one of them outweighs the other drop out."""
        theta, (first, second) = self.theta[self.rows], self.layout.pairs.T
        atoms = theta[:, self.layout.own]
        nearest = (atoms[:, first] - atoms[:, second]).norm(dim=2).argmin(1)
        i, j = first[nearest], second[nearest]
        b = theta[:, self.layout.log_weights].gather(1, torch.stack([i, j], 1))
        kept = (b[:, 0] - b[:, 1]).abs() <= LOPSIDED
        self.rows = self.rows[kept]
        return i[kept], j[kept]

    def _pair(self, i: Tensor, j: Tensor) -> None:
        own, log_weights, row = self.layout.own, self.layout.log_weights, self.rows
        self.bi, self.bj, self.ti, self.tj = log_weights[i], log_weights[j], own[i], own[j]
        self.mass[row[:, None], self.tj], self.grows[row, self.bj] = self.layout.size, False
        self.l = self.theta[row, self.bi] - self.theta[row, self.bj]
        self.share, self.down, self.up = torch.sigmoid(self.l), torch.exp(-self.l / 2), torch.exp(self.l / 2)
        a, c = self.theta[row[:, None], self.ti], self.theta[row[:, None], self.tj]
        self.centre = self.share[:, None] * a + (1 - self.share)[:, None] * c
        self.e = (a - c) * (self.share * (1 - self.share)).sqrt()[:, None]

    def pull(self, gradient: Tensor) -> Tensor:
        """The gradient in these coordinates: P' g."""
        return self._pull(gradient[..., None])[..., 0]

    def pull_twice(self, matrix: Tensor) -> Tensor:
        """P' M P."""
        return self._pull(self._pull(matrix).mT).mT if len(self.rows) else matrix

    def _pull(self, matrix: Tensor) -> Tensor:
        """P' M for M (K, p, m)."""
        out = matrix.clone()
        if len(self.rows):
            row, s = self.rows, self.share[:, None]
            down, up = self.down[:, None, None], self.up[:, None, None]
            bi, bj = matrix[row, self.bi], matrix[row, self.bj]
            ti, tj = matrix[row[:, None], self.ti], matrix[row[:, None], self.tj]
            out[row, self.bi] = bi + bj
            bent = (self.e[..., None] * (down * ti + up * tj)).sum(1)
            out[row, self.bj] = (1 - s) * bi - s * bj - 0.5 * bent
            out[row[:, None], self.ti] = ti + tj
            out[row[:, None], self.tj] = down * ti - up * tj
        return out

    def pull_squares(self, diagonal: Tensor) -> Tensor:
        """The diagonal of P' diag(d) P: squared lengths of the coordinates' columns if nothing in them cancelled."""
        out = diagonal.clone()
        if len(self.rows):
            row, s = self.rows, self.share
            bi, bj = diagonal[row, self.bi], diagonal[row, self.bj]
            ti, tj = diagonal[row[:, None], self.ti], diagonal[row[:, None], self.tj]
            along = self.down.square()[:, None] * ti + self.up.square()[:, None] * tj
            out[row, self.bi] = bi + bj
            out[row, self.bj] = (1 - s).square() * bi + s.square() * bj + 0.25 * (self.e.square() * along).sum(1)
            out[row[:, None], self.ti] = ti + tj
            out[row[:, None], self.tj] = along
        return out

    def hessian(self, hessian: Tensor, gradient: Tensor) -> Tensor:
        """The Hessian in these coordinates: P'HP and the bend of the coordinates times the gradient."""
        out, pulled = self.pull_twice(hessian).clone(), self.pull(gradient)
        if len(self.rows):
            self._add_bend(out, gradient)
        k, own = (self.mass < self.mass.shape[1]).nonzero().T
        mass = self.mass[k, own]
        out.index_put_((k, own, mass), -pulled[k, own], accumulate=True)
        out.index_put_((k, mass, own), -pulled[k, own], accumulate=True)
        k, b = self.grows.nonzero().T
        out.index_put_((k, b, b), -pulled[k, b], accumulate=True)
        return out

    def _add_bend(self, out: Tensor, gradient: Tensor) -> None:
        row, s = self.rows, self.share
        ti, tj = gradient[row[:, None], self.ti], gradient[row[:, None], self.tj]
        down, up = self.down[:, None], self.up[:, None]
        twice = -s * (1 - s) * (gradient[row, self.bi] + gradient[row, self.bj])
        twice = twice + 0.25 * (self.e * (down * ti - up * tj)).sum(1)
        cross = -0.5 * (down * ti + up * tj)
        out.index_put_((row, self.bj, self.bj), twice, accumulate=True)
        out.index_put_((row[:, None], self.tj, self.bj[:, None]), cross, accumulate=True)
        out.index_put_((row[:, None], self.bj[:, None], self.tj), cross, accumulate=True)

    def moved(self, step: Tensor) -> Tensor:
        """The point that a step leads to."""
        growth = pad(step, (0, 1)).gather(1, self.mass)
        change = torch.where(self.grows, torch.log1p(step.clamp(min=LEAST)), step / (1 + growth.clamp(min=LEAST)))
        new = self.theta + change
        if len(self.rows):
            row = self.rows
            tau = torch.logaddexp(self.theta[row, self.bi], self.theta[row, self.bj]) + change[row, self.bi]
            l, e = self.l + step[row, self.bj], self.e + step[row[:, None], self.tj]  # noqa: E741
            centre = self.centre + change[row[:, None], self.ti]
            new[row, self.bi] = tau + torch.nn.functional.logsigmoid(l)
            new[row, self.bj] = tau + torch.nn.functional.logsigmoid(-l)
            new[row[:, None], self.ti] = centre + torch.exp(-l / 2)[:, None] * e
            new[row[:, None], self.tj] = centre - torch.exp(l / 2)[:, None] * e
        return new

    def within(self, step: Tensor, box: float) -> tuple[Tensor, Tensor]:
        """The longest part of a step that stays in the box, and where it leads; what touches is on the boundary."""
        grown = torch.where(self.grows, step, 0.0)
        share = (LEAST / grown.amin(1).clamp(max=LEAST)).minimum(MOST / grown.amax(1).clamp(min=MOST))
        if len(self.rows):
            trade = step[self.rows, self.bj].abs().clamp(min=TRADE)
            share[self.rows] = share[self.rows].minimum(TRADE / trade)
        step = step * share[:, None]
        new, edge = self.moved(step), box * (1 + 1e-13)
        k = (new.abs() > edge).any(1).nonzero()[:, 0]
        if len(k):
            step[k] = Chart(self.layout, self.theta[k], self.paired[k])._shortened(step[k], edge)
            new = self.moved(step)
        new = new.clamp(-box, box)
        return step, torch.where(box - new.abs() < 1e-10 * box, box * new.sign(), new)

    def _shortened(self, step: Tensor, edge: float) -> Tensor:
        """The longest parts of steps that keep every parameter within `edge`, by bisection."""
        low, high = step.new_zeros(len(step), 1), step.new_ones(len(step), 1)
        for _ in range(50):
            middle = 0.5 * (low + high)
            out = (self.moved(middle * step).abs() > edge).any(1, keepdim=True)
            low, high = torch.where(out, low, middle), torch.where(out, middle, high)
        return low * step
