"""Truths of the over-specified studies: one family each, with one atom or two, in one common setting.

X is uniform on [-sqrt(3), sqrt(3)]^3, 2 frozen experts, 2 outputs, B and C standard normal (the identity for linear
gates), prompt parameters uniform on [-2, 2] and gating biases on [-2/3, 2/3], all from one seed per number of atoms.
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

DIM, FROZEN, OUTPUTS, SPREAD, BOX, NOISE = 3, 2, 2, 2.0, 3.0, 0.02
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

    Fits start from 8 random vectors and, with `splits`, from the splits of a fit with fewer atoms; without, from 48
    random vectors. They end where Newton's step is `tolerance` standard errors.
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
    """Whether splits have a law: sigma_2 > 0."""
    return cell.startswith(SMOOTH) or "tanh ridge" in cell


def expert_of(family: str, atoms: int) -> PromptExpert:
    """The prompt expert of a family, by its name in :data:`moe_prompt.theory.families.FAMILIES`."""
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
    """A generic truth of a family."""
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
