import itertools
import math

import numpy as np
import pytest
import torch

from moe_prompt.attention.activations import ACTIVATIONS
from moe_prompt.errors import InputError
from moe_prompt.measures.alignment import ENUMERATED
from moe_prompt.measures.mixing_measure import MixingMeasure
from moe_prompt.measures.symmetries import HiddenUnits, NoSymmetry

D_IN, D_OUT = 5, 7


def units(name: str) -> HiddenUnits:
    return HiddenUnits("w1", "w2", ACTIVATIONS[name])


def draw(rng: np.random.Generator, batch: int, atoms: int, rank: int) -> MixingMeasure:
    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((batch, *shape)))

    return MixingMeasure(normal(atoms), {"w1": normal(atoms, rank, D_IN)}, {"w2": normal(D_OUT, rank)})


def evaluate(measure: MixingMeasure, name: str, x: np.ndarray) -> np.ndarray:
    """sum_j exp(b_j) W_2 act(W_1j x) for one replicate, by plain loops over units."""
    b, w1, w2 = (t.numpy() for t in (measure.log_weights, measure.atoms["w1"], measure.shared["w2"]))
    total = np.zeros(w2.shape[0])
    for j in range(len(b)):
        for k in range(w2.shape[1]):
            z = torch.tensor(sum(w1[j, k, i] * x[i] for i in range(len(x))), dtype=torch.float64)
            total += math.exp(b[j]) * w2[:, k] * float(ACTIVATIONS[name](z))
    return total


def group_element(rng: np.random.Generator, measure: MixingMeasure, name: str) -> MixingMeasure:
    """A random element of the family's group, one for each replicate, written as (W_2 T^-1, T W_1)."""
    act, (batch, _, rank, _) = ACTIVATIONS[name], measure.atoms["w1"].shape
    matrix = np.stack([np.eye(rank)[rng.permutation(rank)] for _ in range(batch)])
    if act.odd:
        matrix = matrix * rng.choice([-1.0, 1.0], (batch, rank, 1))
    if act.homogeneous:
        matrix = matrix * rng.uniform(0.3, 3.0, (batch, rank, 1))
    if act.linear:
        matrix = rng.standard_normal((batch, rank, rank)) + 3 * np.eye(rank)
    t = torch.from_numpy(matrix)
    w1 = torch.einsum("nab,njbx->njax", t, measure.atoms["w1"])
    return MixingMeasure(measure.log_weights, {"w1": w1}, {"w2": measure.shared["w2"] @ torch.linalg.inv(t)})


def distance(left: MixingMeasure, right: MixingMeasure) -> torch.Tensor:
    atoms = (left.atom_vectors() - right.atom_vectors()).square().sum((-1, -2))
    return (atoms + (left.shared_vector() - right.shared_vector()).square().sum(-1)).sqrt()


@pytest.mark.parametrize("name", ["tanh", "gelu", "relu", "linear"])
def test_the_groups_leave_the_function_alone(name):
    rng = np.random.default_rng(0)
    measure = draw(rng, 1, 2, 3)
    moved = group_element(rng, measure, name)
    x = rng.standard_normal(D_IN)
    np.testing.assert_allclose(evaluate(moved.select(0), name, x), evaluate(measure.select(0), name, x), rtol=1e-10)


@pytest.mark.parametrize("name, order", [("tanh", 48), ("gelu", 6), ("sigmoid", 6), ("relu", 6)])
def test_orbit_has_every_element_once_and_keeps_the_function(name, order):
    rng = np.random.default_rng(1)
    measure = draw(rng, 2, 2, 3)
    orbit = units(name).orbit(measure)
    assert orbit.batch_shape == (order, 2) and units(name).order(measure) == order
    assert orbit.select(0).atoms["w1"].equal(measure.atoms["w1"])
    vectors = orbit.select((slice(None), 1)).shared_vector().numpy()
    assert len(np.unique(vectors, axis=0)) == order
    x, expected = rng.standard_normal(D_IN), None
    expected = evaluate(measure.select(1), name, x)
    for g in range(order):
        np.testing.assert_allclose(evaluate(orbit.select((g, 1)), name, x), expected, rtol=1e-10)


def test_relu_canonical_form_has_unit_rows_and_survives_a_split_atom():
    rng = np.random.default_rng(2)
    measure, symmetry = draw(rng, 3, 2, 3), units("relu")
    canonical = symmetry.canonical(measure)
    for n in range(3):
        b = measure.log_weights[n].numpy()
        p = np.exp(b) / np.exp(b).sum()
        rows = canonical.atoms["w1"][n].numpy()
        for k in range(3):
            assert math.isclose(sum(p[j] * (rows[j, k] ** 2).sum() for j in range(2)), 1.0, rel_tol=1e-12)
        x = rng.standard_normal(D_IN)
        before, after = (evaluate(m.select(n), "relu", x) for m in (measure, canonical))
        np.testing.assert_allclose(after, before, rtol=1e-10)
    split = measure.take_atoms(torch.tensor([0, 1, 1]).expand(3, 3))
    halves = split.log_weights + torch.tensor([0.0, math.log(0.25), math.log(0.75)], dtype=torch.float64)
    split = symmetry.canonical(MixingMeasure(halves, split.atoms, split.shared))
    torch.testing.assert_close(split.shared["w2"], canonical.shared["w2"], rtol=1e-12, atol=1e-12)


def test_a_dead_relu_unit_has_a_canonical_form():
    measure = draw(np.random.default_rng(3), 2, 2, 3)
    measure.atoms["w1"][:, :, 1] = 0
    canonical = units("relu").canonical(measure)
    assert canonical.atom_vectors().isfinite().all()
    assert canonical.shared["w2"][:, :, 1].abs().max() == 0 and canonical.atoms["w1"][:, :, 1].abs().max() == 0
    assert canonical.shared["w2"][:, :, 0].abs().min() > 0


def test_linear_units_are_their_product():
    measure = draw(np.random.default_rng(4), 2, 3, 2)
    canonical = units("linear").canonical(measure)
    assert set(canonical.atoms) == {"product"} and not canonical.shared
    for n, j in itertools.product(range(2), range(3)):
        expected = measure.shared["w2"][n].numpy() @ measure.atoms["w1"][n, j].numpy()
        np.testing.assert_allclose(canonical.atoms["product"][n, j].numpy(), expected, rtol=1e-12)
    again = units("linear").canonical(canonical)
    assert again.atoms["product"].equal(canonical.atoms["product"]) and units("linear").orbit(again).batch_shape[0] == 1


@pytest.mark.parametrize("name, atoms, rank", [("tanh", 2, 3), ("relu", 2, 3), ("linear", 2, 3), ("linear", 1, 6)])
def test_dimension_is_that_of_the_fibre(name, atoms, rank):
    """Parameters minus the rank of the canonical coordinates' Jacobian (the log-weights stay fixed)."""
    measure, symmetry = draw(np.random.default_rng(5), 1, atoms, rank).select(0), units(name)

    def coordinates(w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
        canonical = symmetry.canonical(MixingMeasure(measure.log_weights, {"w1": w1}, {"w2": w2}))
        return torch.cat([canonical.atom_vectors().flatten(), canonical.shared_vector()])

    jacobians = torch.autograd.functional.jacobian(coordinates, (measure.atoms["w1"], measure.shared["w2"]))
    jacobian = torch.cat([j.flatten(1) for j in jacobians], dim=1)
    assert symmetry.dimension(measure) == jacobian.shape[1] - int(torch.linalg.matrix_rank(jacobian))


@pytest.mark.parametrize("name", ["tanh", "gelu", "relu", "linear"])
@pytest.mark.parametrize("exact", [True, False])
def test_align_undoes_group_and_relabelling(name, exact):
    rng = np.random.default_rng(6)
    true = draw(rng, 11, 3, 3)
    moved = group_element(rng, true, name)
    if exact:
        moved = moved.take_atoms(torch.from_numpy(np.stack([rng.permutation(3) for _ in range(11)])))
    assert (distance(moved, true) > 0.1).sum() >= 9
    aligned = units(name).align(moved, true, atoms=exact)
    assert distance(aligned, units(name).canonical(true)).max() < 1e-12
    if exact:
        torch.testing.assert_close(aligned.log_weights, true.log_weights, rtol=0, atol=0)


def signed_units(rank: int):
    return itertools.product(itertools.permutations(range(rank)), itertools.product((1.0, -1.0), repeat=rank))


def test_exact_alignment_of_unlike_measures_by_plain_enumeration():
    rng = np.random.default_rng(7)
    estimated, true = draw(rng, 3, 3, 2), draw(rng, 3, 3, 2)
    aligned = units("tanh").align(estimated, true, atoms=True)
    got = distance(aligned, true).square() + (aligned.weights - true.weights).square().sum(-1)
    for n in range(3):
        b, w1, w2 = (t[n].numpy() for t in (estimated.log_weights, estimated.atoms["w1"], estimated.shared["w2"]))
        best = math.inf
        for relabel, (unit, sign) in itertools.product(itertools.permutations(range(3)), signed_units(2)):
            cost = ((np.exp(b[list(relabel)]) - true.weights[n].numpy()) ** 2).sum()
            for k in range(2):
                cost += ((sign[k] * w2[:, unit[k]] - true.shared["w2"][n, :, k].numpy()) ** 2).sum()
                for j in range(3):
                    cost += ((sign[k] * w1[relabel[j], unit[k]] - true.atoms["w1"][n, j, k].numpy()) ** 2).sum()
            best = min(best, cost)
        assert math.isclose(float(got[n]), best, rel_tol=1e-10)


def cell_cost(b, w1, w2, true: MixingMeasure, n: int) -> float:
    star, w2_star = true.atoms["w1"][n].numpy(), true.shared["w2"][n].numpy()
    cost = sum(math.exp(b[i]) * min(((w1[i] - s) ** 2).sum() for s in star) for i in range(len(b)))
    return cost + np.exp(b).sum() * ((w2 - w2_star) ** 2).sum()


def test_alignment_to_cells_is_the_least_over_the_group():
    rng = np.random.default_rng(8)
    estimated, true = draw(rng, 3, 5, 2), draw(rng, 3, 3, 2)
    aligned = units("tanh").align(estimated, true)
    for n in range(3):
        numbers = [t[n].numpy() for t in (estimated.log_weights, estimated.atoms["w1"], estimated.shared["w2"])]
        b, w1, w2 = numbers
        images = ((w1[:, list(u)] * np.array(s)[:, None], w2[:, list(u)] * np.array(s)) for u, s in signed_units(2))
        best = min(cell_cost(b, *image, true, n) for image in images)
        got = cell_cost(b, aligned.atoms["w1"][n].numpy(), aligned.shared["w2"][n].numpy(), true, n)
        assert math.isclose(got, best, rel_tol=1e-10)


def test_large_groups_are_aligned_by_alternation():
    rng = np.random.default_rng(9)
    true = draw(rng, 5, 3, 6)
    assert units("tanh").order(true) > ENUMERATED
    moved = group_element(rng, true, "tanh")
    noisy = moved.map(lambda t: t + 0.01 * torch.from_numpy(rng.standard_normal(t.shape)))
    assert distance(units("tanh").align(moved, true), true).max() < 1e-12
    assert distance(units("tanh").align(noisy, true), true).max() < 0.01 * 3 * math.sqrt(3 * 6 * D_IN + 6 * D_OUT)


def test_no_symmetry_relabels_atoms_and_nothing_else():
    rng = np.random.default_rng(10)
    true = draw(rng, 5, 11, 2)
    moved = true.take_atoms(torch.from_numpy(np.stack([rng.permutation(11) for _ in range(5)])))
    aligned = NoSymmetry().align(moved, true, atoms=True)
    assert aligned.atoms["w1"].equal(true.atoms["w1"]) and aligned.log_weights.equal(true.log_weights)
    assert NoSymmetry().align(moved, true).atoms["w1"].equal(moved.atoms["w1"])
    assert NoSymmetry().dimension(true) == 0 and NoSymmetry().orbit(true).batch_shape == (1, 5)


def test_an_unbatched_truth_serves_every_replicate():
    rng = np.random.default_rng(11)
    true = draw(rng, 1, 3, 2).select(0)
    estimated = draw(rng, 6, 3, 2)
    two_axes = estimated.map(lambda t: t.reshape(2, 3, *t.shape[1:]))
    for atoms in (True, False):
        aligned = units("tanh").align(two_axes, true, atoms=atoms)
        one = units("tanh").align(estimated.select(4), true, atoms=atoms)
        assert aligned.batch_shape == (2, 3) and one.batch_shape == ()
        assert aligned.select((1, 1)).atoms["w1"].equal(one.atoms["w1"])


@pytest.mark.parametrize("atoms", [True, False])
def test_a_failed_fit_spoils_no_other_replicate(atoms):
    rng = np.random.default_rng(12)
    true = draw(rng, 3, 2, 2)
    moved = group_element(rng, true, "tanh")
    moved.atoms["w1"][1] = math.nan
    error = distance(units("tanh").align(moved, true, atoms=atoms), true)
    assert error[1].isnan() and error[[0, 2]].max() < 1e-12


def test_what_cannot_be_aligned_is_said():
    rng = np.random.default_rng(13)
    with pytest.raises(InputError, match="2: got 3"):
        units("tanh").align(draw(rng, 1, 3, 2), draw(rng, 1, 2, 2), atoms=True)
    with pytest.raises(InputError, match="at most 7 atoms: got 8"):
        units("tanh").align(draw(rng, 1, 8, 2), draw(rng, 1, 8, 2), atoms=True)
    with pytest.raises(InputError, match="'square' is even"):
        units("square")
