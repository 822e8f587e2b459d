"""The law of the split: its geometry against fits' own functions, closed forms where there are some, invariances."""

import math

import numpy as np
import pytest
import torch

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt
from moe_prompt.errors import InputError
from moe_prompt.models.atoms import AtomLayout
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.theory import split_law as module
from moe_prompt.theory.families import FAMILIES
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import projected_form
from moe_prompt.theory.split_law import split_law
from tests.builders.truths import truth_parts

OUTPUTS = 2


def setting(expert, dim: int, seed: int = 0, nodes: int = 29) -> tuple:
    """A model, a truth, and a distribution of X on a few weighted points."""
    rng = np.random.default_rng(seed)
    maps = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((dim, dim), (OUTPUTS, dim)))
    model = RegressionModel(FrozenExperts.random(1, dim, OUTPUTS, rng), expert, *maps)
    theta = torch.from_numpy(rng.uniform(-1, 1, model.num_parameters))
    x = torch.from_numpy(rng.uniform(-1.5, 1.5, (nodes, dim)))
    return model, theta, (x, torch.from_numpy(rng.dirichlet(np.full(nodes, 5.0))))


SETTINGS = {
    "VPT, L = 1": lambda: setting(ConstantPrompt(1, 3), 3),
    "VPT, L = 2": lambda: setting(ConstantPrompt(2, 3), 3),
    "VAPT, tanh": lambda: setting(FlatAdaptivePrompt(2, 2, 1, "tanh"), 2),
}


@pytest.fixture(scope="module", params=SETTINGS)
def made(request):
    model, theta, nodes = SETTINGS[request.param]()
    return model, theta, nodes, module._Parts.of(LocalGeometry(model, theta, nodes))


def at_nodes(model: RegressionModel, theta: torch.Tensor, nodes: tuple) -> np.ndarray:
    """f at every node, times the root of its weight: plain vectors for L2(mu)."""
    x, weights = nodes
    return (model.mean(theta, x) * weights.sqrt()[:, None]).flatten().numpy()


def split_by(model, theta, nodes, j: int, a: torch.Tensor, h: float = 1e-3) -> np.ndarray:
    """(f_G - f_*) / h^2 for G with atom j in halves at theta_j - h a and theta_j + h a: e^b 1/2 d2W[a, a] + O(h^2)."""
    larger = model.with_atoms(model.num_atoms + 1)
    b, blocks = model.unflatten(theta)
    ends = []
    for sign in (1, -1):
        moved = theta.clone()
        moved[AtomLayout.of(model).own[j]] += sign * h * a
        ends.append(model.unflatten(moved)[1])
    parts = [torch.cat([b, b[j : j + 1]])]
    parts[0][[j, -1]] -= math.log(2)
    for name, block in blocks.items():
        shared = model.expert.is_shared(name)
        parts.append(block if shared else torch.cat([ends[0][name], ends[1][name][j : j + 1]]))
    both = torch.cat([part.flatten() for part in parts])
    return (at_nodes(larger, both, nodes) - at_nodes(model, theta, nodes)) / h**2


def jacobian_by_differences(model, theta, nodes, h: float = 1e-5) -> np.ndarray:
    moves = h * torch.eye(len(theta), dtype=theta.dtype)
    ends = [[at_nodes(model, theta + sign * move, nodes) for move in moves] for sign in (1, -1)]
    return (np.array(ends[0]) - np.array(ends[1])).T / (2 * h)


# ------------------------------------------------------------------------------------------------ geometry


def test_geometry_keeps_all_inner_products(made):
    """Of derivatives and of splits, taken here from functions of measures: tangent and orthogonal parts add up."""
    model, theta, nodes, geometry = made
    jacobian = jacobian_by_differences(model, theta, nodes)
    rng, q = np.random.default_rng(1), len(geometry.bent[0])
    tangent = geometry.tangent.numpy()
    np.testing.assert_allclose(tangent.T @ tangent, jacobian.T @ jacobian, rtol=1e-6, atol=1e-9)
    splits, inside, outside = [], [], []
    for j in range(model.num_atoms):
        for a in rng.standard_normal((3, q)):
            splits.append(split_by(model, theta, nodes, j, torch.from_numpy(a)))
            for found, forms in ((inside, geometry.bent), (outside, geometry.forms)):
                found.append(np.einsum("k,l,klm->m", a, a, forms[j].numpy()))
    splits, inside, outside = map(np.array, (splits, inside, outside))
    scale = np.abs(splits @ splits.T).max()
    np.testing.assert_allclose(inside @ inside.T + outside @ outside.T, splits @ splits.T, atol=1e-4 * scale)
    np.testing.assert_allclose(inside @ tangent, splits @ jacobian, atol=1e-4 * np.abs(splits @ jacobian).max())
    assert min(map(np.linalg.norm, outside)) > 1e-3


def test_forms_of_a_single_atom_are_those_of_sigma_2():
    """Lengths of 1/2 d2W[a, a] across the tangent space, times the atom's mass."""
    model, theta, nodes = SETTINGS["VPT, L = 1"]()
    (form,), (expected, _) = (
        module._Parts.of(LocalGeometry(model, theta, nodes)).forms,
        projected_form(LocalGeometry(model, theta, nodes), 0),
    )
    mass = math.exp(float(model.unflatten(theta)[0][0]))
    a = np.random.default_rng(2).standard_normal((11, 3))
    lengths = [np.linalg.norm(np.einsum("nk,nl,klm->nm", a, a, f.numpy()), axis=1) for f in (form, expected)]
    np.testing.assert_allclose(lengths[0], mass * lengths[1], rtol=1e-8)


def test_tangent_moves_are_least_squares_of_what_splits_leave(made):
    """Against NumPy's lstsq at the nodes: target minus the splits' functions on the Jacobian's columns."""
    model, theta, nodes, geometry = made
    jacobian, rng = jacobian_by_differences(model, theta, nodes), np.random.default_rng(3)
    draws, extra, q = 5, 2, len(geometry.bent[0])
    cells = torch.from_numpy(rng.integers(model.num_atoms, size=(draws, extra)))
    a, noise = torch.from_numpy(rng.standard_normal((draws, extra, q))), rng.standard_normal((draws, len(jacobian)))
    axes = jacobian @ np.linalg.pinv(geometry.tangent.numpy())  # at the nodes, of the tangent space's coordinates
    moves = module._tangent_moves(geometry, torch.from_numpy(noise @ axes), cells, a)
    for n in range(draws):
        bent = sum(split_by(model, theta, nodes, int(cells[n, k]), a[n, k]) for k in range(extra))
        expected = np.linalg.lstsq(jacobian, noise[n] - bent, rcond=1e-9)[0]
        np.testing.assert_allclose(moves[n].numpy(), expected, atol=1e-3 * np.abs(expected).max())


def test_slopes_of_canonical_coordinates(made):
    """The identity where the symmetry is finite; that of w1 -> W2 W1 where units are linear."""
    model, theta, nodes, _ = made
    for j in range(model.num_atoms):
        found = module._canonical_slope(LocalGeometry(model, theta, nodes), j)
        np.testing.assert_allclose(found.numpy(), np.eye(len(found)), atol=1e-8)
    model, theta, nodes = setting(FlatAdaptivePrompt(2, 3, 1, "linear"), 3)
    found = module._canonical_slope(LocalGeometry(model, theta, nodes), 1).numpy()
    w2 = model.unflatten(theta)[1]["w2"].numpy()  # canonical is the product W2 W1_j
    np.testing.assert_allclose(found, np.kron(w2, np.eye(3)), atol=1e-7)


# -------------------------------------------------------------------------------------------- closed forms


def test_one_direction_in_two_cells_by_hand():
    """Forms q_j along axis j: a^2 = (z_j / q_j)_+, of one surplus atom in the cell that gains more, of two in both."""
    q, z = np.array([0.7, -1.9]), np.random.default_rng(4).standard_normal((101, 2))
    forms = [torch.zeros(1, 1, 2, dtype=torch.float64) for _ in q]
    for j, form in enumerate(forms):
        form[0, 0, j] = q[j]
    reach = np.maximum(np.sign(q) * z, 0)
    cells, a = module._solve(forms, torch.from_numpy(z), 1, np.random.default_rng(0))
    own = (reach.max(1) > 0).nonzero()[0]
    assert 60 < len(own) < 95
    assert (cells[own, 0].numpy() == reach[own].argmax(1)).all()
    expected = np.sqrt(reach.max(1) / np.abs(q)[reach.argmax(1)])
    np.testing.assert_allclose(a.abs()[own, 0, 0].numpy(), expected[own], rtol=1e-6)
    assert a.abs().numpy()[expected == 0].max() < 1e-4
    cells, a = module._solve(forms, torch.from_numpy(z), 2, np.random.default_rng(0))
    for j in range(2):
        squares = (a[:, :, 0].square() * (cells == j)).sum(1).numpy()
        np.testing.assert_allclose(squares, reach[:, j] / abs(q[j]), atol=1e-6)


def test_the_nearest_of_a_plane_of_splits_against_a_grid():
    """Two parameters, three orthogonal coordinates: no grid of a is nearer to z than what is found."""
    rng = np.random.default_rng(5)
    form = rng.standard_normal((2, 2, 3))
    form, z = form + form.transpose(1, 0, 2), 2 * rng.standard_normal((7, 3))
    _, a = module._solve([torch.from_numpy(form)], torch.from_numpy(z), 1, np.random.default_rng(0))
    found = np.square(np.einsum("nk,nl,klm->nm", a[:, 0], a[:, 0], form) - z).sum(1)
    axis = np.linspace(-3, 3, 601)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    bends = np.einsum("nk,nl,klm->nm", grid, grid, form)
    least = np.array([np.square(bends - target).sum(1).min() for target in z])
    assert (found <= least + 1e-12).all() and (found >= least - 0.02).all() and (found < np.square(z).sum(1)).any()


def test_noise_scales_splits_by_its_root():
    """At n times the sample noise is n^-1/2 as large and splits n^-1/4, in every draw."""
    model, theta, nodes = SETTINGS["VAPT, tanh"]()
    forms = module._Parts.of(LocalGeometry(model, theta, nodes)).forms
    z = torch.from_numpy(np.random.default_rng(6).standard_normal((13, forms[0].shape[2])))
    sizes = []
    for scale in (1.0, 1e-4):
        cells, a = module._solve(forms, scale * z, 1, np.random.default_rng(0))
        sizes.append(module._sizes(LocalGeometry(model, theta, nodes), cells, a).amax(1).numpy())
    np.testing.assert_allclose(sizes[1], 0.01 * sizes[0], atol=1e-4 * sizes[0].max())  # where no split is best


@pytest.fixture(scope="module")
def in_one_dimension():
    """VPT on the line with one prompt: q = 1, two tangent directions (its mass and its place), one across them."""
    model, theta, nodes = setting(ConstantPrompt(1, 1), 1)
    draws = 1600
    return model, theta, nodes, draws, split_law(LocalGeometry(model, theta, nodes), 1, draws=draws)


def test_means_in_one_dimension_are_known(in_one_dimension):
    """t^2 = (z)_+ / |Q|, Q = e^b sigma_2: E t = E |z|^{1/2} / (2 |Q|^{1/2}), |f| of 2 or 3 chi.

    Five Monte Carlo standard errors (1600 draws): a false alarm of 6e-7 for each mean.
    """
    _, theta, _, draws, law = in_one_dimension
    q = math.exp(float(theta[0])) * law.sigma_2
    half = 2**0.25 * math.gamma(0.75) / math.sqrt(math.pi)  # E |z|^{1/2}
    mean, square = half / 2, math.sqrt(2 / math.pi) / 2  # of (z)_+^{1/2} and of its square
    error = math.sqrt((square - mean**2) / draws)
    assert law.split * math.sqrt(q) == pytest.approx(mean, abs=5 * error)
    chi = {k: math.sqrt(2) * math.gamma((k + 1) / 2) / math.gamma(k / 2) for k in (2, 3)}
    mean = (chi[2] + chi[3]) / 2
    assert law.function == pytest.approx(mean, abs=5 * math.sqrt((2.5 - mean**2) / draws))


def test_loss_and_moments_in_one_dimension(in_one_dimension):
    """D = e^b |u_b| + e^b t^2 and the drift e^b (|u_b| + |u_p|), u = J^+ (noise - bent t^2) from functions of measures.

    With 20 000 draws here and 1600 there: six standard errors of the difference, a false alarm of 2e-9.
    """
    model, theta, nodes, draws, law = in_one_dimension
    rng, many = np.random.default_rng(7), 20_000
    jacobian = jacobian_by_differences(model, theta, nodes)
    bent = split_by(model, theta, nodes, 0, torch.ones(1, dtype=torch.float64))
    tangent = np.linalg.lstsq(jacobian, bent, rcond=None)[0]
    across = np.linalg.norm(bent - jacobian @ tangent)
    assert across == pytest.approx(math.exp(float(theta[0])) * law.sigma_2, rel=1e-4)
    squares = np.maximum(rng.standard_normal(many), 0) / across
    r = np.linalg.qr(jacobian, mode="r")
    u = np.linalg.solve(r, rng.standard_normal((2, many))) - tangent[:, None] * squares
    mass = math.exp(float(theta[0]))
    for found, sample in ((law.loss, mass * (np.abs(u[0]) + squares)), (law.moments, mass * np.abs(u).sum(0))):
        assert found == pytest.approx(sample.mean(), abs=6 * sample.std() * math.sqrt(1 / draws + 1 / many))


@pytest.mark.parametrize("name", ["VPT, L = 2", "VAPT, tanh"])
def test_sizes_and_losses_of_given_splits_by_loops(name):
    """t_j^2 = sum of |a|^2 in cell j; D of masses, drifts of whole atoms, squares of split ones, shared parameters."""
    model, theta, nodes = SETTINGS[name]()
    rng, draws = np.random.default_rng(9), 7
    q = AtomLayout.of(model).width
    cells, a = rng.integers(2, size=(draws, 2)), rng.standard_normal((draws, 2, q))
    sizes = module._sizes(LocalGeometry(model, theta, nodes), torch.from_numpy(cells), torch.from_numpy(a))
    u = rng.standard_normal((draws, len(theta)))
    places = [AtomLayout.of(model).own[j].numpy() for j in range(2)]
    others = sorted(set(range(2, len(theta))) - set(np.concatenate(places).tolist()))
    assert (len(others) > 0) == (name == "VAPT, tanh")
    losses, drifts = [], []
    for n in range(draws):
        loss, drift = sum(math.exp(theta[j]) for j in range(2)) * np.linalg.norm(u[n, others]), 0.0
        for j in range(2):
            square = sum(a[n, k] @ a[n, k] for k in range(2) if cells[n, k] == j)
            assert float(sizes[n, j]) == pytest.approx(math.sqrt(square), rel=1e-6)
            moved = np.linalg.norm(u[n, places[j]])
            loss += math.exp(theta[j]) * (abs(u[n, j]) + (square if j in cells[n] else moved))
            drift += math.exp(theta[j]) * (abs(u[n, j]) + moved)
        losses.append(loss)
        drifts.append(drift)
    found = module._losses(model, theta, torch.from_numpy(u), sizes)
    assert found == pytest.approx((np.mean(losses), np.mean(drifts)), rel=1e-6)
    assert 0 < (cells[:, 0] == cells[:, 1]).sum() < draws


# ---------------------------------------------------------------------------------------------- invariances


def test_a_gauge_changes_nothing():
    """VAPT with one linear unit: (c w1, w2 / c) are the same functions, whose splits have the same canonical lengths.

    In every draw of the noise, whose coordinates are those of the forms up to signs.
    """
    model, theta, nodes = setting(FlatAdaptivePrompt(1, 3, 1, "linear"), 3)
    moved = theta.clone()
    moved[model.slices["w1"]] *= 2.5
    moved[model.slices["w2"]] /= 2.5
    (one,), (other,) = (module._Parts.of(LocalGeometry(model, place, nodes)).forms for place in (theta, moved))
    signs = (one * other).sum((0, 1)).sign()
    torch.testing.assert_close(one, other * signs * 2.5**2, rtol=1e-6, atol=1e-9)
    z = torch.from_numpy(np.random.default_rng(8).standard_normal((40, one.shape[2])))
    lengths = []
    for place, form, noise in ((theta, one, z), (moved, other, z * signs)):
        cells, a = module._solve([form], noise, 1, np.random.default_rng(0))
        lengths.append(module._sizes(LocalGeometry(model, place, nodes), cells, a)[:, 0].numpy())
    np.testing.assert_allclose(*lengths, rtol=0.01)  # flat minima are not found to rounding
    assert np.median(np.abs(lengths[0] - lengths[1])) < 1e-6
    law = split_law(LocalGeometry(model, theta, nodes), 1, draws=3)
    assert law.loss is None and law.moments is None and law.split > 0


def test_the_same_again_and_more_room_with_two():
    """Equal seeds, equal numbers; with two atoms too many every draw is fitted at least as closely."""
    model, theta, nodes = SETTINGS["VPT, L = 2"]()
    one, again, two = (split_law(LocalGeometry(model, theta, nodes), extra, draws=80) for extra in (1, 1, 2))
    assert one == again and list(one.to_dict()) == [
        "sigma_2",
        "joint_sigma_2",
        "split",
        "function",
        "loss",
        "moments",
    ]
    assert two.function > one.function and two.sigma_2 == one.sigma_2
    assert split_law(LocalGeometry(model, theta, nodes), 1, draws=80, seed=1).split != one.split


def test_sums_of_splits_in_several_cells_may_cancel():
    """T_1 = (1, 0), T_2 = (-1, h): one cell alone is seen at 1 or more, the best mixture of both at h / |(2, h)|."""
    h = 0.3
    forms = [torch.tensor([[vector]], dtype=torch.float64) for vector in ([1.0, 0.0], [-1.0, h])]
    ones = torch.ones(2, dtype=torch.float64)
    assert module.joint_sigma_2(forms, ones) == pytest.approx(h / math.hypot(2, h), rel=1e-5)
    assert module.joint_sigma_2(forms[:1], ones[:1]) == pytest.approx(1, rel=1e-9)
    assert module.joint_sigma_2([2 * form for form in forms], 2 * ones) == pytest.approx(h / math.hypot(2, h), rel=1e-5)


def test_a_truth_with_invisible_splits_has_no_law():
    model, theta, covariates = truth_parts(FAMILIES["prefix, non-shared"].build())
    with pytest.raises(InputError, match="needs sigma_2 > 0 at every atom"):
        split_law(LocalGeometry(model, theta, covariates.nodes(256)), 1, draws=3)
