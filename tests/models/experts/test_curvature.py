"""Closed forms of every built-in expert's derivatives against its own `forward`, differentiated once and twice."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from moe_prompt.attention.activations import ACTIVATIONS
from moe_prompt.attention.prompts import (
    ConstantPrompt,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptExpert,
    PromptTokens,
    ReparameterizedPrefix,
)
from moe_prompt.models.experts.autograd import AutogradForm, differentiated_curvature
from moe_prompt.models.experts.base import CLOSED_FORMS, Covariate, ExpertForm
from moe_prompt.models.experts.form_of import form_of

PROBLEMS, DIM, OUTPUTS, SAMPLES, RANK = 2, 3, 5, 17, 7


class Squared(PrefixPrompt):
    """A user's expert, whose second derivatives are those of squares."""

    def forward(self, tokens):
        key, value = super().forward(tokens)
        return PromptTokens(key.square(), value.square() * tokens.sum(-1, keepdim=True))


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def task(expert: PromptExpert, tokens: int = 1, keys: int = DIM, values: int = DIM) -> tuple:
    """One atom in each of two problems: its family, covariates, evaluation there, and weights c, g and r."""
    rng = np.random.default_rng(1)
    parameters = {name: normal(rng, PROBLEMS, *p.shape) for name, p in expert.double().named_parameters()}
    made = form_of(expert)(expert, normal(rng, OUTPUTS, values), tokens, parameters)
    at = Covariate(normal(rng, PROBLEMS, tokens * DIM, SAMPLES), normal(rng, PROBLEMS, keys, SAMPLES))
    c, g = (normal(rng, PROBLEMS, 1, SAMPLES) for _ in range(2))
    return made, at, made.evaluate(at), c, g, normal(rng, PROBLEMS, OUTPUTS, SAMPLES)


def directly(
    differentiate: Callable, made, at: Covariate, c: torch.Tensor, g: torch.Tensor, r: torch.Tensor
) -> torch.Tensor:
    """A derivative of sum_i { c score + g sum_o r_o value_o }, summed sample by sample, by torch.autograd."""
    shapes = {name: p.shape[1:] for name, p in made.parameters.items()}

    def total(theta: torch.Tensor, k: int) -> torch.Tensor:
        blocks, first = {}, 0
        for name, shape in shapes.items():
            blocks[name] = theta[first : first + shape.numel()].reshape(shape)
            first += shape.numel()
        out = theta.new_zeros(())
        for i in range(SAMPLES):
            key, value = functional_call(made.expert, blocks, (at.x[k, :, i].unflatten(0, (made.num_tokens, -1)),))
            out = out + c[k, 0, i] * (key[0] @ at.q[k, :, i]) + g[k, 0, i] * r[k, :, i] @ (made.c @ value[0])
        return out

    flat = torch.cat([p.flatten(1) for p in made.parameters.values()], 1)
    return torch.stack([differentiate(lambda t, k=k: total(t, k), flat[k]) for k in range(PROBLEMS)])[:, None]


EXPERTS: dict[str, tuple] = {
    "VPT": (lambda: ConstantPrompt(1, DIM),),
    "prefix": (lambda: PrefixPrompt(1, DIM, value_dim=2), 1, DIM, 2),
    **{
        f"{kind}, {name}": row
        for name in ACTIVATIONS
        for kind, row in {
            "VAPT": (lambda name=name: FlatAdaptivePrompt(1, DIM, RANK, name),),
            "linear gate": (lambda name=name: LinearGateExpert(1, DIM, 2, name), 1, DIM, 2),
            "known maps": (lambda name=name: ReparameterizedPrefix(1, DIM, name),),
            "free maps": (lambda name=name: ReparameterizedPrefix(1, DIM, name, free_maps=True),),
        }.items()
    },
    "VAPT, two tokens": (lambda: FlatAdaptivePrompt(1, DIM, 2, num_tokens=2), 2),
    "user's": (lambda: Squared(1, DIM),),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_curvature_is_that_of_the_experts_own_forward(name):
    make, *sizes = EXPERTS[name]
    made, at, done, *weights = task(make(), *sizes)
    expected = directly(hessian, made, at, *weights)
    bends = name not in ("VPT", "prefix") and not name.startswith(("linear gate, linear", "linear gate, relu"))
    bends = bends and name not in ("known maps, linear", "known maps, relu")
    assert bool(expected.any()) == bends
    for found in (made.curvature(at, done, *weights), differentiated_curvature(made, at, done, *weights)):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-11 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", EXPERTS)
def test_rows_are_those_of_the_experts_own_forward(name):
    make, *sizes = EXPERTS[name]
    made, at, done, c, g, r = task(make(), *sizes)
    expected = directly(jacobian, made, at, c, g, r)
    for score, value in (made.rows(at, done, r), ExpertForm.rows(made, at, done, r)):
        found = (score * c[:, :, None] + value * g[:, :, None]).sum(-1)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-11 * float(expected.abs().max()))


@pytest.mark.parametrize("name", EXPERTS)
def test_atoms_apart_are_the_atoms_together(name):
    """Two atoms with shared parameters, where the expert has them, against two problems with one each."""
    make, *sizes = EXPERTS[name]
    one, at, _, c, g, r = task(make(), *sizes)
    rng, shared = np.random.default_rng(2), one.expert.is_shared
    both = {k: v if shared(k) else torch.cat([v, normal(rng, *v.shape)], 1) for k, v in one.parameters.items()}
    made = form_of(one.expert)(one.expert, one.c, one.num_tokens, both)
    c, g = (torch.cat([weight, normal(rng, *weight.shape)], 1) for weight in (c, g))
    together = made.curvature(at, made.evaluate(at), c, g, r), *made.rows(at, made.evaluate(at), r)
    for j in range(2):
        parameters = {k: v if shared(k) else v[:, j : j + 1] for k, v in both.items()}
        alone = form_of(one.expert)(one.expert, one.c, one.num_tokens, parameters)
        done, own = alone.evaluate(at), slice(j, j + 1)
        apart = alone.curvature(at, done, c[:, own], g[:, own], r), *alone.rows(at, done, r)
        for every, expected in zip(together, apart, strict=True):
            found = every[:, own] if every.shape[1] > 1 else every
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-11 * max(1.0, float(expected.abs().max())))


def test_every_family_has_a_closed_form_and_others_are_differentiated():
    built_in = (ConstantPrompt, PrefixPrompt, ReparameterizedPrefix, FlatAdaptivePrompt, LinearGateExpert)
    assert set(CLOSED_FORMS) == set(built_in)
    assert form_of(Squared(1, DIM)) is AutogradForm


@pytest.mark.parametrize("name", ["VPT", "prefix", "VAPT, tanh", "linear gate, tanh", "known maps, tanh"])
def test_closed_forms_do_not_ask_forward(name, monkeypatch):
    """Else the test above would compare automatic differentiation with itself."""
    make, *sizes = EXPERTS[name]
    made, at, done, *weights = task(make(), *sizes)
    monkeypatch.setattr(type(made.expert), "forward", lambda *_: pytest.fail("differentiated"))
    assert made.curvature(at, done, *weights).shape[0] == PROBLEMS
    assert all(len(rows) == PROBLEMS for rows in made.rows(at, done, weights[-1]))
