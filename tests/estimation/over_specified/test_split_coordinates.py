"""Coordinates of atoms and of the nearest pair: formulas by hand, derivatives by autograd, invariants, the box."""

import math

import numpy as np
import pytest
import torch

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt, PrefixPrompt
from moe_prompt.estimation.over_specified.split_coordinates import LEAST, MOST, TRADE, Chart
from moe_prompt.models.atoms import AtomLayout
from moe_prompt.models.regression import FrozenExperts, RegressionModel

ATOMS, DIM, PROBLEMS = 3, 5, 7
EXPERTS = {
    "VPT": lambda: ConstantPrompt(ATOMS, DIM),
    "prefix": lambda: PrefixPrompt(ATOMS, DIM),
    "VAPT": lambda: FlatAdaptivePrompt(ATOMS, DIM, 2),
}


def model_of(name: str = "VAPT", **options) -> RegressionModel:
    rng = np.random.default_rng(3)
    maps = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (2, DIM)))
    return RegressionModel(FrozenExperts.random(2, DIM, 2, rng), EXPERTS[name](), *maps, **options)


def chart_of(model: RegressionModel, paired: bool | torch.Tensor = True, box: float = 9.0) -> Chart:
    theta = torch.from_numpy(np.random.default_rng(0).standard_normal((PROBLEMS, model.num_parameters)))
    theta = theta.clamp(-box, box)
    every = torch.full((PROBLEMS,), paired) if isinstance(paired, bool) else paired
    return Chart(AtomLayout.of(model), theta, every)


def steps(model: RegressionModel, size: float = 0.3, seed: int = 1) -> torch.Tensor:
    return size * torch.from_numpy(np.random.default_rng(seed).standard_normal((PROBLEMS, model.num_parameters)))


def atoms_of(model: RegressionModel, theta: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masses (L,), own parameters (L, q) and shared ones of one parameter vector."""
    measure = model.measure(theta)
    own = np.concatenate([block.reshape(model.num_atoms, -1).numpy() for block in measure.atoms.values()], 1)
    shared = [block.reshape(-1).numpy() for block in measure.shared.values()]
    return np.exp(measure.log_weights.numpy()), own, np.concatenate([np.zeros(0), *shared])


def nearest(own: np.ndarray) -> tuple[int, int]:
    pairs = [(i, j) for i in range(len(own)) for j in range(i + 1, len(own))]
    return min(pairs, key=lambda pair: np.linalg.norm(own[pair[0]] - own[pair[1]]))


def by_hand(model: RegressionModel, theta: torch.Tensor, step: torch.Tensor, paired: bool) -> torch.Tensor:
    """Where a step leads, atom by atom: masses m (1 + s), places + v / (1 + s); the pair by tau, l, c and e."""
    mass, own, shared = atoms_of(model, theta)
    names = [name for name in model.shapes if name != "b"]
    block = lambda name: step[model.slices[name]].numpy()  # noqa: E731
    s = block("b")
    v = np.concatenate([block(n).reshape(model.num_atoms, -1) for n in names if not model.expert.is_shared(n)], 1)
    new_mass, new_own = mass * (1 + s), own + v / (1 + s)[:, None]
    if paired:
        i, j = nearest(own)
        share = mass[i] / (mass[i] + mass[j])
        centre, e = share * own[i] + (1 - share) * own[j], (own[i] - own[j]) * math.sqrt(share * (1 - share))
        total, l = (mass[i] + mass[j]) * (1 + s[i]), math.log(mass[i] / mass[j]) + s[j]  # noqa: E741
        centre, e = centre + v[i] / (1 + s[i]), e + v[j]
        new_mass[i], new_mass[j] = total / (1 + math.exp(-l)), total / (1 + math.exp(l))
        new_own[i], new_own[j] = centre + math.exp(-l / 2) * e, centre - math.exp(l / 2) * e
    moved = shared + np.concatenate([np.zeros(0), *(block(n) for n in names if model.expert.is_shared(n))])
    out, first = torch.empty_like(theta), 0
    out[model.slices["b"]] = torch.from_numpy(np.log(new_mass))
    for name in names:
        if not model.expert.is_shared(name):
            width = math.prod(model.shapes[name][1:])
            out[model.slices[name]] = torch.from_numpy(new_own[:, first : first + width].ravel())
            first += width
    for name in names:
        if model.expert.is_shared(name):
            out[model.slices[name]] = torch.from_numpy(moved)
    return out


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("name", EXPERTS)
def test_a_step_leads_where_the_formulas_say(name, paired):
    model = model_of(name)
    chart, step = chart_of(model, paired), steps(model)
    found = chart.moved(step)
    for k in range(PROBLEMS):
        expected = by_hand(model, chart.theta[k], step[k], paired)
        assert torch.allclose(found[k], expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(chart.moved(torch.zeros_like(step)), chart.theta, rtol=1e-13, atol=1e-13)
    assert bool((found - chart.theta - step).abs().amax(1).gt(1e-2).all())  # these are other coordinates


def test_only_problems_that_may_use_the_coordinates_of_a_pair():
    model = model_of()
    paired = torch.tensor([True, False, False, True, False, True, False])
    step = steps(model)
    mixed = chart_of(model, paired)
    whole, none = chart_of(model, True), chart_of(model, False)
    some = torch.where(paired[:, None], whole.moved(step), none.moved(step))
    assert torch.allclose(mixed.moved(step), some, rtol=0, atol=1e-14)
    gradient = steps(model, seed=5)
    assert torch.allclose(
        mixed.pull(gradient), torch.where(paired[:, None], whole.pull(gradient), gradient), rtol=0, atol=1e-13
    )
    assert not torch.allclose(whole.pull(gradient), gradient)


def test_an_atom_without_mass_is_no_half_of_a_pair():
    model = model_of()
    theta = torch.from_numpy(np.random.default_rng(0).standard_normal((2, model.num_parameters)))
    i, j = nearest(atoms_of(model, theta[0])[1])
    theta[0, i], theta[0, j] = 3000.0, -3000.0
    chart = Chart(AtomLayout.of(model), theta, torch.tensor([True, True]))
    assert chart.rows.tolist() == [1]
    assert bool(chart.moved(0.1 * theta / theta.abs()).isfinite().all())


@pytest.mark.parametrize("options", [{"gating_bias": False}, {"num_atoms": 1}], ids=["b = 0", "one atom"])
def test_there_is_no_pair_without_masses_or_a_second_atom(options):
    model = model_of(**options)
    chart, step = chart_of(model), steps(model)
    assert not len(chart.rows) and chart.pull(step).equal(step)
    if not model.gating_bias:
        assert chart.moved(step).equal(chart.theta + step)
        matrix = torch.eye(model.num_parameters, dtype=torch.float64).expand(PROBLEMS, -1, -1)
        assert chart.hessian(matrix, step).equal(matrix)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("name", EXPERTS)
def test_derivatives_are_those_of_the_point(name, paired):
    """Of F(moved(s)) at s = 0, with F of known gradient and Hessian at theta, by torch.autograd."""
    model, p = model_of(name), model_of(name).num_parameters
    chart = chart_of(model, paired)
    rng = np.random.default_rng(2)
    gradient = torch.from_numpy(rng.standard_normal((PROBLEMS, p)))
    matrix = torch.from_numpy(rng.standard_normal((PROBLEMS, p, p)))
    matrix = matrix + matrix.mT

    def value(step: torch.Tensor) -> torch.Tensor:
        change = chart.moved(step) - chart.theta
        return (gradient * change).sum() + 0.5 * torch.einsum("ka,kab,kb->", change, matrix, change)

    zero = torch.zeros(PROBLEMS, p, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(value, zero)
    bend = torch.autograd.functional.hessian(value, zero)
    k = torch.arange(PROBLEMS)
    assert torch.allclose(chart.pull(gradient), slope, rtol=1e-12, atol=1e-12)
    assert torch.allclose(chart.hessian(matrix, gradient), bend[k, :, k], rtol=1e-11, atol=1e-11)
    jacobian = torch.autograd.functional.jacobian(chart.moved, zero)[k, :, k]
    assert torch.allclose(chart.pull_twice(matrix), jacobian.mT @ matrix @ jacobian, rtol=1e-12, atol=1e-12)


def moments(model: RegressionModel, theta: torch.Tensor, pair: tuple[int, int]) -> list[np.ndarray]:
    """Total mass, centre and second moment of a pair."""
    mass, own, _ = atoms_of(model, theta)
    m, places = mass[list(pair)], own[list(pair)]
    centre = m @ places / m.sum()
    return [m.sum(), centre, (places - centre).T @ (m[:, None] * (places - centre)) / m.sum()]


@pytest.mark.parametrize("name", EXPERTS)
def test_along_l_a_pair_trades_mass_at_constant_total_centre_and_second_moment(name):
    model = model_of(name)
    chart = chart_of(model)
    for l in (-2.7, -0.4, 1.9):  # noqa: E741
        step = torch.zeros_like(chart.theta)
        pairs = [nearest(atoms_of(model, theta)[1]) for theta in chart.theta]
        for k, (_, j) in enumerate(pairs):
            step[k, j] = l
        for before, after, pair in zip(chart.theta, chart.moved(step), pairs, strict=True):
            for old, new in zip(moments(model, before, pair), moments(model, after, pair), strict=True):
                assert np.allclose(old, new, rtol=1e-12, atol=1e-13)
            (m_old, own_old, shared), (m_new, own_new, same) = atoms_of(model, before), atoms_of(model, after)
            assert math.isclose(
                math.log(m_new[pair[0]] / m_new[pair[1]]) - math.log(m_old[pair[0]] / m_old[pair[1]]), l
            )
            rest = [a for a in range(ATOMS) if a not in pair]
            assert np.array_equal(m_old[rest], m_new[rest]) and np.array_equal(own_old[rest], own_new[rest])
            assert np.array_equal(shared, same) and not np.allclose(own_old, own_new)


def test_masses_and_first_moments_are_linear_in_a_step():
    """What makes an atom's own coordinates straight: f is linear in them to first order."""
    model = model_of("VPT")
    chart, step = chart_of(model, False), steps(model, 0.2)
    half, whole = chart.moved(0.5 * step), chart.moved(step)
    for k in range(PROBLEMS):
        (m0, t0, _), (m1, t1, _), (m2, t2, _) = (atoms_of(model, t[k]) for t in (chart.theta, half, whole))
        assert np.allclose(m0 + m2, 2 * m1, rtol=1e-13)
        assert np.allclose(m0[:, None] * t0 + m2[:, None] * t2, 2 * m1[:, None] * t1, rtol=1e-12, atol=1e-13)


# --------------------------------------------------------------------------------------------------- the box


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("size", [0.01, 0.5, 3.0])
def test_within_goes_as_far_as_the_box_and_no_further(size, paired):
    model, box = model_of(), 2.0
    chart = chart_of(model, paired, 0.9 * box)
    asked = steps(model, size)
    step, new = chart.within(asked, box)
    assert bool((new.abs() <= box).all())
    share = (step / asked).mean(1)
    assert torch.allclose(step, share[:, None] * asked, rtol=1e-12, atol=0) and bool((share > 0).all())
    assert torch.allclose(chart.moved(step), new, rtol=0, atol=1e-9)  # up to the rounding onto the boundary
    touches = (new.abs() == box).any(1)
    grown = step.where(chart.grows, torch.zeros((), dtype=torch.float64))
    limited = (grown.amin(1) <= LEAST * (1 - 1e-12)) | (grown.amax(1) >= MOST * (1 - 1e-12))
    if paired:
        limited |= step[chart.rows, chart.bj].abs() >= TRADE * (1 - 1e-12)
    assert bool((touches | limited | (share == 1)).all())
    further = chart.moved(asked * (share + 1e-6)[:, None]).abs() > box
    assert bool((further.any(1) | limited | (share == 1)).all())
    assert bool(touches.any()) == (size > 0.1) and bool((share == 1).all()) == (size < 0.1)


def test_a_step_changes_masses_by_no_more_than_its_share():
    model = model_of()
    chart, box = chart_of(model, True), 1e9
    for index, value, limit in ((0, -5.0, LEAST), (0, 80.0, MOST), (1, 30.0, TRADE)):
        step = torch.zeros_like(chart.theta)
        where = chart.bi if index == 0 else chart.bj
        step[chart.rows, where] = value
        taken = chart.within(step, box)[0]
        assert np.allclose(taken[chart.rows, where], limit, rtol=1e-12, atol=0)


def test_what_touches_is_on_the_boundary():
    """To the last bit, so that it is seen there."""
    model, box = model_of("VPT"), 2.0
    chart = chart_of(model, False, 0.9 * box)
    step = torch.zeros_like(chart.theta)
    step[:, -1], step[:, -2] = 9.0, -0.01
    new = chart.within(step, box)[1]
    assert bool((new[:, -1] == box).all()) and bool((new[:, :-1].abs() < box).all())
