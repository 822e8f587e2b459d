r"""Least squares that also starts from splits: the best place of a surplus atom is predicted before it is fitted.

Fit a model with one atom less; r = f - y are its residuals. Replace atom j of this fit by two atoms at d_1 and d_2 from
it, with sum_i e^{b_i} d_i = 0, and let the other parameters follow. To second order in d the objective changes by

    1/2 a' D_j a + 1/2 | Proj_perp(e^{b_j} 1/2 d2W_j[a, a]) |^2,     e^{b_j} a a' = sum_i e^{b_i} d_i d_i',

where D_j = sum_i r_i e^{b_j} d2W_j(x_i), and Proj_perp projects onto the complement of the columns of J. This is a
quartic in the q coordinates of a. Its minimiser for each j gives starts, one for each of two ways to share the mass:
terms of higher order decide how mass is shared. D_j is exact; the quartic term is computed from the first `rows`
observations.

Random starts find the best of these minima in most samples but not in all: with two true atoms, one fit in ten ends in
the second best. A split that is too long for the expansion or for the box, such as one along invisible directions, is
shortened. An atom near the least mass of the box cannot split at constant mass; its starts are moved into the box and
corrected by the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.errors import require
from moe_prompt.estimation.base import Estimator, FitResult, best_of
from moe_prompt.estimation.least_squares import check
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified.hessian import second_order
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares, spare_starts
from moe_prompt.models.atoms import AtomLayout
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset
from moe_prompt.theory.local_geometry import LocalGeometry, symmetric
from moe_prompt.theory.quartic_forms import nearest_square

SHARES = (0.2, 0.8)  # shares of the mass that the first atom of a split starts with
FAR = 2.0  # a split with an objective above this multiple of the smaller fit's is halved ...
MAX_HALVINGS = 8  # ... at most this many times
RANK = 1e-9  # singular values below this share of the largest count as zero


@dataclass(frozen=True)
class SplitLeastSquares(Estimator):
    """`newton` from the given starts and from the splits of a fit with one atom less; the best fit is returned.

    The smaller fit is made in the same way, `levels` deep: at the last level it has the given starts alone. A model
    with k surplus atoms needs `levels` = k.

    Raises:
        InputError: data or starts that do not fit the model, or `levels` below 0.
    """

    newton: NewtonLeastSquares = field(default_factory=NewtonLeastSquares)
    levels: int = 1
    rows: int = 2048
    quartic_starts: int = 24

    def fit(self, model: RegressionModel, data: Dataset, starts: Float64[Tensor, "replicates starts p"]) -> FitResult:
        check(model, data, starts)
        require(self.levels >= 0, f"the number of levels must be at least 0: got levels = {self.levels}.")
        return self._fit(model, data, starts, self.levels)

    def _fit(self, model: RegressionModel, data: Dataset, starts: Tensor, levels: int) -> FitResult:
        if levels == 0 or model.num_atoms == 1:
            return self.newton.fit(model, data, starts)
        newton, smaller = self.newton, model.with_atoms(model.num_atoms - 1)
        roughly = replace(newton, tolerance=newton.rung_tolerance, max_steps=newton.rung_steps)
        found = roughly.fit(model, data, starts)
        base = self._fit(smaller, data, fewer_atoms(model, smaller, starts), levels - 1)
        splits = split_starts(smaller, model, base.theta, data, self.rows, self.quartic_starts, newton.first.box)
        every = torch.cat([found.theta[:, None], splits], 1)
        problem = Problem.of(model, data, every.shape[1])
        rough = newton.polish(problem, every.flatten(0, 1), newton.rung_tolerance, newton.rung_steps)
        spare = spare_starts(problem, rough.objective)
        polished = newton.polish(problem, rough.theta, newton.tolerance, newton.max_steps, spare)
        assert found.escaped is not None and rough.escaped is not None and polished.escaped is not None
        escaped = rough.escaped | polished.escaped
        escaped[:: every.shape[1]] |= found.escaped
        return best_of(replace(polished, escaped=escaped), every.shape[1], 1)


def fewer_atoms(model: RegressionModel, smaller: RegressionModel, theta: Tensor) -> Tensor:
    """Parameter vectors (*batch, p) without their last atom."""
    measure = model.measure(theta)
    order = torch.arange(smaller.num_atoms).expand(*theta.shape[:-1], -1)
    return smaller.flatten(measure.take_atoms(order))


@torch.no_grad()
def split_starts(
    smaller: RegressionModel,
    model: RegressionModel,
    theta: Tensor,
    data: Dataset,
    rows: int,
    quartic_starts: int,
    box: float = math.inf,
) -> Float64[Tensor, "replicates starts p"]:
    """Starts within [-box, box]^p for `model`, one atom more than `smaller`, whose fits are theta (replicates, p)."""
    layout, bigger = AtomLayout.of(smaller), AtomLayout.of(model)
    joined = torch.stack([layout.doubled(theta, j, first=True) for j in range(smaller.num_atoms)], 1)
    problem = Problem.of(model, data, smaller.num_atoms)
    bends = second_order(problem, joined.flatten(0, 1), torch.arange(joined.shape[0] * joined.shape[1]))
    bends = bends.unflatten(0, joined.shape[:2])
    generator = torch.Generator().manual_seed(0)
    splits = []
    for k, fit in enumerate(theta):
        sample = _Sample(smaller, fit, data.x[k, :rows], data.n)
        for j in range(smaller.num_atoms):
            one, other = bigger.own[layout.halves(j, first=True)]
            bend = bends[k, j]
            apart = bend[one][:, one] - bend[one][:, other] - bend[other][:, one] + bend[other][:, other]
            a = sample.split(j, apart, quartic_starts, generator)
            splits += [_Split(layout, bigger, fit, sample.follow(j, a), j, a, share) for share in SHARES]
    return _shortened(Problem.of(model, data, len(splits) // len(theta)), splits, joined[:, 0], box)


def _shortened(problem: Problem, splits: list[_Split], joined: Tensor, box: float) -> Tensor:
    """The starts, those halved that raise the objective of the smaller fit, `joined` (replicates, p), too far."""
    starts, long = torch.stack([split.at(1.0) for split in splits]).clamp(-box, box), torch.arange(len(splits))
    limit = FAR * problem.objective(joined.repeat_interleave(problem.starts, 0), long)
    for halvings in range(1, MAX_HALVINGS + 1):
        long = long[~(problem.objective(starts[long], long) <= limit[long])]
        for i in long.tolist():
            starts[i] = splits[i].at(0.5**halvings).clamp(-box, box)
    return starts.unflatten(0, (len(joined), -1))


class _Sample:
    """J and 1/2 e^b d2W of every atom at a fit, on a part x (rows, dim) of a sample of n, scaled to the whole."""

    def __init__(self, model: RegressionModel, theta: Tensor, x: Tensor, n: int) -> None:
        geometry, scale = LocalGeometry(model, theta, (x, torch.ones_like(x[:, 0]))), math.sqrt(n / len(x))
        weights, self.width = model.unflatten(theta)[0].exp(), geometry.atoms.width
        left, values, right = torch.linalg.svd(scale * geometry.jacobian.flatten(0, 1), full_matrices=False)
        kept = values > RANK * values[0]
        self.basis, self.inverse = left[:, kept], (right.mT[:, kept] / values[kept])
        parts = zip(weights, geometry.second_derivatives, strict=True)
        self.second = [scale * w * second.flatten(0, 1) for w, second in parts]

    def split(self, j: int, bend: Tensor, starts: int, generator: torch.Generator) -> Tensor:
        """The vector a (q,) that minimises the quartic for atom j."""
        outside = self.second[j] - self.basis @ (self.basis.mT @ self.second[j])
        _, values, right = torch.linalg.svd(outside, full_matrices=False)
        kept = values > RANK * values[0]
        if not bool(kept.any()):  # no split is visible at second order, as with relu
            return bend.new_zeros(self.width)
        k, l = torch.triu_indices(self.width, self.width)  # noqa: E741
        target = -0.5 * bend[k, l] @ (right[kept].mT / values[kept])
        return nearest_square(symmetric(values[kept, None] * right[kept], self.width), target, starts, generator)

    def follow(self, j: int, a: Tensor) -> Tensor:
        """Change of the smaller fit's parameters when atom j is split by a."""
        k, l = torch.triu_indices(self.width, self.width)  # noqa: E741
        change = self.second[j] @ (torch.where(k == l, 1.0, 2.0).to(a) * a[k] * a[l])
        return -self.inverse @ (self.basis.mT @ change)


@dataclass(frozen=True)
class _Split:
    """Atom j of `fit` split along a into masses share : 1 - share; the other parameters move by `change`."""

    smaller: AtomLayout
    bigger: AtomLayout
    fit: Tensor
    change: Tensor
    j: int
    a: Tensor
    share: float

    def at(self, length: float) -> Float64[Tensor, " p"]:
        """The split `length` a apart, centre and second moment kept."""
        parted = self.smaller.doubled(self.fit + length**2 * self.change, self.j, first=True)
        one, other = self.smaller.halves(self.j, first=True)
        b, own = self.bigger.log_weights, self.bigger.own
        parted[b[one]] += math.log(2 * self.share)
        parted[b[other]] += math.log(2 * (1 - self.share))
        parted[own[one]] += length * self.a * math.sqrt((1 - self.share) / self.share)
        parted[own[other]] -= length * self.a * math.sqrt(self.share / (1 - self.share))
        return parted
