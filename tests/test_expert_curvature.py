"""Closed forms of every built-in expert's second derivatives against its own `forward`, differentiated twice."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from moe_prompt.activations import ACTIVATIONS
from moe_prompt.expert_curvature import CLOSED_FORM, _by_autograd, curvature
from moe_prompt.families import CLOSED_FORM as FAMILIES
from moe_prompt.families import AutogradFamily, Covariate, family
from moe_prompt.prompts import (
    ConstantPrompt,
    FlatAdaptivePrompt,
    LinearGateExpert,
    PrefixPrompt,
    PromptExpert,
    PromptTokens,
    ReparameterizedPrefix,
)

PROBLEMS, DIM, OUTPUTS, SAMPLES, RANK = 2, 3, 5, 17, 7


class Squared(PrefixPrompt):
    """A user's expert, whose second derivatives are those of squares."""

    def forward(self, tokens):
        key, value = super().forward(tokens)
        return PromptTokens(key.square(), value.square() * tokens.sum(-1, keepdim=True))


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def task(expert: PromptExpert, tokens: int = 1, keys: int = DIM, values: int = DIM) -> tuple:
    """One atom in each of two problems: its family, covariates, evaluation there, and weights c and w."""
    rng = np.random.default_rng(1)
    parameters = {name: normal(rng, PROBLEMS, *p.shape) for name, p in expert.double().named_parameters()}
    made = family(expert)(expert, normal(rng, OUTPUTS, values), tokens, parameters)
    at = Covariate(normal(rng, PROBLEMS, tokens * DIM, SAMPLES), normal(rng, PROBLEMS, keys, SAMPLES))
    return made, at, made.evaluate(at), normal(rng, PROBLEMS, SAMPLES), normal(rng, PROBLEMS, OUTPUTS, SAMPLES)


def directly(made, at: Covariate, c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """sum_i { c score + sum_o w_o value_o }, sample by sample, differentiated twice by torch.autograd."""
    shapes = {name: p.shape[1:] for name, p in made.parameters.items()}

    def total(theta: torch.Tensor, k: int) -> torch.Tensor:
        blocks, first = {}, 0
        for name, shape in shapes.items():
            blocks[name] = theta[first : first + shape.numel()].reshape(shape)
            first += shape.numel()
        out = theta.new_zeros(())
        for i in range(SAMPLES):
            key, value = functional_call(made.expert, blocks, (at.x[k, :, i].unflatten(0, (made.num_tokens, -1)),))
            out = out + c[k, i] * (key[0] @ at.q[k, :, i]) + w[k, :, i] @ (made.c @ value[0])
        return out

    flat = torch.cat([p.flatten(1) for p in made.parameters.values()], 1)
    return torch.stack(
        [torch.autograd.functional.hessian(lambda t, k=k: total(t, k), flat[k]) for k in range(PROBLEMS)]
    )


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
    made, at, done, c, w = task(make(), *sizes)
    expected = directly(made, at, c, w)
    bends = name not in ("VPT", "prefix") and not name.startswith(("linear gate, linear", "linear gate, relu"))
    bends = bends and name not in ("known maps, linear", "known maps, relu")
    assert bool(expected.any()) == bends
    for found in (curvature(made, at, done, c, w), _by_autograd(made, at, done, c, w)):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-11 * max(1.0, float(expected.abs().max())))


def test_every_family_has_a_closed_form_and_others_are_differentiated():
    assert set(CLOSED_FORM) == set(FAMILIES.values())
    assert family(Squared(1, DIM)) is AutogradFamily and AutogradFamily not in CLOSED_FORM


@pytest.mark.parametrize("name", ["VPT", "prefix", "VAPT, tanh", "linear gate, tanh", "known maps, tanh"])
def test_closed_forms_do_not_ask_forward(name, monkeypatch):
    """Else the test above would compare automatic differentiation with itself."""
    make, *sizes = EXPERTS[name]
    made, at, done, c, w = task(make(), *sizes)
    monkeypatch.setattr(type(made.expert), "forward", lambda *_: pytest.fail("differentiated"))
    assert curvature(made, at, done, c, w).shape[0] == PROBLEMS
