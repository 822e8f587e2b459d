"""Whether a fitted model is the truth's, has more atoms, or is of another family: told from the models alone."""

from dataclasses import replace

import pytest
import torch

from moe_prompt.attention.gates import SigmoidGate, TopKGate
from moe_prompt.attention.prompts import ConstantPrompt, ReparameterizedPrefix
from moe_prompt.likelihood.models import ContaminatedMoE, FrozenDensity, GaussianMoE
from moe_prompt.models.regression import RegressionModel
from moe_prompt.studies.base import Relation
from moe_prompt.studies.kinds.relations import mixture_relation, regression_relation
from moe_prompt.studies.loading import load
from moe_prompt.theory.families import FAMILIES
from tests.builders.small_study import experts, frozen, key_map, models, value_map


def model(expert, **options) -> RegressionModel:
    return RegressionModel(frozen, expert, key_map, value_map, **options)


def kind(relation: Relation) -> tuple[bool, bool, bool]:
    return relation.exact, relation.over_specified, relation.misspecified


@pytest.mark.parametrize(
    "truth, fitted, extra",
    [
        (model(ConstantPrompt(2, 2)), model(ConstantPrompt(2, 2)), 0),
        (model(ConstantPrompt(2, 2)), model(ConstantPrompt(5, 2)), 3),
        (model(ConstantPrompt(2, 2)), models["vpt"].with_atoms(3), 1),
        (model(ConstantPrompt(2, 2)), models["vpt"], None),
        (models["vpt"], models["vapt"], None),
        (models["vpt"], model(experts["vpt"], gate=SigmoidGate()), None),
        (models["vpt"], model(experts["vpt"], gating_bias=False), None),
        (models["vpt"], replace(models["vpt"], value_map=2 * value_map), None),
        (model(ConstantPrompt(2, 2), gate=TopKGate(1)), model(ConstantPrompt(3, 2), gate=TopKGate(1)), 1),
    ],
)
def test_regression_models(truth, fitted, extra):
    found = regression_relation(truth, fitted, "a family")
    assert found.extra == extra and kind(found) == (extra == 0, bool(extra), extra is None)
    assert (found.true_atoms, found.fitted_atoms) == (truth.num_atoms, fitted.num_atoms) and found.family == "a family"


def test_maps_are_part_of_the_family():
    """Maps that all prompts share: learned ones have no number of atoms, known ones are told by their values."""
    two, three = (model(ReparameterizedPrefix(count, 2, free_maps=True)) for count in (2, 3))
    assert regression_relation(two, three).extra == 1
    assert regression_relation(two, model(ReparameterizedPrefix(3, 2, "gelu", free_maps=True))).extra is None
    known = [ReparameterizedPrefix(3, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    extras = [regression_relation(model(known[0]), model(expert)).extra for expert in known]
    assert extras == [0, 0, None]


def test_latent_mixtures():
    frozen_density = FrozenDensity("gaussian", torch.eye(2, dtype=torch.float64)[0], 0.1)
    assert mixture_relation(GaussianMoE(2, 1), GaussianMoE(4, 1)).extra == 2
    assert mixture_relation(GaussianMoE(2, 1), GaussianMoE(2, 1)).exact
    assert mixture_relation(GaussianMoE(2, 1), GaussianMoE(1, 1)).misspecified
    assert mixture_relation(GaussianMoE(2, 1), GaussianMoE(2, 3)).misspecified
    contaminated = ContaminatedMoE(frozen_density)
    assert (
        mixture_relation(contaminated, contaminated).exact and mixture_relation(contaminated, contaminated).extra == 0
    )
    assert mixture_relation(GaussianMoE(2, 1), contaminated).misspecified


@pytest.mark.parametrize(
    "name, extras",
    [
        ("vpt-vs-vapt", [0, None, None, 0]),
        ("gates", [0, None, None, 0, None, None]),
        ("gates-top-k", [0]),
        ("over-specified-by-two", [2] * 10),
        ("softmax-gaussian", [0, 1, 2]),
        ("contaminated", [0] * 4),
    ],
)
def test_named_studies(name, extras):
    study = load(name)
    relations = [study.relation(*cell) for cell in study.cells]
    assert [relation.extra for relation in relations] == extras
    assert all(relation.family is None or relation.family in FAMILIES for relation in relations)
