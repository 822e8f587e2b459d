"""Truths of the over-specified studies: each has one family and one or two atoms, in one common setting.

X is uniform on [-sqrt(3), sqrt(3)]^3. There are 2 frozen experts and 2 outputs. B and C are standard normal, and the
identity for linear gates. Prompt parameters are uniform on [-2, 2], gating biases on [-2/3, 2/3]. All come from one
seed per number of atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.over_specified.split_starts import SplitLeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.theory.families import FAMILIES, Family

DIM, FROZEN, OUTPUTS, NOISE = 3, 2, 2, 0.02
SPREAD, BOX = 2.0, 3.0  # prompt parameters of truths lie in [-SPREAD, SPREAD], fits in [-BOX, BOX]
SIZES = (1000, 3162, 10_000, 31_623, 100_000)
HIDDEN = {"VAPT, linear, r = 2": 2}
"""Hidden units of VAPT's truths, where there is more than one."""
SMOOTH = tuple(
    FAMILIES[name]
    for name in (
        "VPT, B injective",
        "reparameterised prefix, maps known",
        "VAPT, tanh",
        "VAPT, gelu",
        "VAPT, linear, r = 1",
    )
)
"""The families of the studies over-specified, whose splits show: sigma_2 > 0."""


def study(
    name: str,
    claim: str,
    families: Sequence[Family],
    atoms: Sequence[int] = (1, 2),
    extra: int = 1,
    noise: float = NOISE,
    replicates: int = 100,
    splits: bool = True,
    tolerance: float = 1e-6,
) -> OverSpecifiedStudy:
    """Every family with every number of atoms, slopes on all of the sizes.

    With `splits`, fits start from 8 random vectors and from the splits of a fit with fewer atoms; without, from 48
    random vectors. A fit ends when Newton's step is shorter than `tolerance` standard errors.
    """
    chosen = {f"{family.name}, L = {count}": (family, count) for family in families for count in atoms}
    newton = NewtonLeastSquares(LeastSquares(box=BOX), keep=3, handover_steps=60, tolerance=tolerance)
    return OverSpecifiedStudy(
        name=name,
        claim=claim,
        truths={cell: truth(family, count, noise) for cell, (family, count) in chosen.items()},
        extra=extra,
        smooth=tuple(cell for cell, (family, _) in chosen.items() if family.splits_show),
        kinked=tuple(cell for cell, (family, _) in chosen.items() if family.kinked),
        sizes=SIZES,
        replicates=replicates,
        window=(1000, 100_000),
        estimator=SplitLeastSquares(replace(newton, keep=1), levels=extra) if splits else newton,
        starts=Random(count=8 if splits else 48),
        quick_sizes=(1000, 3162, 10_000),
        quick_replicates=20,
    )


def truth(family: Family, atoms: int, noise: float) -> Population:
    """A generic truth of a family in the common setting; VAPT has one hidden unit where its family does not ask two."""
    family = replace(family, dim=DIM, outputs=OUTPUTS, atoms=atoms, hidden=HIDDEN.get(family.name, 1))
    rng = np.random.default_rng([atoms, 0])
    frozen = FrozenExperts.random(FROZEN, DIM, OUTPUTS, rng)
    key_map, value_map = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
    expert = family.make_expert()
    value_map = value_map[:, : expert(torch.zeros(1, DIM, dtype=torch.float64)).value.shape[-1]].contiguous()
    if family.key_rank is not None:
        key_map = key_map[:, : family.key_rank] @ key_map[: family.key_rank]
    if not family.random_maps:
        key_map, value_map = torch.eye(DIM, dtype=torch.float64), torch.eye(OUTPUTS, dtype=torch.float64)
    model = RegressionModel(frozen, expert, key_map, value_map, family.gate)
    theta = torch.from_numpy(rng.uniform(-SPREAD, SPREAD, model.num_parameters))
    theta[model.slices["b"]] = theta[model.slices["b"]] / 3
    return Population(model, theta, Uniform(-math.sqrt(3), math.sqrt(3), DIM), noise, family.name)
