"""[J r]'[J r] in chunks against one plain sum over samples, at every size where a chunk begins or ends."""

import numpy as np
import pytest
import torch

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt
from moe_prompt.estimation import normal_equations
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.models.regression import FrozenExperts, RegressionModel

ATOMS, REPLICATES, DIM, OUTPUTS, STARTS = 2, 3, 5, 7, 11
WIDTH = 256  # the least a chunk holds
EXPERTS = {
    "constant, 13 rows": lambda: ConstantPrompt(ATOMS, DIM),
    "flat, 43 rows": lambda: FlatAdaptivePrompt(ATOMS, DIM, 2),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(normal_equations, "CHUNK_BYTES", 1)


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def make(expert: str, n: int, weighted: bool) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """A problem, its covariates (replicates, n, D) and theta of every replicate and start."""
    rng = np.random.default_rng(n)
    frozen = FrozenExperts.random(13, DIM, OUTPUTS, rng)
    model = RegressionModel(frozen, EXPERTS[expert](), normal(rng, DIM, DIM), normal(rng, OUTPUTS, DIM))
    x, y = normal(rng, REPLICATES, n, DIM), normal(rng, REPLICATES, OUTPUTS, n)
    weights = torch.from_numpy(rng.uniform(0.5, 2, n)) if weighted else None
    theta = 0.5 * normal(rng, REPLICATES * STARTS, model.num_parameters)
    return Problem(model, model.prepare(x), y, weights, STARTS), x, theta


def direct(problem: Problem, x: torch.Tensor, theta: torch.Tensor, k: int) -> np.ndarray:
    """The Gram matrix of problem k: sum over samples and outputs of outer products of (gradient, residual)."""
    model, replicate = problem.model, k // STARTS
    jacobian = model.jacobian(theta, x[replicate]).numpy()
    residual = (model.mean(theta, x[replicate]) - problem.y[replicate].mT).numpy()
    rows = np.concatenate([jacobian, residual[..., None]], -1)
    w = np.ones(len(rows)) if problem.weights is None else problem.weights.numpy()
    return np.einsum("i,ioa,iob->ab", w, rows, rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("n", [1, 17, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH, 3 * WIDTH - 1])
def test_gram_is_the_sum_over_samples_of_outer_products(n, expert, weighted):
    problem, x, theta = make(expert, n, weighted)
    assert problem.width == WIDTH and problem.observations == OUTPUTS * n
    index = torch.from_numpy(np.random.default_rng(0).permutation(REPLICATES * STARTS)[:-2])
    expected = np.stack([direct(problem, x, theta[k], k) for k in index.tolist()])
    for _ in range(2):  # the second time from chunks already cut
        error = np.abs(problem.gram(theta[index], index).numpy() - expected)
        assert (error.max((1, 2)) <= 1e-12 * np.abs(expected).max((1, 2))).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_square_norm_is_that_of_each_problems_observations(weighted):
    problem, _, _ = make("constant, 13 rows", 17, weighted)
    w = torch.ones(17).double() if problem.weights is None else problem.weights
    expected = [
        sum(w[i] * problem.y[k // STARTS, :, i] @ problem.y[k // STARTS, :, i] for i in range(17)) for k in range(33)
    ]
    assert torch.allclose(problem.square_norm(), torch.stack(expected), rtol=1e-13, atol=0)


def test_a_default_chunk_holds_jacobian_and_residual_in_its_bytes(monkeypatch):
    monkeypatch.setattr(normal_equations, "CHUNK_BYTES", 1 << 20)
    problem, _, _ = make("flat, 43 rows", 17, False)
    row_bytes = 8 * OUTPUTS * (problem.model.num_parameters + 1)
    assert problem.width * row_bytes <= 1 << 20 < (problem.width + 1) * row_bytes
