"""How a fitted model stands to the truth's: exact-specified, over-specified, or of another family."""

from __future__ import annotations

from typing import Any

from moe_prompt.likelihood.models import GatedMixture
from moe_prompt.models.regression import RegressionModel
from moe_prompt.studies.base import Relation
from moe_prompt.studies.fingerprint import content


def regression_relation(truth: RegressionModel, fitted: RegressionModel, family: str | None = None) -> Relation:
    """Two regression models are one family where they differ in their numbers of atoms alone."""
    return Relation(truth.num_atoms, fitted.num_atoms, _family(truth) == _family(fitted), family)


def mixture_relation(truth: GatedMixture, fitted: GatedMixture) -> Relation:
    """Two latent mixtures are one family where they differ in their numbers of experts alone."""
    same = _without(content(truth), "num_experts") == _without(content(fitted), "num_experts")
    return Relation(truth.num_experts, fitted.num_experts, same)


def _family(model: RegressionModel) -> dict[str, Any]:
    """A model's content without its number of atoms, and without that number in its expert's shapes."""
    told, expert = _without(content(model), "num_atoms"), model.expert
    shapes = {name: p.shape[0 if expert.is_shared(name) else 1 :] for name, p in expert.named_parameters()}
    return told | {"expert": told["expert"] | {"parameters": {name: list(shape) for name, shape in shapes.items()}}}


def _without(told: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key != name}
