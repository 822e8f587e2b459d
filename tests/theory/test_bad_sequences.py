"""Bad sequences: the same function at every distance, and the same halves where a family is identifiable move it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.theory.bad_sequences import (
    SEQUENCES,
    HalfSplit,
    antisymmetric,
    evidence,
    free_maps_split,
    free_values,
    kernel_of_b,
    linear_experts,
)
from moe_prompt.theory.families import FAMILIES, select
from tests.builders.truths import truth_parts
from tests.theory.test_sigma2 import INVISIBLE

SEEDS = range(4)
BOX = 5.0


def build(name: str, **changes):
    """A truth of the zoo and a few nodes of its covariates."""
    model, theta, covariates = truth_parts(replace(FAMILIES[name], **changes).build())
    return model, theta, covariates.nodes(81)


def f_by_loops(model, theta: torch.Tensor, x: np.ndarray) -> np.ndarray:
    """f_G(x) expert by expert, for one token, from keys and values that the prompt expert's own `forward` gives."""
    b, blocks = model.unflatten(theta)
    tokens = torch.func.functional_call(model.expert, blocks, (torch.from_numpy(x)[None],))
    top, bottom = np.zeros(model.outputs), 0.0
    frozen = model.frozen
    for a, constant, eta in zip(frozen.quadratic.numpy(), frozen.constant.tolist(), frozen.values.numpy(), strict=True):
        weight = math.exp(x @ a @ x + constant)
        top, bottom = top + weight * (eta @ x), bottom + weight
    for j in range(model.num_atoms):
        score = float((model.key_map @ tokens.key[j]).numpy() @ x)
        if type(model.gate).__name__ == "NonlinearResidualGate":
            score += math.tanh(score)
        weight = math.exp(score + float(b[j]))
        top, bottom = top + weight * (model.value_map @ tokens.value[j]).numpy(), bottom + weight
    return top / bottom


def test_every_family_that_cannot_see_a_split_has_its_sequence():
    assert set(SEQUENCES) == {*INVISIBLE, "reparameterised, maps free, L' <= d"} and set(SEQUENCES) <= set(FAMILIES)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("atom", [0, 1])
def test_the_function_stays_and_the_measure_leaves(name, atom):
    """To rounding for every t; t is the split error as long as the halves stay in their cell, inside a fixed box."""
    for seed in SEEDS:
        model, theta, nodes = build(name, seed=seed)
        sequence = SEQUENCES[name](model, theta, atom)
        mass = float(model.unflatten(theta)[0][atom].exp())
        assert sequence.reach > 0.05
        for t in np.linspace(0, min(2.0, 0.95 * sequence.reach), 5).tolist():
            found = evidence(sequence, t, nodes)
            assert found.largest < 1e-12 and found.distance < 1e-12
            assert found.split_error == pytest.approx(t, abs=1e-12)
            assert found.voronoi == pytest.approx(mass * t**2, abs=1e-12)
            assert found.is_bad == (t > 0) and float(sequence.theta(t).abs().max()) < BOX


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_function_stays_by_plain_loops(name):
    model, theta, _ = build(name, seed=11)
    sequence = SEQUENCES[name](model, theta)
    moved = sequence.theta(0.4 * min(sequence.reach, 2.0))
    for x in np.random.default_rng(3).uniform(-2, 2, (5, 4)):
        true = f_by_loops(model, theta, x)
        np.testing.assert_allclose(true, model.mean(theta, torch.from_numpy(x)[None])[0].numpy(), atol=1e-12)
        np.testing.assert_allclose(f_by_loops(sequence.model, moved, x), true, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in SEQUENCES if "maps free" not in name])
def test_far_beyond_its_cell_the_function_still_stays(name):
    model, theta, nodes = build(name)
    assert evidence(SEQUENCES[name](model, theta), 25.0, nodes).largest < 1e-10


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("VPT, B singular", "VPT, B injective"),
        ("VAPT, linear, r = 2", "VAPT, tanh"),
        ("linear gate + linear expert", "linear gate + tanh ridge"),
        ("NoRGa + linear expert", "NoRGa + tanh ridge"),
    ],
)
def test_the_same_halves_move_an_identifiable_family(bad, good):
    """By an order of t^2, as sigma_2 > 0 says: what hides a split is the family, not the halves."""
    model, theta, nodes = build(bad)
    hidden = SEQUENCES[bad](model, theta)
    model, theta, nodes = build(good)
    seen = [evidence(HalfSplit(model, theta, 0, hidden.name, hidden.offset), t, nodes) for t in (0.05, 0.1)]
    assert not any(found.is_bad for found in seen) and seen[0].largest > 1e-5
    assert seen[1].distance / seen[0].distance == pytest.approx(4, rel=0.2)


def test_a_key_that_moves_is_seen():
    model, theta, nodes = build("prefix, non-shared")
    keys = HalfSplit(model, theta, 0, "key", torch.eye(4, dtype=torch.float64)[0])
    assert not evidence(keys, 0.1, nodes).is_bad


def test_the_split_is_orthogonal_to_other_atoms_where_it_can_be():
    """With one antisymmetric direction there is no choice; with three there is, and the cell has no end."""
    assert antisymmetric(*build("VAPT, linear, r = 2")[:2]).reach < 3
    assert antisymmetric(*build("VAPT, linear, r = 2", hidden=3)[:2]).reach > 1e9


def test_beyond_reach_a_half_is_in_another_cell():
    model, theta, nodes = build("VAPT, linear, r = 2")
    sequence = antisymmetric(model, theta)
    assert evidence(sequence, 1.01 * sequence.reach, nodes).split_error < 0.9 * sequence.reach


def test_the_free_maps_split_is_one_of_keys_and_values():
    """Equal keys, values apart by 2 t in one coordinate, other atoms as they were."""
    model, theta, _ = build("reparameterised, maps free, L' <= d", seed=2)
    sequence, t = free_maps_split(model, theta), 0.3
    (_, blocks), (_, true) = sequence.model.unflatten(sequence.theta(t)), model.unflatten(theta)
    key, value = (np.tanh(blocks["p"].numpy() @ blocks[name].numpy().T) for name in ("w1", "w2"))
    key_star, value_star = (np.tanh(true["p"].numpy() @ true[name].numpy().T) for name in ("w1", "w2"))
    np.testing.assert_allclose(key, key_star[[0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(value[1], value_star[1], atol=1e-12)
    difference = np.sort(np.abs(value[[0, 2]] - value_star[0]).ravel())
    np.testing.assert_allclose(difference, [0] * 6 + [t, t], atol=1e-12)


def test_sigmoid_maps_have_a_range_too():
    model, theta, covariates = truth_parts(select("reparameterized-free", "sigmoid").build())
    sequence = free_maps_split(model, theta)
    assert sequence.reach < 0.5 and evidence(sequence, 0.9 * sequence.reach, covariates.nodes(81)).is_bad


@pytest.mark.parametrize(
    ("make", "name", "changes", "sentence"),
    [
        (kernel_of_b, "VPT, B injective", {}, "is injective"),
        (linear_experts, "linear gate + tanh ridge", {}, "only a linear expert .* got 'tanh'"),
        (antisymmetric, "VAPT, linear, r = 1", {}, "2 to 4 hidden units: got 'linear', 1"),
        (antisymmetric, "VAPT, tanh", {}, "got 'tanh', 2"),
        (
            free_maps_split,
            "reparameterised, maps free, L' <= d",
            {"atoms": 4},
            r"at most 4 atoms in dimension 4: got 4 \+ 1",
        ),
    ],
)
def test_where_there_is_no_sequence_a_sentence_says_so(make, name, changes, sentence):
    model, theta, _ = build(name, **changes)
    with pytest.raises(InputError, match=sentence):
        make(model, theta)


def test_other_errors_are_sentences():
    model, theta, _ = build("prefix, non-shared")
    with pytest.raises(InputError, match="gating_bias=True"):
        free_values(replace(model, gating_bias=False), theta[2:])
    with pytest.raises(InputError, match=r"one of 0\.\.1: got 2"):
        free_values(model, theta, atom=2)
    model, theta, _ = build("reparameterised, maps free, L' <= d")
    with pytest.raises(InputError, match=r"range of the activation for t < 0\.4"):
        free_maps_split(model, theta).theta(0.5)
    model, theta, _ = truth_parts(select("reparameterized-free", "gelu").build())
    with pytest.raises(InputError, match="unknown activation with an inverse 'gelu'"):
        free_maps_split(model, theta)
