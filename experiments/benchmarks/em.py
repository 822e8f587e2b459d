"""Maximum likelihood of softmax-gated Gaussian mixtures of experts against R's flexmix.

Both start from the same parameters: ours from the vector, flexmix from the responsibilities there, which it is spared
computing. Both run on one thread and pay CPU seconds, flexmix's taken inside R around the fits, without start-up and
reading; rounds of the two alternate. Ours always runs to its own convergence.

`ratio` is against flexmix stopped at its first iteration within GAP of the maximum, relative to the log-likelihood,
and freed of all that is not EM; the rare fit that never comes so close, its gate being too inexact, stops where it is
best (`missed` counts them). `ratio_converged` is against flexmix as its users call it, until an iteration changes the
likelihood by less than 1e-12.

`gap` is the largest relative difference between our maximum and flexmix's with the standard deviations of maximum
likelihood, over the fits not missed; `gap_stock` the same over all fits for flexmix as it is, which divides by
n - d - 1 instead. The first truth is that of arXiv 2305.03288.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.flexmix import Flexmix, Timing, versions
from experiments.benchmarks.machine import cpu_seconds, limit_loaded_threads
from moe_prompt.estimation.base import FitResult
from moe_prompt.likelihood.expectation_maximization import ExpectationMaximization
from moe_prompt.likelihood.models import GaussianMoE
from moe_prompt.likelihood.population import MixturePopulation
from moe_prompt.models.covariates import EvenGrid, Uniform
from moe_prompt.models.sampling import Dataset

GAP = 1e-8


@dataclass(frozen=True)
class Cell:
    """A truth and a sample size: how many replicates are fitted, and how often everything is timed."""

    truth: str
    n: int
    replicates: int
    rounds: int


CELLS = (
    Cell("line", 1_000, 20, 5),
    Cell("line", 10_000, 8, 5),
    Cell("line", 100_000, 2, 3),
    Cell("cube", 1_000, 10, 5),
    Cell("cube", 10_000, 4, 5),
)
QUICK = (Cell("line", 1_000, 4, 1), Cell("line", 10_000, 2, 1), Cell("cube", 1_000, 2, 1))


def population(truth: str) -> MixturePopulation:
    """Two experts on a grid of [0, 1], or three on the cube [-1, 1]^5 with coefficients drawn once."""
    if truth == "line":
        theta = torch.tensor([-8.0, 25.0, 15.0, -20.0, -5.0, 20.0, *np.log([0.3, 0.4])], dtype=torch.float64)
        return MixturePopulation(GaussianMoE(2, 1), theta, EvenGrid(0.0, 1.0))
    model = GaussianMoE(3, 5)
    theta = 1.5 * torch.from_numpy(np.random.default_rng(7).standard_normal(model.num_parameters))
    theta[model.slices["log_sd"]] = torch.tensor([0.3, 0.4, 0.5]).log().to(theta)
    return MixturePopulation(model, theta, Uniform(-1.0, 1.0, 5))


def draw(truth: MixturePopulation, cell: Cell) -> tuple[Dataset, Tensor]:
    """Data of all replicates and one start (replicates, 1, p) for each, half a unit a parameter from the truth."""
    data = truth.sample(cell.n, [np.random.default_rng((1, k)) for k in range(cell.replicates)])
    shape = (1, truth.model.num_parameters)
    steps = np.stack([np.random.default_rng((2, k)).standard_normal(shape) for k in range(cell.replicates)])
    return data, truth.theta + 0.5 * torch.from_numpy(steps)


def peer(truth: MixturePopulation, data: Dataset, starts: Tensor, folder: Path) -> Flexmix:
    posterior = truth.model.responsibilities(starts[:, 0], data.x, data.y)
    return Flexmix.write(folder, data.x.numpy(), data.y[..., 0].numpy(), posterior.numpy())


def one_by_one(truth: MixturePopulation, data: Dataset, starts: Tensor) -> None:
    for k in range(len(data)):
        one = slice(k, k + 1)
        ExpectationMaximization().fit(truth.model, Dataset(data.x[one], data.y[one]), starts[one])


def compare(cell: Cell) -> dict[str, Any]:
    """Seconds per fit, medians over rounds; ratios are medians of the rounds' ratios."""
    truth = population(cell.truth)
    data, starts = draw(truth, cell)
    ours: list[float] = []
    single: list[float] = []
    theirs: list[Timing] = []
    with TemporaryDirectory() as folder:
        flexmix = peer(truth, data, starts, Path(folder))
        traces = flexmix.traces()
        fit = ExpectationMaximization().fit(truth.model, data, starts)  # warm
        iterations = [reaches(trace, -best) for trace, best in zip(traces, fit.objective.tolist(), strict=True)]
        for _ in range(cell.rounds):
            work = cpu_seconds(lambda: ExpectationMaximization().fit(truth.model, data, starts))
            ours.append(work[0] / cell.replicates)
            single.append(cpu_seconds(lambda: one_by_one(truth, data, starts))[0] / cell.replicates)
            theirs.append(flexmix.timing(iterations))
    return {
        "truth": cell.truth,
        "n": cell.n,
        "peer": "flexmix",
        **ratios(ours, single, theirs),
        **agreement(fit, traces, theirs[0]),
        "steps": float(fit.steps.double().mean()),
        "steps_peer": float(np.mean(iterations)),
        "steps_peer_converged": float(np.mean(theirs[0].steps)),
        "fits": cell.replicates * cell.rounds,
    }


def reaches(trace: list[float], best: float) -> int:
    """Iterations until the likelihood is within GAP of the best, or, if it never is, until it is highest."""
    values = np.array(trace)
    return int(np.argmax(values >= min(best - GAP * abs(best), values.max()))) + 1


def ratios(ours: list[float], single: list[float], theirs: list[Timing]) -> dict[str, float]:
    equal, whole = [timing.equal for timing in theirs], [timing.converged for timing in theirs]
    over = {"ratio": (equal, ours), "ratio_one_by_one": (equal, single), "ratio_converged": (whole, ours)}
    seconds = {"ours_s": ours, "one_by_one_s": single, "peer_s": equal, "peer_converged_s": whole}
    found = {name: median(p / o for p, o in zip(*pair, strict=True)) for name, pair in over.items()}
    return found | {name: median(values) for name, values in seconds.items()}


def agreement(fit: FitResult, traces: list[list[float]], timing: Timing) -> dict[str, Any]:
    """Where the two end; a positive gap is a higher likelihood of ours."""
    best = -fit.objective.numpy()
    gap = (best - [max(trace) for trace in traces]) / abs(best)
    stock = (best - timing.objective) / abs(best)
    near = gap <= GAP
    return {
        "gap": float(max(gap[near], key=abs, default=np.nan)),
        "gap_stock": float(max(stock, key=abs)),
        "missed": int((~near).sum()),
        "converged": int(fit.converged.sum()),
    }


def run(quick: bool) -> Iterator[dict[str, Any]]:
    installed = versions()
    limit_loaded_threads()
    for cell in QUICK if quick else CELLS:
        yield {**compare(cell), **installed}
