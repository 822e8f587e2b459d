"""The trust region on planted quadratics in a box: SciPy's minimum where they are convex, a minimum where they bend."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified import trust_region
from moe_prompt.estimation.over_specified.trust_region import Status, TrustRegion
from moe_prompt.models.atoms import AtomLayout

PROBLEMS, SIZE, ROWS, SHIFT = 300, 6, 9, 1e3


class Quadratic(Problem):
    """1/2 |A theta - y|^2 + 1/2 theta' S theta + SHIFT for a batch of A, y and S, as the trust region asks for it."""

    model, observations = None, ROWS

    def __init__(self, a: np.ndarray, y: np.ndarray, s: np.ndarray) -> None:
        self.__dict__.update(a=torch.from_numpy(a), targets=torch.from_numpy(y), s=torch.from_numpy(s))

    def gram(self, theta: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        a, bent = self.a[index], (self.s[index] @ theta[..., None])[..., 0]
        residual = (a @ theta[..., None])[..., 0] - self.targets[index]
        both = torch.cat([a, residual[..., None]], 2)
        out = both.mT @ both
        out[:, :-1, -1] += bent
        out[:, -1, :-1] += bent
        out[:, -1, -1] += (theta * bent).sum(1) + 2 * SHIFT
        return out

    def square_norm(self) -> torch.Tensor:
        return self.targets.square().sum(1)


def planted(bend: float, seed: int = 0) -> Quadratic:
    """Columns alike, so that Newton's step and descent differ; S indefinite, `bend` the size of its eigenvalues."""
    rng = np.random.default_rng(seed)
    a = 0.2 * rng.standard_normal((PROBLEMS, ROWS, SIZE)) + 0.8 * rng.standard_normal((PROBLEMS, ROWS, 1))
    y = (a @ rng.uniform(-3, 3, (PROBLEMS, SIZE, 1)))[..., 0] + rng.standard_normal((PROBLEMS, ROWS))
    s = bend * rng.standard_normal((PROBLEMS, SIZE, SIZE))
    return Quadratic(a, y, s + s.transpose(0, 2, 1))


@pytest.fixture
def solve(monkeypatch):
    """Where the trust region ends, from random points of the box [-1, 1]."""
    none = torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64)
    straight = AtomLayout(SimpleNamespace(num_parameters=SIZE), torch.arange(0), *none)
    monkeypatch.setattr(AtomLayout, "of", lambda model: straight)
    monkeypatch.setattr(trust_region, "second_order", lambda problem, theta, k: problem.s[k])

    def run(problem: Quadratic, tolerance: float = 1e-9) -> TrustRegion:
        starts = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (PROBLEMS, SIZE)))
        state = TrustRegion(problem, starts, 1.0, tolerance)
        for _ in range(100):
            state.judge()
            if bool(state.done.all()):
                break
            state.advance()
        return state

    return run


def test_where_convex_the_minimum_in_the_box_is_scipys(solve):
    problem = planted(0.0)
    state = solve(problem)
    assert bool(state.done.all()) and not bool(state.at(Status.STUCK).any())
    for a, y, found in zip(problem.a, problem.targets, state.objective - SHIFT, strict=True):
        best = min(lsq_linear(a.numpy(), y.numpy(), (-1, 1), method=m).cost for m in ("bvls", "trf"))
        assert float(found) <= best * (1 + 1e-9) + 1e-9


def test_where_bent_the_end_is_a_minimum_in_the_box(solve):
    problem = planted(0.3)
    state = solve(problem)
    assert bool(state.done.all()) and not bool(state.at(Status.STUCK).any())
    gradient = problem.gram(state.theta, torch.arange(PROBLEMS))[:, :-1, -1]
    inside = state.theta.abs() < 1
    assert (gradient * inside).abs().max() < 1e-6  # stationary inside
    assert bool(((gradient * state.theta.sign() <= 0) | inside).all())  # descent points out
    hessian = problem.a.mT @ problem.a + problem.s
    for h, free in zip(hessian, inside, strict=True):
        assert not free.any() or float(torch.linalg.eigvalsh(h[free][:, free])[0]) >= -1e-9


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_what_is_held_is_let_go_where_newton_takes_it_inwards(solve, monkeypatch, bend):
    """Newton's step may lead out of the box where descent leads in. Let go at once, it is held again, for ever."""
    problem = planted(bend)
    assert bool(solve(problem, 0.01).done.all())

    def at_once(state: TrustRegion, k: torch.Tensor) -> torch.Tensor:
        let_go = (state.held & state.free())[k]
        state.held[k] &= ~let_go
        state.status[k[let_go.any(1)]] = Status.MOVED
        return let_go.any(1)

    monkeypatch.setattr(TrustRegion, "_release", at_once)
    assert not bool(solve(problem, 0.01).done.all())


def test_what_is_held_is_let_go(solve, monkeypatch):
    problem = planted(0.0)
    best = solve(problem).objective
    monkeypatch.setattr(TrustRegion, "_release", lambda state, k: torch.zeros_like(state.done[k]))
    held = solve(problem).objective
    assert bool((held >= best - 1e-9).all()) and bool((held > best + 1e-3).any())
