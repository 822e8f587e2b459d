"""Least squares of a batch of replicates against SciPy's, and against what the machine's matrix products allow.

The model is VAPT with 38 parameters: 4 covariates, 3 frozen experts, 2 prompts of 3 tanh units, 2 outputs, gating
biases; data as in the study vpt-vs-vapt. Everyone has the same data, start, Jacobian and single thread, and pays CPU
seconds.

The peer is written as a careful user would. Residual and Jacobian come from one pass in cache-sized pieces into one
buffer that is allocated once and handed over as a view. It is stopped at the first iterate whose gradient is no longer
than FACTOR times ours, so no tolerance is too strict for it.

The machine's line divides the operations of the passes that our fit made by the rate of a 1024 x 1024 product. Matrix
products of the evaluation are counted by torch's own counter. J'J is counted as a product of two matrices in `bound_s`,
and in `bound_triangle_s` as the one triangle of it that is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.machine import cpu_seconds, limit_loaded_threads, matrix_rate
from moe_prompt.attention.prompts import FlatAdaptivePrompt
from moe_prompt.estimation.base import FitResult
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import NearTruth
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Dataset, Population

DIM, FROZEN, PROMPTS, RANK, OUTPUTS = 4, 3, 2, 3, 2
NOISE, SPREAD = 0.02, 2.0
FACTOR = 10.0  # in the peer's favour
PIECE = 8192  # samples: the fastest for the peer of 512 ... 100000
METHODS = ("lm", "trf")


@dataclass(frozen=True)
class Cell:
    """A sample size: how many replicates are fitted, and how often everything is measured."""

    n: int
    replicates: int
    rounds: int


CELLS = (Cell(1_000, 24, 5), Cell(10_000, 8, 3), Cell(100_000, 2, 3))
QUICK = (Cell(1_000, 6, 1), Cell(10_000, 2, 1), Cell(100_000, 1, 1))


def population() -> Population:
    """The truth: parameters uniform on [-2, 2], gating biases on a third of it, covariates of unit variance."""
    rng = np.random.default_rng(0)
    frozen = FrozenExperts.random(FROZEN, DIM, OUTPUTS, rng)
    key_map, value_map = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
    model = RegressionModel(frozen, FlatAdaptivePrompt(PROMPTS, DIM, RANK, "tanh"), key_map, value_map)
    theta = torch.from_numpy(rng.uniform(-SPREAD, SPREAD, model.num_parameters))
    theta[model.slices["b"]] /= 3
    return Population(model, theta, Uniform(-(3**0.5), 3**0.5, DIM), NOISE)


def draw(truth: Population, cell: Cell) -> tuple[Dataset, Tensor]:
    """Data of all replicates and one start (replicates, 1, p) for each."""
    data = truth.sample(cell.n, [np.random.default_rng((1, k)) for k in range(cell.replicates)])
    rngs = [np.random.default_rng((2, k)) for k in range(cell.replicates)]
    return data, NearTruth(count=1).starts(truth.model, truth.theta, rngs)


class Reached(Exception):
    """The peer's gradient is as short as asked for."""


class Peer:
    """scipy.optimize.least_squares on one replicate."""

    def __init__(self, model: RegressionModel, data: Dataset, k: int) -> None:
        self.model, self.y = model, data.y[k].mT.contiguous()
        self.prepared = model.prepare(data.x[k : k + 1])
        self.pieces = [slice(i, i + PIECE) for i in range(0, data.n, PIECE)]
        self.parts = [self.prepared.part(slice(None), piece) for piece in self.pieces]
        self.jacobian = torch.empty(1, model.num_parameters, *self.y.shape, dtype=torch.float64)
        self.views = [model.blocks(self.jacobian[..., piece]) for piece in self.pieces]
        self.matrix = self.jacobian[0].flatten(1).numpy().T  # (observations, p), no copy
        self.residual = torch.empty_like(self.y)
        self.gradient = float("inf")

    def fun(self, theta: np.ndarray) -> np.ndarray:
        """The residual; the Jacobian of the same pass waits for `jac`, which SciPy only calls where it last was."""
        mixture = self.model.at(torch.from_numpy(theta)[None])
        for piece, part, view in zip(self.pieces, self.parts, self.views, strict=True):
            torch.sub(mixture(part, view)[0], self.y[:, piece], out=self.residual[:, piece])
        return self.residual.numpy().ravel().copy()  # SciPy keeps the last accepted one

    def jac(self, theta: np.ndarray) -> np.ndarray:
        self.gradient = float(np.linalg.norm(self.matrix.T @ self.residual.numpy().ravel()))
        if self.gradient <= self.target:
            raise Reached
        return self.matrix

    def fit(self, method: str, start: Tensor, target: float) -> float:
        """Fit until the gradient is at most `target`; the gradient reached."""
        self.target = target
        with suppress(Reached):
            least_squares(self.fun, start.numpy(), self.jac, method=method, ftol=1e-15, xtol=1e-15, gtol=1e-15)
        return self.gradient


def compare(truth: Population, cell: Cell) -> Iterator[dict[str, Any]]:
    """One line per method: CPU seconds per fit, medians over rounds in which ours and the peers alternate."""
    data, starts = draw(truth, cell)
    ours: list[float] = []
    theirs: dict[str, list[float]] = {method: [] for method in METHODS}
    reached: dict[str, list[float]] = {}
    fit = LeastSquares().fit(truth.model, data, starts)  # warm
    for _ in range(cell.rounds):
        ours.append(cpu_seconds(lambda: LeastSquares().fit(truth.model, data, starts))[0] / cell.replicates)
        for method in METHODS:
            seconds, reached[method] = cpu_seconds(partial(peer_fits, truth.model, data, starts, fit, method))
            theirs[method].append(seconds / cell.replicates)
    for method in METHODS:
        yield {
            "n": cell.n,
            "peer": f"scipy-{method}",
            "ratio": median(peer / our for peer, our in zip(theirs[method], ours, strict=True)),
            "ours_s": median(ours),
            "peer_s": median(theirs[method]),
            "gradient_ours": float(fit.gradient_norm.median()),
            "gradient_peer": median(reached[method]),
            "fits": cell.replicates * cell.rounds,
        }


def peer_fits(model: RegressionModel, data: Dataset, starts: Tensor, fit: FitResult, method: str) -> list[float]:
    """All replicates one after the other; the gradients reached."""
    targets = (FACTOR * fit.gradient_norm).tolist()
    return [Peer(model, data, k).fit(method, starts[k, 0], targets[k]) for k in range(len(data))]


# -------------------------------------------------------------------------------------------- the machine's bound


@dataclass(frozen=True, eq=False)
class Operations:
    """Floating-point operations of a fit on one data set: counted where torch does products, else by hand."""

    model: RegressionModel
    data: Dataset
    starts: Tensor

    @cached_property
    def one_pass(self) -> tuple[float, float, float]:
        """Per sample and pass: products of the evaluation, J'J as a general product, and one triangle of J'J."""
        prepared = self.model.prepare(self.data.x)
        jacobian = torch.empty(len(self.data), self.model.num_parameters, OUTPUTS, self.data.n, dtype=torch.float64)
        evaluation = products(lambda: self.model.at(self.starts[:, 0])(prepared, self.model.blocks(jacobian)))
        samples, rows = self.data.n * len(self.data), self.model.num_parameters + 1
        return evaluation / samples, 2.0 * OUTPUTS * rows**2, OUTPUTS * rows * (rows + 1)

    @cached_property
    def preparation(self) -> float:
        return products(lambda: self.model.prepare(self.data.x))

    @property
    def elementwise(self) -> float:
        """Per sample and pass, one for each addition, multiplication or function value, in the order of the code."""
        unit, out = PROMPTS * RANK, PROMPTS * OUTPUTS
        forward = unit + 2 * unit + 4 * (PROMPTS + 1) + 2 * out + 2 * OUTPUTS  # tanh, score, softmax, f
        back = 2 * out + 3 * unit * OUTPUTS + 2 * unit + unit * OUTPUTS  # s, d f / d unit, slope
        back += unit * OUTPUTS * DIM  # W_1
        back += (2 * PROMPTS - 1) * RANK * (OUTPUTS + 1) + 3 * DIM * RANK * OUTPUTS  # W_2
        return forward + back + OUTPUTS

    def samples_passed(self) -> float:
        """Samples times passes of a whole fit, smaller rungs included, from the products of its evaluations.

        J'J goes through NumPy and is not seen by torch's counter; one evaluation goes with each.
        """
        total = products(lambda: LeastSquares().fit(self.model, self.data, self.starts)) - self.preparation
        return total / self.one_pass[0]


def products(work: Callable[[], object]) -> float:
    """Operations in matrix products, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def bound(truth: Population, cell: Cell) -> dict[str, Any]:
    """How far our fit is from the time its operations take at the rate of a large matrix product."""
    data, starts = draw(truth, cell)
    seconds, rates = [], []
    for _ in range(cell.rounds):
        rates.append(matrix_rate())
        seconds.append(cpu_seconds(lambda: LeastSquares().fit(truth.model, data, starts))[0] / len(data))
    count, rate, ours = Operations(truth.model, data, starts), max(rates), median(seconds)
    evaluation, gram, triangle = count.one_pass
    samples, once = count.samples_passed() / len(data), count.preparation / len(data)
    bounds = [(once + samples * (evaluation + count.elementwise + part)) / rate for part in (gram, triangle)]
    return {
        "n": cell.n,
        "peer": "machine",
        "bound_s": bounds[0],
        "ours_s": ours,
        "ratio_to_bound": ours / bounds[0],
        "bound_triangle_s": bounds[1],
        "ratio_to_bound_triangle": ours / bounds[1],
        "gflops": rate / 1e9,
        "passes": samples / cell.n,
    }


def run(quick: bool) -> Iterator[dict[str, Any]]:
    limit_loaded_threads()
    truth = population()
    for cell in QUICK if quick else CELLS:
        yield from compare(truth, cell)
    yield bound(truth, (QUICK if quick else CELLS)[-1])
