"""Fits with one atom more than the truth has: batched Newton least squares against SciPy's least squares.

Two prompts are fitted by three, VPT with 12 parameters and VAPT with one tanh unit a prompt and 15: 3 covariates, 2
frozen experts, 2 outputs, gating biases. Both sides have the same data, Jacobian, one start a replicate and a single
thread, and pay CPU seconds. `polish` starts from the best of 16 rough fits, `whole` half a unit a parameter from the
truth with an atom in two halves; ours is the whole estimator there, smaller samples and descent included.

The peer is that of the benchmark `engine`, in our box if it is `trf`; `lm` has none, so replicates whose minimum is on
the box are left out, and counted in `outside`. It is stopped at its first iterate within FACTOR times our tolerance in
standard errors, sqrt(g' H^-1 g / (p s^2)): a run before the timed ones finds which iterate that is, and the peer does
not pay for knowing. A run that ends before, by a tolerance of 1e-15 or after MAX_EVALUATIONS, is counted in `missed`
and pays what it took.

`ratio` is the better of the two methods' seconds over ours, the median over rounds. The two sides may end at other
minima: `lower` and `higher` count runs that end more than 1e-3 s^2 below or above ours, in units of the log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from experiments.benchmarks import engine
from experiments.benchmarks.machine import cpu_seconds, limit_loaded_threads
from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt
from moe_prompt.estimation.base import FitResult, best_of
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified.hessian import second_order
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Dataset, Population

DIM, FROZEN, PROMPTS, OUTPUTS = 3, 2, 2, 2
NOISE, SPREAD, STARTS, APART = 0.02, 2.0, 16, 0.5
TOLERANCE, MAX_EVALUATIONS = 1e-6, 500
FACTOR = 10.0  # in the peer's favour
METHODS = ("lm", "trf")
NEWTON = NewtonLeastSquares(tolerance=TOLERANCE)
BOX = NEWTON.first.box


@dataclass(frozen=True)
class Cell:
    """A truth and a sample size: how many replicates are drawn, and how often everything is timed."""

    truth: str
    n: int
    replicates: int
    rounds: int


CELLS = tuple(Cell(truth, *size) for truth in ("vpt", "vapt") for size in ((1_000, 100, 3), (10_000, 4, 3)))
QUICK = (Cell("vpt", 1_000, 6, 1), Cell("vapt", 10_000, 2, 1))


def population(truth: str) -> Population:
    """Parameters uniform on [-2, 2], gating biases on a third of it, covariates of unit variance."""
    rng = np.random.default_rng(0)
    frozen = FrozenExperts.random(FROZEN, DIM, OUTPUTS, rng)
    key_map, value_map = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
    expert = ConstantPrompt(PROMPTS, DIM) if truth == "vpt" else FlatAdaptivePrompt(PROMPTS, DIM, 1, "tanh")
    model = RegressionModel(frozen, expert, key_map, value_map)
    theta = torch.from_numpy(rng.uniform(-SPREAD, SPREAD, model.num_parameters))
    theta[model.slices["b"]] /= 3
    return Population(model, theta, Uniform(-math.sqrt(3), math.sqrt(3), DIM), NOISE)


class Task(NamedTuple):
    """One start (replicates, 1, p) for each replicate, and what fits them."""

    model: RegressionModel
    data: Dataset
    starts: Tensor
    fit: Callable[[RegressionModel, Dataset, Tensor], FitResult]

    def ours(self) -> FitResult:
        return self.fit(self.model, self.data, self.starts)

    def inside(self, fit: FitResult) -> Task:
        """Without the replicates whose minimum is on the box."""
        kept = ~fit.at_boundary & fit.converged
        return self._replace(data=Dataset(self.data.x[kept], self.data.y[kept]), starts=self.starts[kept])


def tasks(truth: Population, cell: Cell) -> dict[str, Task]:
    model = truth.model.with_atoms(PROMPTS + 1)
    data = truth.sample(cell.n, [np.random.default_rng((1, k)) for k in range(cell.replicates)])
    anywhere = Random(STARTS).starts(model, None, [np.random.default_rng((2, k)) for k in range(cell.replicates)])
    rough = NEWTON.first.minimise(Problem.of(model, data, STARTS), anywhere.flatten(0, 1), 0.3, 40, 1e-2)
    best = best_of(rough, STARTS, 1).theta[:, None]
    return {"polish": Task(model, data, best, polish), "whole": Task(model, data, split(truth, cell), NEWTON.fit)}


def split(truth: Population, cell: Cell) -> Tensor:
    """The truth with its first atom in two halves, and a random step from there."""
    measure, more = truth.model.measure(truth.theta[None]), truth.model.with_atoms(PROMPTS + 1)
    theta = more.flatten(measure.take_atoms(torch.tensor([[0, *range(PROMPTS)]])))
    theta[:, :2] -= math.log(2)  # b comes first
    rngs = [np.random.default_rng((3, k)) for k in range(cell.replicates)]
    return theta + APART * torch.from_numpy(np.stack([rng.standard_normal(theta.shape) for rng in rngs]))


def polish(model: RegressionModel, data: Dataset, starts: Tensor) -> FitResult:
    return NEWTON.polish(Problem.of(model, data, 1), starts[:, 0], TOLERANCE, NEWTON.max_steps)


class Peer(engine.Peer):
    """scipy.optimize.least_squares on one replicate, in our box where the method has one."""

    def run(self, method: str, start: Tensor, iterates: int) -> list[np.ndarray]:
        """So many iterates, or fewer if it ends by itself."""
        self.seen: list[np.ndarray] = []
        self.last, self.evaluations, self.target = iterates, 0, -1.0
        options: dict[str, Any] = {"bounds": (-BOX, BOX)} if method == "trf" else {}
        tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
        with suppress(engine.Reached):
            least_squares(
                self.fun, start.numpy(), self.jac, method=method, max_nfev=MAX_EVALUATIONS, **tolerances, **options
            )
        return self.seen

    def fun(self, theta: np.ndarray) -> np.ndarray:
        self.evaluations += 1
        return super().fun(theta)

    def jac(self, theta: np.ndarray) -> np.ndarray:
        self.seen.append(theta.copy())
        if len(self.seen) >= self.last:
            raise engine.Reached
        return self.matrix


class Run(NamedTuple):
    """Where the peer ended: after how many iterates, whether near enough, and the objective and gradient there."""

    iterates: int
    evaluations: int
    reached: bool
    objective: float
    gradient: float


def judge(model: RegressionModel, data: Dataset, k: int, peer: Peer) -> Run:
    """The first iterate near enough to a minimum, or the best of all."""
    problem = Problem.of(model, Dataset(data.x[[k]], data.y[[k]]), len(peer.seen))
    theta, every = torch.from_numpy(np.stack(peer.seen)), torch.arange(len(peer.seen))
    gram = problem.gram(theta, every)
    near = offsets(problem, theta, gram) <= FACTOR * TOLERANCE
    at = int(near.double().argmax()) if bool(near.any()) else int(gram[:, -1, -1].argmin())
    stop = at + 1 if bool(near.any()) else len(theta)
    return Run(stop, peer.evaluations, bool(near.any()), float(gram[at, -1, -1]) / 2, float(gram[at, :-1, -1].norm()))


def offsets(problem: Problem, theta: Tensor, gram: Tensor) -> Tensor:
    """Distances to a minimum in standard errors, by the Hessian; its eigenvalues count as positive.

    Infinite where no Hessian is needed to know that it is not near: no eigenvalue exceeds the trace.
    """
    g, p = gram[:, :-1, -1], theta.shape[1]
    unit = p * gram[:, -1, -1] / (problem.observations - p)
    trace = gram.diagonal(dim1=1, dim2=2)[:, :-1].sum(1)
    near = (g.square().sum(1) / (2 * trace * unit)).sqrt() <= FACTOR * TOLERANCE
    out, k = torch.full_like(unit, torch.inf), near.nonzero()[:, 0]
    hessian = gram[k, :-1, :-1] + second_order(problem, theta[k], k)
    scale = gram[k].diagonal(dim1=1, dim2=2)[:, :-1].clamp(min=1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(hessian * scale[:, :, None] * scale[:, None])
    slope = (vectors.mT @ (g[k] * scale)[..., None])[..., 0]
    size = values.abs().clamp(min=1e-12 * values.abs().amax(1, keepdim=True)) if len(k) else values
    out[k] = ((slope.square() / size).sum(1) / unit[k]).sqrt()
    return out


def scout(task: Task, method: str) -> list[Run]:
    """Where the peer is to stop, replicate by replicate."""
    found = []
    for k, start in enumerate(task.starts[:, 0]):
        peer = Peer(task.model, task.data, k)
        peer.run(method, start.clamp(-BOX, BOX), MAX_EVALUATIONS + 1)
        found.append(judge(task.model, task.data, k, peer))
    return found


def peers(task: Task, method: str, runs: list[Run]) -> None:
    """All replicates one after the other."""
    for k, (start, run) in enumerate(zip(task.starts[:, 0], runs, strict=True)):
        last = run.iterates if run.reached else MAX_EVALUATIONS + 1
        Peer(task.model, task.data, k).run(method, start.clamp(-BOX, BOX), last)


def compare(stage: str, whole: Task, cell: Cell) -> dict[str, Any]:
    """CPU seconds per fit, medians over rounds in which ours and the peers alternate."""
    task = whole.inside(whole.ours())
    fit, count = task.ours(), len(task.data)  # warm
    runs = {method: scout(task, method) for method in METHODS}
    ours: list[float] = []
    theirs: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(cell.rounds):
        ours.append(cpu_seconds(task.ours)[0] / count)
        for method in METHODS:
            theirs[method].append(cpu_seconds(partial(peers, task, method, runs[method]))[0] / count)
    best = [min(pair) for pair in zip(*theirs.values(), strict=True)]
    return {
        "truth": cell.truth,
        "n": cell.n,
        "stage": stage,
        "ratio": median(peer / our for peer, our in zip(best, ours, strict=True)),
        "ours_s": median(ours),
        "steps": float(fit.steps.double().mean()),
        "gradient": median(fit.gradient_norm.tolist()),
        **{method: {"s": median(theirs[method]), **told(runs[method], fit)} for method in METHODS},
        "fits": count * cell.rounds,
        "outside": cell.replicates - count,
    }


def told(runs: list[Run], fit: FitResult) -> dict[str, Any]:
    """What the peer reached."""
    gap = [(run.objective - best) / NOISE**2 for run, best in zip(runs, fit.objective.tolist(), strict=True)]
    return {
        "missed": sum(not run.reached for run in runs),
        "iterates": sum(run.iterates for run in runs) / len(runs),
        "gradient": median(run.gradient for run in runs),
        "lower": sum(value < -1e-3 for value in gap),
        "higher": sum(value > 1e-3 for value in gap),
    }


def run(quick: bool) -> Iterator[dict[str, Any]]:
    limit_loaded_threads()
    for cell in QUICK if quick else CELLS:
        for stage, task in tasks(population(cell.truth), cell).items():
            yield compare(stage, task, cell)
