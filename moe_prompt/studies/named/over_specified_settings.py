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

from moe_prompt.attention.gates import Gate, NonlinearResidualGate, SoftmaxGate
from moe_prompt.attention.prompts import (
    ConstantPrompt,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptExpert,
    ReparameterizedPrefix,
)
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.over_specified.split_starts import SplitLeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy

DIM, FROZEN, OUTPUTS, NOISE = 3, 2, 2, 0.02
SPREAD, BOX = 2.0, 3.0  # prompt parameters of truths lie in [-SPREAD, SPREAD], fits in [-BOX, BOX]
SIZES = (1000, 3162, 10_000, 31_623, 100_000)
SMOOTH = (
    "VPT, B injective",
    "reparameterised prefix, maps known",
    "VAPT, tanh",
    "VAPT, gelu",
    "VAPT, linear, r = 1",
)
"""Families with sigma_2 > 0."""


def study(
    name: str,
    claim: str,
    families: Sequence[str],
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
    truths = {f"{family}, L = {count}": truth(family, count, noise) for family in families for count in atoms}
    newton = NewtonLeastSquares(LeastSquares(box=BOX), keep=3, handover_steps=60, tolerance=tolerance)
    return OverSpecifiedStudy(
        name=name,
        claim=claim,
        truths=truths,
        extra=extra,
        smooth=tuple(cell for cell in truths if is_smooth(cell)),
        kinked=tuple(cell for cell in truths if "relu" in cell),
        sizes=SIZES,
        replicates=replicates,
        window=(1000, 100_000),
        estimator=SplitLeastSquares(replace(newton, keep=1), levels=extra) if splits else newton,
        starts=Random(count=8 if splits else 48),
        quick_sizes=(1000, 3162, 10_000),
        quick_replicates=20,
    )


def is_smooth(cell: str) -> bool:
    """True if sigma_2 > 0, so that splits have a law."""
    return cell.startswith(SMOOTH) or "tanh ridge" in cell


def expert_of(family: str, atoms: int) -> PromptExpert:
    """The prompt expert of a family, by the family's name in `theory.families`."""
    generator = torch.Generator().manual_seed(0)
    if family.startswith("VPT"):  # B singular or not
        return ConstantPrompt(atoms, DIM)
    if "constant expert" in family or family == "prefix, non-shared":
        return PrefixPrompt(atoms, DIM, value_dim=OUTPUTS)  # C has no kernel
    if family == "reparameterised prefix, maps known":
        return ReparameterizedPrefix(atoms, DIM, "tanh", generator=generator).double()
    if family.startswith("VAPT"):
        rank = 2 if family.endswith("r = 2") else 1
        return FlatAdaptivePrompt(atoms, DIM, rank, family.split(", ")[1])
    return LinearGateExpert(atoms, DIM, OUTPUTS, "linear" if family.endswith("linear expert") else "tanh")


def truth(family: str, atoms: int, noise: float) -> Population:
    """A truth of a family with random parameters, the same at every call."""
    rng = np.random.default_rng([atoms, 0])
    frozen = FrozenExperts.random(FROZEN, DIM, OUTPUTS, rng)
    key_map, value_map = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
    if family == "prefix, non-shared":
        value_map = value_map[:, :OUTPUTS].contiguous()
    if "B singular" in family:
        key_map = key_map[:, :2] @ key_map[:2]
    if "gate" in family or "NoRGa" in family:
        key_map, value_map = torch.eye(DIM, dtype=torch.float64), torch.eye(OUTPUTS, dtype=torch.float64)
    gate: Gate = NonlinearResidualGate() if "NoRGa" in family else SoftmaxGate()
    model = RegressionModel(frozen, expert_of(family, atoms), key_map, value_map, gate)
    theta = torch.from_numpy(rng.uniform(-SPREAD, SPREAD, model.num_parameters))
    theta[model.slices["b"]] = theta[model.slices["b"]] / 3
    return Population(model, theta, Uniform(-math.sqrt(3), math.sqrt(3), DIM), noise, family)
