"""sigma_2 against direct minimisation over split measures, second derivatives against differences of plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.models.sampling import Population
from moe_prompt.theory.families import EXPERTS, FAMILIES, Family, vapt
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.quartic_forms import least, relaxed
from moe_prompt.theory.sigma2 import projected_form, sigma_2
from moe_prompt.theory.split_distance import AtomSplit, split_distance
from tests.builders.truths import truth_parts

VISIBLE = [
    "VPT, B injective",
    "reparameterised prefix, maps known",
    "VAPT, tanh",
    "VAPT, gelu",
    "VAPT, sigmoid",
    "VAPT, linear, r = 1",
    "linear gate + tanh ridge",
    "NoRGa + tanh ridge",
]
INVISIBLE = [
    "VPT, B singular",
    "prefix, non-shared",
    "VAPT, linear, r = 2",
    "linear gate + linear expert",
    "NoRGa + linear expert",
    "NoRGa + constant expert",
]


def small(name: str) -> tuple:
    """A family on few nodes: any weighted points are a distribution of X, so both sides see the same one."""
    model, theta, covariates = truth_parts(FAMILIES[name].build())
    return model, theta, covariates.nodes(256)


def w_by_loops(setting: Population, theta: np.ndarray, x: np.ndarray, atom: int, at: Population) -> np.ndarray:
    """[U(x; theta_j) - V(x; theta_j) f_*(x)] / D_*(x) for VAPT with tanh, theta_j from `theta`, the star from `at`."""

    def parts(flat: np.ndarray, j: int) -> tuple[float, np.ndarray, float]:
        b, blocks = setting.model.unflatten(torch.from_numpy(flat))
        w1, w2 = blocks["w1"].numpy(), blocks["w2"].numpy()
        prompt = np.zeros(w2.shape[0])
        for k in range(w2.shape[1]):
            prompt += w2[:, k] * math.tanh(sum(w1[j, k, i] * x[i] for i in range(len(x))))
        score = (setting.model.key_map.numpy() @ prompt) @ x
        return math.exp(score), setting.model.value_map.numpy() @ prompt, float(b[j])

    star, frozen = at.theta.numpy(), setting.model.frozen
    top, bottom = np.zeros(setting.model.outputs), 0.0
    for quadratic, constant, eta in zip(frozen.quadratic, frozen.constant, frozen.values, strict=True):
        weight = math.exp(x @ quadratic.numpy() @ x + float(constant))
        top, bottom = top + weight * (eta.numpy() @ x), bottom + weight
    for j in range(setting.model.num_atoms):
        v, value, b = parts(star, j)
        top, bottom = top + math.exp(b) * v * value, bottom + math.exp(b) * v
    v, value, _ = parts(theta, atom)
    return (v * value - v * top / bottom) / bottom


def test_second_derivatives_against_differences_of_loops():
    setting = Family("small", vapt, "tanh", hidden=2, dim=3, outputs=5, seed=7).build()
    points, h = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3))), 1e-4
    geometry = LocalGeometry(setting.model, setting.theta, (points, torch.ones(2).double()))
    places = geometry.atoms.own[1].tolist()
    assert [geometry.names[i] for i in places[:2]] == ["w1[1,0,0]", "w1[1,0,1]"] and len(places) == 6
    second, pairs = geometry.second_derivatives[1], list(zip(*np.triu_indices(6), strict=True))
    for n, x in enumerate(points.numpy()):
        for column, (k, other) in enumerate(pairs):
            total = np.zeros(5)
            for s, r in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                moved = setting.theta.numpy().copy()
                moved[places[k]] += s * h
                moved[places[other]] += r * h
                total += s * r * w_by_loops(setting, moved, x, 1, setting)
            np.testing.assert_allclose(second[n, :, column].numpy(), 0.5 * total / (4 * h * h), atol=2e-6)


def test_mean_and_log_denominator_by_loops():
    setting = Family("small", vapt, "tanh", hidden=2, dim=3, outputs=5, seed=7).build()
    points = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (3, 3)))
    geometry = LocalGeometry(setting.model, setting.theta, (points, torch.ones(3).double()))
    f, log_d = geometry.mean_and_log_denominator
    np.testing.assert_allclose(f.numpy(), setting.model.mean(setting.theta, points).numpy(), rtol=1e-12)
    for n, x in enumerate(points.numpy()):
        frozen = sum(
            math.exp(x @ q.numpy() @ x + float(a))
            for q, a in zip(setting.model.frozen.quadratic, setting.model.frozen.constant, strict=True)
        )
        b, blocks = setting.model.unflatten(setting.theta)
        w1, w2, key_map = blocks["w1"].numpy(), blocks["w2"].numpy(), setting.model.key_map.numpy()
        prompts = [math.exp(float(b[j]) + key_map @ (w2 @ np.tanh(w1[j] @ x)) @ x) for j in range(len(w1))]
        assert float(log_d[n]) == pytest.approx(math.log(frozen + sum(prompts)), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_least_length_against_a_fine_grid_of_the_sphere(seed):
    rng = np.random.default_rng(seed)
    form = rng.standard_normal((3, 3, 7))
    form = form + form.transpose(1, 0, 2)
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, 601), np.linspace(0, np.pi, 601), indexing="ij")
    grid = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1)
    lengths = np.linalg.norm(np.einsum("...k,...l,klm->...m", grid, grid, form), axis=-1)
    value, a, _ = least(torch.from_numpy(form))
    assert value <= lengths.min() < value * (1 + 1e-3)
    assert float(a.norm()) == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(np.einsum("k,l,klm->m", a, a, form)) == pytest.approx(value, rel=1e-12)
    upper, lower = relaxed(torch.from_numpy(form), torch.eye(3, dtype=torch.float64))
    assert lower <= upper <= value * (1 + 1e-6) and upper - lower <= 2e-6 * upper
    draws = rng.standard_normal((4000, 3, 3))
    psd = draws @ draws.transpose(0, 2, 1)
    psd /= np.trace(psd, axis1=1, axis2=2)[:, None, None]
    assert np.linalg.norm(np.einsum("skl,klm->sm", psd, form), axis=1).min() >= lower


def test_a_planted_zero_is_found_to_rounding():
    rng = np.random.default_rng(6)
    hidden = rng.standard_normal(5)
    hidden /= np.linalg.norm(hidden)
    form = rng.standard_normal((5, 5, 11))
    form = form + form.transpose(1, 0, 2)
    form -= np.einsum("k,l,p,q,pqm->klm", hidden, hidden, hidden, hidden, form)
    value, a, _ = least(torch.from_numpy(form))
    assert value < 1e-12 and abs(abs(float(a.numpy() @ hidden)) - 1) < 1e-9


def test_more_atoms_can_hide_what_two_cannot():
    """T[M] = (M_11 - M_22, 2 M_12): length one for every a a^T, zero for half the identity."""
    form = torch.zeros(2, 2, 2, dtype=torch.float64)
    form[0, 0, 0], form[1, 1, 0], form[0, 1, 1], form[1, 0, 1] = 1.0, -1.0, 1.0, 1.0
    value, _, ends = least(form)
    assert value == pytest.approx(1, abs=1e-12)
    assert relaxed(form, ends)[0] < 1e-9


@pytest.mark.parametrize("name", VISIBLE)
@pytest.mark.parametrize("atom", [0, 1])
def test_the_nearest_split_is_as_far_as_sigma_2_says(name, atom):
    """rho(t) / (e^b t^2) = sigma_2 + O(t): within 5 % at t = 0.02, and no random start comes nearer."""
    model, theta, nodes = small(name)
    index, t = sigma_2(LocalGeometry(model, theta, nodes), atom), 0.02
    predicted = split_distance(LocalGeometry(model, theta, nodes), atom, t, index.direction.vector, starts=0)
    found = split_distance(LocalGeometry(model, theta, nodes), atom, t, starts=2, seed=1)
    assert predicted.ratio == pytest.approx(index.sigma_2, rel=0.05)
    assert found.ratio > 0.95 * index.sigma_2
    assert 0 < index.relaxed <= index.sigma_2 and not index.vanishes


@pytest.mark.parametrize("name", ["VPT, B injective", "VAPT, tanh", "linear gate + tanh ridge"])
def test_random_starts_find_sigma_2_without_its_direction(name):
    model, theta, nodes = small(name)
    best = split_distance(LocalGeometry(model, theta, nodes), 1, 0.02, starts=6, seed=2)
    assert best.ratio == pytest.approx(sigma_2(LocalGeometry(model, theta, nodes), 1).sigma_2, rel=0.05)


@pytest.mark.parametrize("name", INVISIBLE)
def test_the_invisible_splits_are_invisible_at_any_size(name):
    model, theta, nodes = small(name)
    index = sigma_2(LocalGeometry(model, theta, nodes), 1)
    assert index.sigma_2 < 1e-10 and index.relaxed < 1e-10 and index.vanishes and index.unprojected > 1e-2
    for t in (0.1, 1.0):
        assert split_distance(LocalGeometry(model, theta, nodes), 1, t, index.direction.vector, starts=0).ratio < 1e-6


@pytest.mark.parametrize("name", ["VPT, B injective", "VAPT, linear, r = 1", "NoRGa + tanh ridge"])
def test_derivatives_of_a_split_measure_are_those_of_differences(name):
    model, theta, nodes = small(name)
    split = AtomSplit(LocalGeometry(model, theta, nodes), 1, 0.3)
    free = torch.from_numpy(
        np.random.default_rng(8).standard_normal(
            split.theta_jacobian(split.start(torch.ones(split.geometry.atoms.width).double())).shape[1]
        )
    )
    steps = 1e-6 * torch.eye(len(free), dtype=torch.float64)
    differences = torch.stack([(split.theta(free + step) - split.theta(free - step)) / 2e-6 for step in steps], 1)
    np.testing.assert_allclose(split.theta_jacobian(free), differences, atol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
def test_second_derivatives_are_those_of_automatic_differentiation(name):
    """W, the contribution of a unit mass, written out for one covariate and differentiated twice by torch."""
    model, theta, nodes = small(name)
    geometry = LocalGeometry(model, theta, (nodes[0][::37], nodes[1][::37]))
    (f, log_d), own = geometry.mean_and_log_denominator, geometry.atoms.own[1]

    def w(parameters, n):
        at = theta.index_put((own,), parameters)
        blocks = {k: v[1:2] if not model.expert.is_shared(k) else v for k, v in model.unflatten(at)[1].items()}
        x = geometry.nodes[0][n]
        tokens = torch.func.functional_call(model.expert, blocks, (x[None],))
        score = model.gate.link(tokens.key[0] @ model.key_map.mT @ x)[0]
        return torch.exp(score - log_d[n]) * (model.value_map @ tokens.value[0] - f[n])

    k, l = torch.triu_indices(len(own), len(own))  # noqa: E741
    for n in (0, 3):
        expected = 0.5 * torch.func.jacrev(torch.func.jacrev(lambda p, n=n: w(p, n)))(theta[own])[:, k, l]
        np.testing.assert_allclose(geometry.second_derivatives[1][n], expected.detach(), rtol=1e-9, atol=1e-12)


def test_a_split_measure_is_what_it_says():
    model, theta, nodes = small("VAPT, tanh")
    split = split_distance(LocalGeometry(model, theta, nodes), 1, 0.3, starts=1)
    (b, w1), (b_true, true) = (
        (m.log_weights.numpy(), m.atoms["w1"].numpy()) for m in (split.model.measure(split.theta), model.measure(theta))
    )
    share = np.exp(b[[1, 2]]) / np.exp(b[[1, 2]]).sum()
    centre = share[0] * w1[1] + share[1] * w1[2]
    size = share[0] * ((w1[1] - centre) ** 2).sum() + share[1] * ((w1[2] - centre) ** 2).sum()
    assert math.sqrt(size) == pytest.approx(0.3, rel=1e-10) and share.min() >= 0.25
    points, weights = nodes
    difference = (split.model.mean(split.theta, points) - model.mean(theta, points)).numpy()
    distance = math.sqrt((weights.numpy() * (difference**2).sum(1)).sum())
    assert split.distance == pytest.approx(distance, rel=1e-9)
    assert split.ratio == pytest.approx(distance / (math.exp(b_true[1]) * 0.09), rel=1e-9)
    assert np.abs(w1[0] - true[0]).max() < 0.3  # the other atom stays near its own


def test_the_antisymmetric_matrix_that_linear_vapt_cannot_see():
    """With B^T dM = u v^T - v u^T the score is blind, the value linear: half masses at M +- dM change nothing."""
    model, theta, nodes = small("VAPT, linear, r = 2")
    b, blocks = model.unflatten(theta)
    w1, w2, key_map = blocks["w1"], blocks["w2"], model.key_map
    u, v = (key_map @ w2).mT
    offset = torch.linalg.lstsq(w2, torch.linalg.solve(key_map, torch.outer(u, v) - torch.outer(v, u))).solution
    more = model.with_atoms(3)
    parts = {
        "b": torch.stack([b[0] - math.log(2), b[1], b[0] - math.log(2)]),
        "w1": torch.stack([w1[0] + offset, w1[1], w1[0] - offset]),
        "w2": w2,
    }
    split = torch.cat([parts[name].flatten() for name in more.shapes])
    np.testing.assert_allclose(more.mean(split, nodes[0]), model.mean(theta, nodes[0]), atol=1e-12)
    form, _ = projected_form(LocalGeometry(model, theta, nodes), 0)
    a = (offset / offset.norm()).flatten()
    assert float(torch.einsum("k,l,klm->m", a, a, form).norm()) < 1e-10


def test_b_singular_hides_the_kernel_of_b():
    model, theta, nodes = small("VPT, B singular")
    direction = sigma_2(LocalGeometry(model, theta, nodes), 0).direction
    assert float((model.key_map @ direction.vector).norm()) < 1e-8


def test_many_heads_restore_what_one_singular_b_hides():
    """sigma_2 > 0 as soon as the rank of B is the dimension."""
    values = []
    for rank in (1, 2, 3, 4):
        model, theta, covariates = truth_parts(replace(EXPERTS["vpt"], key_rank=rank).build())
        values.append(sigma_2(LocalGeometry(model, theta, covariates.nodes(256)), 0))
    assert [value.vanishes for value in values] == [True, True, True, False]


def test_sigma_2_projects_on_every_column_of_a_deficient_jacobian():
    """Linear VAPT with r = 1: the forms are orthogonal to the Jacobian by numpy's own least squares."""
    model, theta, nodes = small("VAPT, linear, r = 1")
    points, weights = nodes
    assert LocalGeometry(model, theta, nodes).rank.rank == model.num_parameters - 1
    geometry = LocalGeometry(model, theta, nodes)
    root = np.sqrt(weights.numpy())[:, None, None]
    jacobian = (root * model.jacobian(theta, points).numpy()).reshape(-1, model.num_parameters)
    second = (root * geometry.second_derivatives[0].numpy()).reshape(len(jacobian), -1)
    left = second - jacobian @ np.linalg.lstsq(jacobian, second, rcond=1e-10)[0]
    form, _ = projected_form(geometry, 0)
    k, other = np.triu_indices(geometry.atoms.width)
    columns = form.numpy()[k, other]
    np.testing.assert_allclose(columns @ columns.T, left.T @ left, atol=1e-12)


def test_errors_name_the_atom_and_the_log_weights():
    model, theta, nodes = small("VPT, B injective")
    with pytest.raises(InputError, match=r"one of 0\.\.1: got 2"):
        sigma_2(LocalGeometry(model, theta, nodes), 2)
    with pytest.raises(InputError, match="gating_bias=True"):
        sigma_2(LocalGeometry(replace(model, gating_bias=False), theta[2:], nodes))
    with pytest.raises(InputError, match="size t > 0"):
        split_distance(LocalGeometry(model, theta, nodes), 0, 0.0)
    with pytest.raises(InputError, match="direction or at least one"):
        split_distance(LocalGeometry(model, theta, nodes), 0, 0.1, starts=0)
