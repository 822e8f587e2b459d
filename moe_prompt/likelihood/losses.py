r"""Losses of Gaussian mixtures of experts: a Voronoi loss between parameters, and Hellinger distance of densities.

The Voronoi loss and its powers are those of arXiv 2305.03288. A *cell* holds the fitted atoms nearest to a true one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.likelihood.models import GaussianMoE
from moe_prompt.measures.losses import Loss
from moe_prompt.measures.mixing_measure import MixingMeasure, require_same_parameters
from moe_prompt.models.covariates import Covariates

POWERS = torch.tensor([0, 1, 4, 6, 7])
"""Power r of a cell with 0, 1, 2, 3 and 4 or more atoms; r >= 7 is proved for 4 or more (arXiv 2305.03288)."""


@dataclass(frozen=True)
class SoftmaxVoronoiLoss(Loss[MixingMeasure]):
    r"""The Voronoi loss D of arXiv 2305.03288 between Gaussian mixtures of experts, up to translations of the gate.

    An atom is (gate slope beta, expert's intercept a, slope b, variance v), and its weight w is exp(gate intercept).
    With cells V_j = {i : atom i is nearest to true atom j} and r(1) = 1, r(2) = 4, r(3) = 6,

        D = min_{t, u}  sum_j | sum_{i in V_j} e^{-t} w_i - w*_j |
                      + sum_{|V_j| = 1} sum_i e^{-t} w_i | (beta_i - u - beta*_j, a, b, v)_ij |
                      + sum_{|V_j| > 1} sum_i e^{-t} w_i ( |(beta - u, a)_ij|^r + |(b, v)_ij|^{r/2} ),  r = r(|V_j|).

    The minimum over t is exact. The minimum over u is taken over the shifts that move a fitted gate slope onto a true
    one; it is the minimum over all u up to a constant factor. The loss therefore does not depend on labels, nor on
    which expert's gate is pinned at 0. Raises InputError for measures with other atoms.

    >>> model = GaussianMoE(2, 1)
    >>> theta = torch.tensor([-8.0, 25.0, 15.0, -20.0, -5.0, 20.0, -1.2, -0.9], dtype=torch.float64)
    >>> round(float(SoftmaxVoronoiLoss()(model.measure(model.relabel(theta, (1, 0))), model.measure(theta))), 9)
    0.0
    """

    def __call__(self, estimated: MixingMeasure, true: MixingMeasure) -> Float[Tensor, "*batch"]:
        require_same_parameters(estimated, true)
        require(
            set(true.atoms) == {"gate_slope", "intercept", "slope", "variance"},
            f"this loss compares Gaussian mixtures of experts: got atoms of {', '.join(sorted(true.atoms))}.",
        )
        shape, flat = estimated.batch_shape, estimated.flatten_batch()
        shifts = (flat.atoms["gate_slope"][:, :, None] - true.atoms["gate_slope"]).flatten(1, 2)  # (B, shifts, d)
        losses = [self._shifted(flat, true, shifts[:, s]) for s in range(shifts.shape[1])]
        return torch.stack(losses).amin(0).reshape(shape)

    def _shifted(self, estimated: MixingMeasure, true: MixingMeasure, shift: Tensor) -> Tensor:
        """D for gate slopes moved by one shift (B, d), minimised over the common factor of the weights."""
        slow, fast = _blocks(estimated, shift), _blocks(true, torch.zeros_like(true.atoms["gate_slope"][0]))
        apart = [(mine[:, :, None] - other).square().sum(-1) for mine, other in zip(slow, fast, strict=True)]
        cell = (apart[0] + apart[1]).argmin(2)  # (B, fitted)
        inside = cell[..., None] == torch.arange(true.num_atoms)
        r = POWERS[inside.sum(1).clamp(max=len(POWERS) - 1)].gather(1, cell).to(shift)
        first, second = (part.gather(2, cell[..., None])[..., 0] for part in apart)
        split = first ** (r / 2) + second ** (r / 4)
        distance = torch.where(r == 1, (first + second).sqrt(), split)
        weights = (estimated.log_weights - estimated.log_weights.amax(1, keepdim=True)).exp()
        masses = (weights[..., None] * inside).sum(1)
        return _least((weights * distance).sum(1), masses, true.weights)


def _blocks(measure: MixingMeasure, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters that enter D with power r, (gate slope, intercept), and with r / 2, (slope, variance)."""
    atoms = measure.atoms
    gate, scalar = atoms["gate_slope"] - shift[..., None, :], lambda name: atoms[name][..., None]
    return torch.cat([gate, scalar("intercept")], -1), torch.cat([atoms["slope"], scalar("variance")], -1)


def _least(distance: Tensor, masses: Tensor, true: Tensor) -> Tensor:
    """min over s >= 0 of s distance + sum_j |s masses_j - true_j|, found at a kink: the sum is piecewise linear."""
    kinks = torch.where(masses > 0, true / masses, torch.zeros_like(masses))
    kinks = torch.cat([kinks, torch.zeros_like(kinks[:, :1])], 1)
    values = kinks * distance[:, None] + (kinks[..., None] * masses[:, None] - true).abs().sum(2)
    return torch.where(distance.isfinite(), values.amin(1), torch.nan)


@dataclass(frozen=True, eq=False)
class HellingerDistance:
    r"""Hellinger distance H = sqrt( E_X 1/2 int ( sqrt p(y | X) - sqrt p_*(y | X) )^2 dy ), by quadrature.

    X is integrated at `nodes` quadrature points, y on an even grid of `values` points. The grid extends `reach`
    standard deviations beyond the mean of every true expert; all mass of the estimate outside it counts as error.
    """

    model: GaussianMoE
    theta: Float64[Tensor, "p"]
    covariates: Covariates
    nodes: int = 128
    values: int = 512
    reach: float = 8.0

    def __call__(self, model: GaussianMoE, theta: Float64[Tensor, "replicates p"]) -> Float64[Tensor, "replicates"]:
        x, weights = self.covariates.nodes(self.nodes)
        y, step = self._grid(x)
        points = x.repeat_interleave(len(y), 0)[None], y.repeat(len(x))[None, :, None]
        true = self.model.log_density(self.theta[None], *points)[0].exp().reshape(len(x), -1)
        squares = []
        for one in theta:
            fitted = model.log_density(one[None], *points)[0].exp().reshape(len(x), -1)
            apart = 0.5 * (fitted.sqrt() - true.sqrt()).square().sum(1) * step
            beyond = 0.5 * (1 - fitted.sum(1) * step).clamp(min=0)
            squares.append(((apart + beyond) * weights).sum())
        return torch.stack(squares).sqrt()

    def _grid(self, x: Tensor) -> tuple[Tensor, float]:
        _, means, log_sd = self.model.coefficients(self.theta[None])
        centres = torch.cat([torch.ones_like(x), x], 1)[:, -self.model.dim - 1 :] @ means[0].T
        margin = self.reach * float(log_sd.exp().max())
        low, high = float(centres.min()) - margin, float(centres.max()) + margin
        return torch.linspace(low, high, self.values, dtype=torch.float64), (high - low) / (self.values - 1)
