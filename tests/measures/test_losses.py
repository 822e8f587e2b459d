import itertools
import math

import numpy as np
import pytest
import torch

from moe_prompt.attention.activations import ACTIVATIONS
from moe_prompt.errors import InputError
from moe_prompt.measures.alignment import ENUMERATED
from moe_prompt.measures.losses import (
    ExcessRisk,
    FunctionDistance,
    VoronoiLoss,
    barycentre_error,
    first_moment_error,
    split_error,
    voronoi_cells,
)
from moe_prompt.measures.mixing_measure import MixingMeasure
from moe_prompt.measures.symmetries import HiddenUnits, NoSymmetry, Symmetry


def points(weights: list[float], atoms: list[list[float]]) -> MixingMeasure:
    logs = torch.tensor(weights, dtype=torch.float64).log()
    return MixingMeasure(logs, {"p": torch.tensor(atoms, dtype=torch.float64)})


def draw(rng: np.random.Generator, batch: int, atoms: int, rank: int = 2) -> MixingMeasure:
    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((batch, *shape)))

    return MixingMeasure(normal(atoms), {"w1": normal(atoms, rank, 3)}, {"w2": normal(5, rank)})


def units(name: str) -> HiddenUnits:
    return HiddenUnits("w1", "w2", ACTIVATIONS[name])


def plain(measure: MixingMeasure, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(t[n].numpy() for t in (measure.log_weights, measure.atoms["w1"], measure.shared["w2"]))


def norm(x: np.ndarray) -> float:
    return math.sqrt(sum(v * v for v in x.flatten().tolist()))


def voronoi(estimated: tuple, true: tuple, split: float, single: float) -> float:
    """D written as the double loop of the paper."""
    (b, w1, w2), (b_star, w1_star, w2_star) = estimated, true
    cells: dict[int, list[int]] = {j: [] for j in range(len(b_star))}
    for i in range(len(b)):
        far = [norm(w1[i] - star) for star in w1_star]
        cells[far.index(min(far))].append(i)
    total = sum(math.exp(v) for v in b_star) * norm(w2 - w2_star) ** single
    for j, cell in cells.items():
        total += abs(sum(math.exp(b[i]) for i in cell) - math.exp(b_star[j]))
        power = split if len(cell) > 1 else single
        total += sum(math.exp(b[i]) * norm(w1[i] - w1_star[j]) ** power for i in cell)
    return total


@pytest.mark.parametrize("name, odd", [("tanh", True), ("gelu", False)])
@pytest.mark.parametrize("split, single", [(2.0, 1.0), (3.0, 3.0)])
def test_voronoi_loss_by_plain_loops_over_cells_and_group(name, odd, split, single):
    rng = np.random.default_rng(0)
    estimated, true = draw(rng, 7, 5), draw(rng, 7, 3)
    loss = VoronoiLoss.of_order(3.0, units(name)) if single == 3.0 else VoronoiLoss(units(name))
    got = loss(estimated, true)
    for n in range(7):
        b, w1, w2 = plain(estimated, n)
        signs = list(itertools.product((1, -1), repeat=2)) if odd else [(1, 1)]
        images = [
            (b, w1[:, list(u)] * np.array(s)[:, None], w2[:, list(u)] * np.array(s))
            for u in itertools.permutations(range(2))
            for s in signs
        ]
        expected = min(voronoi(image, plain(true, n), split, single) for image in images)
        assert math.isclose(float(got[n]), expected, rel_tol=1e-10)


def test_without_symmetry_it_is_the_identity_element():
    rng = np.random.default_rng(1)
    estimated, true = draw(rng, 7, 5), draw(rng, 7, 3)
    got = VoronoiLoss()(estimated, true)
    expected = [voronoi(plain(estimated, n), plain(true, n), 2.0, 1.0) for n in range(7)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def disguise(rng: np.random.Generator, true: MixingMeasure, name: str | None) -> MixingMeasure:
    """The same measure: a random group element, atoms shuffled, every atom split in two equal places."""
    batch, count = true.log_weights.shape
    share = torch.from_numpy(rng.uniform(0.2, 0.8, (batch, count)))
    order = torch.from_numpy(np.stack([rng.permutation(2 * count) for _ in range(batch)]))
    logs = torch.cat([true.log_weights + share.log(), true.log_weights + (1 - share).log()], dim=1).gather(1, order)
    w1 = true.atoms["w1"][torch.arange(batch)[:, None], order % count]
    if name is None:
        return MixingMeasure(logs, {"w1": w1}, {"w2": true.shared["w2"].clone()})
    act, rank = ACTIVATIONS[name], w1.shape[2]
    t = np.stack([np.eye(rank)[rng.permutation(rank)] for _ in range(batch)])
    t = t * rng.choice([-1.0, 1.0], (batch, rank, 1)) if act.odd else t
    t = t * rng.uniform(0.3, 3.0, (batch, rank, 1)) if act.homogeneous else t
    t = torch.from_numpy(rng.standard_normal(t.shape) + 3 * np.eye(rank) if act.linear else t)
    w2 = true.shared["w2"] @ torch.linalg.inv(t)
    return MixingMeasure(logs, {"w1": torch.einsum("nab,njbx->njax", t, w1)}, {"w2": w2})


@pytest.mark.parametrize(
    "name, rank", [(None, 3), ("tanh", 3), ("gelu", 3), ("relu", 3), ("linear", 3), ("tanh", 6), ("gelu", 8)]
)
def test_zero_iff_equal_as_measures_up_to_symmetry(name, rank):
    rng = np.random.default_rng(2)
    symmetry: Symmetry = NoSymmetry() if name is None else units(name)
    true = draw(rng, 11, 3, rank)
    assert (symmetry.order(true) > ENUMERATED) == (rank > 3)
    loss = VoronoiLoss(symmetry)
    same = disguise(rng, true, name)
    assert loss(same, true).max() < 1e-12
    for part in ("log_weights", "w1", "w2"):
        other = disguise(rng, true, name)
        tensor = {"log_weights": other.log_weights, **other.atoms, **other.shared}[part]
        tensor[(slice(None), *[0] * (tensor.ndim - 1))] += 0.01
        assert loss(other, true).min() > 1e-6, part
    if name is not None:
        assert VoronoiLoss()(same, true).median() > 0.1


def test_one_activation_is_not_another():
    """gelu allows no sign change, tanh no scale: the loss must see both."""
    rng = np.random.default_rng(3)
    true = draw(rng, 3, 2)
    flipped, scaled = (
        MixingMeasure(true.log_weights, {"w1": c * true.atoms["w1"]}, {"w2": true.shared["w2"] / c}) for c in (-1, 2)
    )
    assert VoronoiLoss(units("tanh"))(flipped, true).max() < 1e-12 < VoronoiLoss(units("gelu"))(flipped, true).min()
    assert VoronoiLoss(units("relu"))(scaled, true).max() < 1e-12 < VoronoiLoss(units("tanh"))(scaled, true).min()


def test_large_groups_agree_with_a_sorted_assignment_near_the_truth():
    rng = np.random.default_rng(4)
    true = draw(rng, 5, 2, 6)
    noisy = true.map(lambda t: t + 1e-3 * torch.from_numpy(rng.standard_normal(t.shape)))
    expected = [voronoi(plain(noisy, n), plain(true, n), 2.0, 1.0) for n in range(5)]
    unit = torch.from_numpy(rng.permutation(6))
    sign = torch.from_numpy(rng.choice([-1.0, 1.0], 6))
    w1, w2 = noisy.atoms["w1"][:, :, unit] * sign[:, None], noisy.shared["w2"][..., unit] * sign
    moved = MixingMeasure(noisy.log_weights, {"w1": w1}, {"w2": w2})
    np.testing.assert_allclose(VoronoiLoss(units("tanh"))(moved, true).numpy(), expected, rtol=1e-9)


def test_empty_cells_cost_their_mass():
    true = points([0.7, 0.4], [[0.0, 0.0], [5.0, 0.0]])
    assert float(VoronoiLoss()(points([0.7], [[0.0, 0.0]]), true)) == pytest.approx(0.4)


def test_split_and_singleton_powers():
    true = points([1.0, 0.5], [[0.0, 0.0], [5.0, 0.0]])
    estimated = points([0.6, 0.4, 0.5], [[0.3, 0.0], [0.0, 0.1], [5.0, 0.2]])
    assert float(VoronoiLoss()(estimated, true)) == pytest.approx(0.6 * 0.09 + 0.4 * 0.01 + 0.5 * 0.2)
    cubic = 0.6 * 0.027 + 0.4 * 0.001 + 0.5 * 0.008
    assert float(VoronoiLoss.of_order(3.0)(estimated, true)) == pytest.approx(cubic)


def test_vanishing_atoms_cost_nothing_and_split_nothing():
    true = points([1.0, 0.5], [[0.0, 0.0], [5.0, 0.0]])
    base = points([1.0, 0.5], [[0.3, 0.0], [5.0, 0.0]])
    gone = points([1.0, 0.5, 0.0], [[0.3, 0.0], [5.0, 0.0], [1.9, 1.0]])
    assert float(VoronoiLoss()(gone, true)) == pytest.approx(float(VoronoiLoss()(base, true)))
    assert float(VoronoiLoss()(base, true)) == pytest.approx(0.3)
    for mass in (1e-3, 1e-6):
        extra = points([1.0, 0.5, mass], [[0.0, 0.0], [5.0, 0.0], [1.9, 1.0]])
        assert 0 < float(VoronoiLoss()(extra, true)) < 10 * mass


def test_shared_parameters_weigh_the_total_true_mass():
    def measure(w: float) -> MixingMeasure:
        logs = torch.tensor([0.5, 1.5], dtype=torch.float64).log()
        atoms = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        return MixingMeasure(logs, {"p": atoms}, {"w": torch.tensor([w, 0.0], dtype=torch.float64)})

    assert float(VoronoiLoss()(measure(0.3), measure(0.0))) == pytest.approx(2.0 * 0.3)


def test_batches_of_any_shape_and_an_unbatched_truth(monkeypatch):
    rng = np.random.default_rng(5)
    estimated, true = draw(rng, 6, 5), draw(rng, 1, 3).select(0)
    loss = VoronoiLoss(units("tanh"))
    whole = loss(estimated, true)
    square = estimated.map(lambda t: t.reshape(2, 3, *t.shape[1:]))
    assert loss(square, true).flatten().equal(whole)
    assert loss(estimated.select(4), true).equal(whole[4]) and loss(estimated.select(4), true).shape == ()
    monkeypatch.setattr("moe_prompt.measures.alignment._BLOCK", 1)
    assert loss(estimated, true).equal(whole)
    assert loss(estimated.select(slice(0, 0)), true).shape == (0,)


@pytest.mark.parametrize("rank", [2, 6])
def test_a_failed_fit_is_nan_and_spoils_no_other(rank):
    rng = np.random.default_rng(6)
    true = draw(rng, 3, 2, rank)
    estimated = disguise(rng, true, "tanh")
    estimated.atoms["w1"][1] = math.nan
    got = VoronoiLoss(units("tanh"))(estimated, true)
    assert got[1].isnan() and got[[0, 2]].max() < 1e-12


def test_equal_true_atoms_are_refused():
    with pytest.raises(InputError, match="distinct"):
        VoronoiLoss()(points([1.0], [[0.0]]), points([1.0, 1.0], [[2.0], [2.0]]))


def test_split_and_barycentre_errors_by_plain_loops():
    rng = np.random.default_rng(7)
    true = draw(rng, 5, 3)
    estimated = disguise(rng, true, "tanh")
    estimated = MixingMeasure(
        estimated.log_weights,
        {"w1": estimated.atoms["w1"] + 0.05 * torch.from_numpy(rng.standard_normal((5, 6, 2, 3)))},
        estimated.shared,
    )
    aligned = units("tanh").align(estimated, true)
    split, centre = (f(estimated, true, units("tanh")) for f in (split_error, barycentre_error))
    for n in range(5):
        (b, w1, _), (b_star, w1_star, _) = plain(aligned, n), plain(true, n)
        for j in range(3):
            cell = [i for i in range(6) if min(range(3), key=lambda k: norm(w1[i] - w1_star[k])) == j]
            assert len(cell) == 2
            squares = sum(math.exp(b[i] - b_star[j]) * norm(w1[i] - w1_star[j]) ** 2 for i in cell)
            drift = sum(math.exp(b[i] - b_star[j]) * (w1[i] - w1_star[j]) for i in cell)
            assert math.isclose(float(split[n, j]), math.sqrt(squares), rel_tol=1e-10)
            assert math.isclose(float(centre[n, j]), norm(drift), rel_tol=1e-10)


def test_a_balanced_split_has_no_drift_and_empty_cells_have_no_error():
    true = points([1.0, 0.5], [[0.0, 0.0], [5.0, 0.0]])
    estimated = points([0.5, 0.5], [[0.2, 0.0], [-0.2, 0.0]])
    assert split_error(estimated, true).tolist() == pytest.approx([0.2, 0.0])
    assert barycentre_error(estimated, true).tolist() == pytest.approx([0.0, 0.0])
    massless = points([1.0, 0.0], [[0.0, 0.0], [5.0, 0.0]])
    assert split_error(points([1.0], [[5.0, 0.1]]), massless).tolist() == [0.0, 0.0]


def moments_of(estimated: tuple, true: tuple, labels: tuple[int, ...]) -> float:
    """Drift of masses and first moments when fitted atom i is given to true atom labels[i]."""
    (b, w1, _), (b_star, w1_star, _) = estimated, true
    total = 0.0
    for j in range(len(b_star)):
        mass, moment = -math.exp(b_star[j]), np.zeros_like(w1_star[j])
        for i in range(len(b)):
            if labels[i] == j:
                mass += math.exp(b[i])
                moment += math.exp(b[i]) * (w1[i] - w1_star[j])
        total += abs(mass) + norm(moment)
    return total


def test_first_moments_by_plain_loops_over_assignments():
    """All 3^5 of them; the nearest atoms' is seldom the least."""
    rng = np.random.default_rng(9)
    estimated, true = draw(rng, 7, 5), draw(rng, 7, 3)
    got, nearest = first_moment_error(estimated, true), voronoi_cells(estimated, true)
    better = 0
    for n in range(7):
        costs = {
            labels: moments_of(plain(estimated, n), plain(true, n), labels)
            for labels in itertools.product(range(3), repeat=5)
        }
        assert math.isclose(float(got[n]), min(costs.values()), rel_tol=1e-10)
        better += costs[tuple(nearest[n].tolist())] > min(costs.values()) * (1 + 1e-9)
    assert better >= 3
    assert first_moment_error(estimated.select(4), true.select(4)).shape == ()


def test_first_moments_of_small_splits_are_cells_masses_and_barycentres():
    rng = np.random.default_rng(10)
    true = draw(rng, 6, 3)
    estimated = disguise(rng, true, None)
    estimated = MixingMeasure(
        estimated.log_weights + 0.02 * torch.from_numpy(rng.standard_normal((6, 6))),
        {"w1": estimated.atoms["w1"] + 0.02 * torch.from_numpy(rng.standard_normal((6, 6, 2, 3)))},
        estimated.shared,
    )
    cells, expected = voronoi_cells(estimated, true), torch.zeros(6, dtype=torch.float64)
    drift = barycentre_error(estimated, true)
    for n in range(6):
        for j in range(3):
            mass = float(estimated.weights[n][cells[n] == j].sum())
            star = float(true.weights[n, j])
            expected[n] += abs(mass - star) + star * drift[n, j]
    torch.testing.assert_close(first_moment_error(estimated, true), expected, rtol=1e-10, atol=0.0)


def test_first_moments_of_the_same_measure_are_its_own_whatever_its_labels():
    """Atoms shuffled, hidden units permuted and turned: zero; and no label of a truth matters."""
    rng = np.random.default_rng(11)
    true = draw(rng, 5, 3)
    same = disguise(rng, true, "tanh")
    assert first_moment_error(same, true, units("tanh")).max() < 1e-12 < first_moment_error(same, true).min()
    estimated = draw(rng, 5, 4)
    shuffled = estimated.take_atoms(torch.tensor([2, 0, 3, 1]).expand(5, 4))
    relabelled = true.take_atoms(torch.tensor([2, 0, 1]).expand(5, 3))
    torch.testing.assert_close(
        first_moment_error(shuffled, relabelled), first_moment_error(estimated, true), rtol=1e-12, atol=0.0
    )


def test_first_moments_see_through_splits_that_cross_cells():
    """Two atoms an arm's length apart, one split by three: half of it lies in the other's cell, centres stay."""
    true = points([1.0, 0.5], [[0.0, 0.0], [1.0, 0.0]])
    estimated = points([0.5, 0.5, 0.5], [[-3.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    assert voronoi_cells(estimated, true).tolist() == [0, 1, 1]
    assert float(first_moment_error(estimated, true)) < 1e-12
    assert barycentre_error(estimated, true).tolist() == pytest.approx([1.5, 2.0])
    moved = points([0.5, 0.5, 0.5], [[-3.0, 0.02], [3.0, 0.0], [1.0, 0.0]])
    assert float(first_moment_error(moved, true)) == pytest.approx(0.01)
    light = points([0.5, 0.5, 0.4], [[-3.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    assert float(first_moment_error(light, true)) == pytest.approx(0.1)


def test_first_moments_of_too_many_atoms_are_refused_and_a_failed_fit_is_nan():
    rng = np.random.default_rng(12)
    with pytest.raises(InputError, match=r"3\^8 trials"):
        first_moment_error(draw(rng, 2, 8), draw(rng, 2, 3))
    true, estimated = draw(rng, 3, 2), draw(rng, 3, 3)
    estimated.atoms["w1"][1] = math.nan
    got = first_moment_error(estimated, true)
    assert got.isnan().tolist() == [False, True, False]


def quadratic(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([theta[..., :1] * x[:, 0], theta[..., 1:] * x[:, 1] ** 2], dim=-1)


def test_function_distance_by_plain_loops():
    rng = np.random.default_rng(8)
    x, w = torch.from_numpy(rng.standard_normal((13, 2))), torch.from_numpy(rng.dirichlet(np.ones(13)))
    estimated, true = torch.from_numpy(rng.standard_normal((7, 2))), torch.from_numpy(rng.standard_normal(2))
    distance, risk = (kind(quadratic, x, w)(estimated, true) for kind in (FunctionDistance, ExcessRisk))
    for n in range(7):
        slope, bend = (estimated[n] - true).tolist()
        terms = [m * ((slope * a) ** 2 + (bend * b**2) ** 2) for m, (a, b) in zip(w.tolist(), x.tolist(), strict=True)]
        assert math.isclose(float(risk[n]), sum(terms), rel_tol=1e-12)
        assert math.isclose(float(distance[n]), math.sqrt(sum(terms)), rel_tol=1e-12)


def test_a_truth_of_another_family():
    x, w = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([0.75, 0.25])
    risk = ExcessRisk(quadratic, x, w, true_function=lambda c, z: c.expand(len(z), 2))
    assert float(risk(torch.tensor([1.0, 0.0]), torch.tensor(0.0))) == pytest.approx(0.75 + 0.25 * 9)


def test_function_values_of_the_wrong_shape_are_said():
    loss = FunctionDistance(lambda theta, x: x.mT, torch.zeros(3, 2), torch.full((3,), 1 / 3))
    with pytest.raises(InputError, match="3 points"):
        loss(torch.zeros(2), torch.zeros(2))
