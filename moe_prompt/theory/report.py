r"""What a family can be expected to reach: the limits of one truth, each computed, put into one report.

    exact-specified (as many atoms as the truth)    n^{-1/2}  iff  rank of the Jacobian = parameters - gauge
    over-specified (more)                           n^{-1/4}  iff  sigma_2 > 0 at every atom

`gauge` counts the directions of the family's continuous symmetry: along those parameters have no meaning, and no error.

References: arXiv 2402.02952, 2405.14124, 2410.02200, 2501.18936. Where they give 1/log n for a family, sigma_2 = 0 with
an invisible split of finite size says more: no sample size finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.attention.prompts import FlatAdaptivePrompt, PrefixPrompt
from moe_prompt.basics.tables import explained
from moe_prompt.errors import require
from moe_prompt.measures.alignment import Symmetry
from moe_prompt.models.gating import TopKMixing
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.theory.identifiability import cramer_rao, token_rank, token_vector
from moe_prompt.theory.local_geometry import LocalGeometry, Nodes
from moe_prompt.theory.rank import JacobianRank
from moe_prompt.theory.sigma2 import SplitIndex, sigma_2
from moe_prompt.theory.split_distance import split_distance

FINITE_SPLIT = 0.5
"""The size at which a split that is invisible to second order is looked for in earnest."""


@dataclass(frozen=True)
class FamilyReport:
    """What a family can be expected to reach at one truth: rank, rates, Cramer-Rao bound, sigma_2.

    exact-specified: n^{-1/2} iff rank = num_parameters - gauge;  over-specified: n^{-1/4} iff sigma_2 > 0 besides.
    """

    family: str
    num_parameters: int
    rank: int  # of the Jacobian in L2(mu)
    gauge: int
    hidden_rank: int | None  # width of VAPT's hidden layer
    condition: float  # of the Jacobian with unit columns, on its rank
    gap: tuple[float, float]  # the singular values on either side of the rank, relative to the largest
    null_directions: tuple[str, ...]
    cramer_rao_trace: float  # trace of s^2 I^+ at s = 1: n times the least mean square error
    rate_exact: str
    sigma_2: float | None  # the least of the atoms
    sigma_2_relaxed: float | None
    rate: str
    direction: str | None  # along which the split is least visible, or invisible
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The fields in the terms of JSON."""
        return {**asdict(self), "gap": list(self.gap), "null_directions": list(self.null_directions)}


@dataclass(frozen=True)
class _OverSpecified:
    rate: str
    reason: str
    sigma_2: float | None = None
    sigma_2_relaxed: float | None = None
    direction: str | None = None


def identifiability_report(
    truth: Population, symmetry: Symmetry | None = None, name: str | None = None, nodes: Nodes | None = None
) -> FamilyReport:
    """The limits of a truth within its family, for any expert, a user's own included: arXiv 2402.02952, 2501.18936.

    n^{-1/2} with as many atoms as the truth iff rank = p - gauge, and n^{-1/4} with more iff sigma_2 > 0 at every atom.

    The gauge is the dimension of the expert's declared symmetry or of `symmetry`; where none is declared it is what
    changes no prompt token. The expert is taken in float64 and in evaluation mode. Expectations are over `nodes`,
    by default those of the truth's covariates.

    Raises:
        InputError: a theta that is not float64 or not of the model's length, or a top-K gate.
    """
    theta = truth.theta
    require(theta.dtype == torch.float64, f"limits are computed in float64: got theta of {theta.dtype}; use .double().")
    require(
        not isinstance(truth.model.mixing, TopKMixing),
        "limits are those of functions smooth in theta: under a top-K gate f jumps, and the Jacobian bounds no error; "
        "use a softmax gate.",
    )
    model = replace(truth.model, expert=deepcopy(truth.model.expert).double().eval())
    geometry = LocalGeometry(model, theta, nodes or truth.covariates)
    ranks, p, symmetry = geometry.rank, len(theta), symmetry or _declared(model)
    tokens = None if symmetry else token_rank(model, theta, geometry.nodes)
    gauge = symmetry.dimension(model.measure(theta)) if symmetry else p - tokens.rank  # type: ignore[union-attr]
    identified = ranks.rank == p - gauge
    over = _over_specified(geometry) if identified else _deficient(ranks, gauge)
    return FamilyReport(
        family=name or truth.family or type(model.expert).__name__,
        num_parameters=p,
        rank=ranks.rank,
        gauge=gauge,
        hidden_rank=model.expert.w1.shape[1] if isinstance(model.expert, FlatAdaptivePrompt) else None,
        condition=ranks.condition,
        gap=ranks.gap,
        null_directions=tuple(str(direction) for direction in ranks.null_directions),
        cramer_rao_trace=float(cramer_rao(geometry.information, noise=1.0, n=1).trace()),
        rate_exact=("n^-1/2" if gauge == 0 else f"n^-1/2 up to gauge {gauge}") if identified else "not identifiable",
        **vars(over),
    )


def _declared(model: RegressionModel) -> Symmetry | None:
    """The symmetry that the expert declares: that of hidden units, unless their activation is even."""
    if model.expert.hidden_units is None or model.expert.activation.even:
        return None
    return model.symmetry


def _deficient(ranks: JacobianRank, gauge: int) -> _OverSpecified:
    nullity = len(ranks.names) - ranks.rank
    return _OverSpecified(
        "not identifiable",
        f"f does not move along {nullity} directions of theta, {gauge} of which are symmetries.",
        direction=str(ranks.null_directions[0]),
    )


def _over_specified(geometry: LocalGeometry) -> _OverSpecified:
    model, theta, nodes = geometry.model, geometry.theta, geometry.nodes
    if model.mixing.no_split:
        return _OverSpecified("-", f"Not derived here for {type(model.gate).__name__}: {model.mixing.no_split}.")
    if not model.gating_bias:
        return _OverSpecified("-", "Halves of a split share a mass: without free log-weights b there is no split.")
    if remainder_order(geometry) < 1:
        return _OverSpecified(
            "-", "The expert has a kink in its parameters: no second derivative in L2(mu), so no sigma_2."
        )
    vacuous = sharing_is_vacuous(model, theta, nodes)
    if vacuous:
        geometry = LocalGeometry(*as_prefix(model, theta, nodes), nodes)
    split = min((sigma_2(geometry, atom) for atom in range(model.num_atoms)), key=lambda s: s.sigma_2)
    rate, reason = _verdict(geometry, split)
    if vacuous:
        reason = f"With {model.num_atoms + 1} atoms keys and values are free, so sigma_2 is a free prefix's. {reason}"
    return _OverSpecified(rate, reason, split.sigma_2, split.relaxed, split.direction.words(3))


def _verdict(geometry: LocalGeometry, split: SplitIndex) -> tuple[str, str]:
    if not split.vanishes:
        return "n^-1/4", f"A split of size t moves f by {split.sigma_2:.2g} e^b t^2 or more."
    t, a = FINITE_SPLIT, split.direction
    searches = ((a.vector, 0), (None, 4))  # the flat split is nearly always at the predicted place
    found = (split_distance(geometry, split.atom, t, start, starts).ratio for start, starts in searches)
    if any(ratio <= 1e-6 * split.unprojected for ratio in found):
        return "not identifiable", f"A split of size {t} along {a} leaves f as it is."
    return "slower than n^-1/4", f"Splits along {a} are invisible to second order, at size {t} they are not."


@torch.no_grad()
def remainder_order(geometry: LocalGeometry) -> float:
    """The power of h in |J(theta + h u) - 2 J(theta) + J(theta - h u)|_{L2(mu)}, over random unit u.

    2 for smooth experts, 3/2 where the second derivative jumps, 1/2 where the first does: below 1 there is no second
    derivative in L2(mu).
    """
    model, theta, nodes = geometry.model, geometry.theta, geometry.prepared
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(2, len(theta), generator=generator, dtype=torch.float64))

    def remainder(h: float) -> Tensor:
        ends = ((model.jacobian(theta + h * u, nodes), model.jacobian(theta - h * u, nodes)) for u in unit)
        bends = (ahead - 2 * geometry.jacobian + behind for ahead, behind in ends)
        return torch.stack([bend.square().sum((1, 2)) @ geometry.nodes[1] for bend in bends]).sum().sqrt()

    coarse, fine = 0.2, 0.02
    return float((remainder(coarse) / remainder(fine)).log10()) / torch.tensor(coarse / fine).log10().item()


def sharing_is_vacuous(model: RegressionModel, theta: Float64[Tensor, "p"], nodes: Nodes) -> bool:
    """Whether with one atom more a constant prompt's shared parameters no longer tie its keys and values together.

    That is: tokens do not depend on x, there are more parameters than in free prefixes of L + 1 atoms, and the map
    from parameters to keys and values has full rank at a generic point.
    """
    one, other = (token_vector(model, theta, x) for x in nodes[0][[0, -1]])
    if not torch.equal(one, other):
        return False
    more = model.with_atoms(model.num_atoms + 1)
    free = len(one) // model.num_atoms * more.num_atoms
    generator = torch.Generator().manual_seed(0)
    draws = 0.5 * torch.randn(3, more.num_parameters, generator=generator, dtype=torch.float64)
    return more.num_parameters > free and max(token_rank(more, draw, nodes).rank for draw in draws) == free


def as_prefix(model: RegressionModel, theta: Float64[Tensor, "p"], nodes: Nodes) -> tuple[RegressionModel, Tensor]:
    """The same f with the keys and values of constant prompts as its parameters."""
    key, value = model.key_map.shape[1], model.value_map.shape[1]
    free = replace(model, expert=PrefixPrompt(model.num_atoms, key, value_dim=value))
    with torch.no_grad():
        return free, token_vector(model, theta, nodes[0][0])


COLUMNS = {
    "family": "prompt expert, gate and maps",
    "p": "number of parameters",
    "rank": "of the Jacobian: how many directions of the parameters move the function",
    "gauge": "how many directions are symmetries, along which parameters have no meaning",
    "cond": "largest over smallest singular value of the Jacobian with unit columns",
    "sigma_2": "how far a split of size 1 moves the function, at least; 0: some split does not show; -: not defined",
    "exact": "rate of the parameters in a fit with as many prompts as the truth",
    "over-specified": "rate of the split in a fit with one prompt more",
    "least visible split": "the direction in which that split shows least",
}


def report_table(reports: Sequence[FamilyReport]) -> str:
    """The reports as a plain-text table (families, columns), a line on each column, and what the rates do not say."""
    return f"{explained(COLUMNS, map(_cells, reports))}\n\n{_HOW_TO_READ}"


_HOW_TO_READ = """\
A split is what two fitted prompts make of one true prompt: they share its mass and lie on opposite sides of it. Each
rate is that of a family in its own model: it does not say which family comes nearer to a truth of another."""


def _cells(report: FamilyReport) -> tuple[str, ...]:
    return (
        report.family,
        str(report.num_parameters),
        str(report.rank),
        str(report.gauge),
        f"{report.condition:.0f}",
        "-" if report.sigma_2 is None else f"{report.sigma_2:.1e}" if report.rate == "n^-1/4" else "0",
        report.rate_exact,
        report.rate,
        report.direction or "-",
    )
