r"""The profile of a sample's objective over the size of a split: how much worse least squares fits if t is held.

    profile(t) = [ min { 1/2 |y - f_G|^2 : G with L + 1 atoms, one atom split by exactly t } - min over every t ] / s^2

with the split measures of :mod:`moe_prompt.theory.split_distance`: the halves keep a quarter of their mass or more,
everything else is free. Where sigma_2 > 0, near the truth and past the minimum it is, without the noise, the rise of a
distance,

    profile(t) ~ n (sigma_2 e^b t^2)^2 / (2 s^2),

and the split that n samples leave open is n^{-1/4}. Where a family is not identifiable it stays within the few units
that noise decides, at every n, as far as the box of the parameters reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import jacrev

from moe_prompt.errors import require
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.models.gating import exponential
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Dataset
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.split_distance import AtomSplit

TOLD = 1e-3  # s^2: what a profile is exact to


@dataclass(frozen=True, eq=False)
class SplitProfile:
    """Sizes t, the objective's rise over its least in units of s^2, and the parameters (sizes, p) of L + 1 atoms."""

    t: Float64[Tensor, "sizes"]
    rise: Float64[Tensor, "sizes"]
    model: RegressionModel
    theta: Float64[Tensor, "sizes p"]


def split_profile(
    geometry: LocalGeometry,
    data: Dataset,
    sizes: Sequence[float],
    noise: float,
    atom: int = 0,
    starts: int = 3,
    seed: int = 0,
) -> SplitProfile:
    """The profile of one sample, every size from where the one before ended and from `starts` random directions.

    The least over every t is sought from the best size with t free, too. `geometry` is that of the truth, and says
    which of its moves are a symmetry's: those are not made.
    """
    exponential(geometry.model.gate, "the profile of a split")
    require(len(data) == 1 and data.weights is None, f"a profile is of one sample without weights: got {len(data)}.")
    require(len(sizes) > 0 and min(sizes) > 0, f"a split needs sizes t > 0: got {list(sizes)}.")
    require(noise > 0, f"the objective is told in units of the noise: got a noise of {noise}.")
    rng, tolerance, dtype = np.random.default_rng(seed), TOLD * noise**2, geometry.theta.dtype
    last: Tensor | None = None
    ends: list[tuple[float, AtomSplit, Tensor]] = []
    for t in sorted(sizes):
        split = AtomSplit(geometry, atom, t)
        objective = _Objective(split, data)
        draws = torch.from_numpy(rng.standard_normal((starts, geometry.atoms.width)))
        first = [split.start(draw) for draw in draws] if last is None else [last, *map(split.start, draws)]
        value, last = min((objective.minimise(start, tolerance) for start in first), key=lambda end: end[0])
        ends.append((value, split, last))
    best = min(ends, key=lambda end: end[0])
    least = _Objective(best[1], data, free=True).minimise(torch.cat([best[2], best[2].new_zeros(1)]), tolerance)[0]
    rise = torch.tensor([value - least for value, *_ in ends], dtype=dtype) / noise**2
    with torch.no_grad():
        found = torch.stack([split.theta(vector) for _, split, vector in ends])
    return SplitProfile(torch.tensor(sorted(sizes), dtype=dtype), rise, best[1].model, found)


@dataclass(frozen=True, eq=False)
class _Objective:
    """1/2 |y - f_G|^2 over the free vector of a split, and over log(size / t) where `free`."""

    split: AtomSplit
    data: Dataset
    free: bool = False

    @cached_property
    def problem(self) -> Problem:
        return Problem.of(self.split.model, self.data, 1)

    def theta(self, vector: Tensor) -> Tensor:
        if not self.free:
            return self.split.theta(vector)
        return replace(self.split, t=self.split.t * vector[-1].exp()).theta(vector[:-1])

    def value(self, vector: Tensor) -> float:
        return float(self.problem.objective(self.theta(vector)[None], torch.tensor([0])))

    def equations(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """J'J and J'r in the coordinates of the free vector."""
        gram, pull = self.problem.gram(self.theta(vector)[None], torch.tensor([0]))[0], jacrev(self.theta)(vector)
        return pull.mT @ gram[:-1, :-1] @ pull, pull.mT @ gram[:-1, -1]

    @torch.no_grad()
    def minimise(self, vector: Tensor, tolerance: float, steps: int = 200) -> tuple[float, Tensor]:
        """Levenberg-Marquardt until a step promises less than `tolerance`: the objective and the vector."""
        value, damping = self.value(vector), 1e-3
        gram, slope = self.equations(vector)
        for _ in range(steps):
            ridge = damping * gram.diagonal() + 1e-12 * gram.diagonal().amax()
            step = torch.linalg.solve(gram + torch.diag(ridge), -slope)
            promised = -float(slope @ step + 0.5 * step @ gram @ step)
            trial = self.value(vector + step)
            if trial < value:
                vector, value, damping = vector + step, trial, max(damping / 5, 1e-9)
                gram, slope = self.equations(vector)
            else:
                damping *= 5
            if promised < tolerance or damping > 1e9:
                break
        return value, vector
