"""One sample under a top-1 gate: how well each prompt fits each observation, and fits with free sides.

With *free sides* an observation is assigned to the prompt that fits it best, whatever the gate would choose.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from moe_prompt.attention.gates import SoftmaxGate, TopKGate
from moe_prompt.attention.prompts import ConstantPrompt, PrefixPrompt
from moe_prompt.errors import require
from moe_prompt.models.experts.form_of import form_of
from moe_prompt.models.regression import Prepared, RegressionModel


class Sample:
    """One sample under a top-1 gate, prompt by prompt.

    Parameters theta are (starts, L, a): each of L atoms has a parameters, its gating bias b first.
    """

    def __init__(self, model: RegressionModel, x: Tensor, y: Tensor) -> None:
        require(
            isinstance(model.gate, TopKGate) and model.gate.k == 1 and model.num_atoms > 1,
            "this estimator needs a top-K gate with K = 1 and two prompts or more: use LeastSquares for other models.",
        )
        require(
            isinstance(model.expert, (ConstantPrompt, PrefixPrompt)) and model.gating_bias,
            "this estimator needs scores linear in the parameters (VPT, prefixes) and gating biases: use such a model.",
        )
        self.model, self.y = model, y.mT[None, None]
        self.single = replace(model.with_atoms(1), gate=SoftmaxGate())
        self.prepared = self.single.prepare(x[None])

    @cached_property
    def places(self) -> Tensor:
        """Places (L, a) of each atom's parameters in a parameter vector."""
        b, blocks = self.model.unflatten(torch.arange(self.model.num_parameters).double())
        return torch.cat([b[:, None], *(block.flatten(1) for block in blocks.values())], 1).long()

    @cached_property
    def rows(self) -> Tensor:
        """Rows (a, n) with which the score plus bias of atom j at observation i is theta_j . rows[:, i]."""
        unit = torch.eye(self.places.shape[1], dtype=self.y.dtype)
        b, parameters = self.single.unflatten(unit)
        one = form_of(self.single.expert)(self.single.expert, self.single.value_map, 1, parameters)
        return one.evaluate(self._repeated(len(unit)).at).score[:, 0] + b

    def joined(self, theta: Tensor) -> Tensor:
        """The parameter vector (p,) of atoms theta (L, a)."""
        out = theta.new_empty(self.model.num_parameters)
        out[self.places] = theta
        return out

    def _repeated(self, times: int) -> Prepared:
        return self.prepared.part(torch.zeros(times, dtype=torch.int64), slice(None))

    def residual(self, theta: Tensor, slopes: Tensor | None = None) -> Tensor:
        """Residuals f_j - y (starts, L, o, n) of each prompt at each observation; writes df_j/dtheta_j to `slopes`."""
        flat = theta.flatten(0, 1)
        f = self.single.at(flat)(self._repeated(len(flat)), None if slopes is None else self.single.blocks(slopes))
        return f.unflatten(0, theta.shape[:2]) - self.y

    def linear(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (starts, L, o, n), and derivatives df_j / dtheta_j (starts, L, a, o, n)."""
        slopes = theta.new_empty(theta.shape[0] * theta.shape[1], theta.shape[2], *self.y.shape[2:])
        return self.residual(theta, slopes), slopes.unflatten(0, theta.shape[:2])

    def objective(self, theta: Tensor) -> Tensor:
        """The objective 1/2 sum_i |y_i - f_{c(i)}(x_i)|^2, c(i) as the gate chooses."""
        squares = self.residual(theta[None])[0].square().sum(1)
        return 0.5 * squares.gather(0, (theta @ self.rows).argmax(0, keepdim=True)).sum()

    def sort(self, theta: Tensor, steps: int, box: float) -> tuple[Tensor, Tensor]:
        """Fits with free sides, by Levenberg-Marquardt: theta (starts, L, a), and sums of squares (starts,)."""
        residual, slopes = self.linear(theta)
        cost, damping = residual.square().sum(2).amin(1).sum(1), theta.new_full((len(theta),), 1e-2)
        for _ in range(steps):
            gram, gradient = own_equations(residual, slopes)
            ridge = (
                damping[:, None, None] * gram.diagonal(dim1=2, dim2=3) + 1e-12 * gram.amax((2, 3))[..., None] + 1e-300
            )
            step = torch.linalg.solve(gram + torch.diag_embed(ridge), gradient[..., None])[..., 0]
            trial = (theta - step).clamp(-box, box)
            new_residual, new_slopes = self.linear(trial)
            new = new_residual.square().sum(2).amin(1).sum(1)
            good = new < cost
            gained = float(((cost - new) / cost)[good].max()) if bool(good.any()) else 0.0
            theta, cost = torch.where(good[:, None, None], trial, theta), torch.where(good, new, cost)
            residual = torch.where(good[:, None, None, None], new_residual, residual)
            slopes = torch.where(good[:, None, None, None, None], new_slopes, slopes)
            damping = torch.where(good, damping / 5, damping * 5).clamp(1e-9, 1e9)
            if gained < 1e-9 and (bool(good.all()) or float(damping.min()) > 1e3):
                break
        return theta, cost


def own_equations(residual: Tensor, slopes: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """J'J (starts, L, a, a) and J'r (starts, L, a) of each prompt, over the observations on its side."""
    if side is None:
        side = residual.square().sum(2).argmin(1)
    own = torch.zeros_like(residual[:, :, 0]).scatter_(1, side[:, None], 1.0)[:, :, None]
    flat = (slopes * own[:, :, None]).flatten(3)
    return flat @ slopes.flatten(3).mT, (flat @ (residual * own).flatten(2)[..., None])[..., 0]
