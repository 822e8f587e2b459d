"""Carry out a rate study: which batches are missing, what a batch computes, and who computes it.

A batch is a number of replicates of one cell and one size. It is fitted at once in one process with one thread; batches
go to worker processes on this machine, or through Dask to others. Rows reach the database in the order in which
batches finish and are the same whoever computed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import joblib
import torch
from torch import Tensor

from moe_prompt.asymptotics import CellLimits, cell_limits
from moe_prompt.errors import InputError
from moe_prompt.estimators import FitResult
from moe_prompt.losses import VoronoiLoss
from moe_prompt.rates import RateStudy
from moe_prompt.regression import Dataset, RegressionModel
from moe_prompt.results import Results, Row

BATCH_SAMPLES = 400_000  # observations in a batch: some hundred megabytes, some seconds
SEARCH = 50_000  # observations whose fit costs as much as the search from random starts at the first rung
DATA, STARTS = 0, 1
Cell = tuple[str, str]


@dataclass(frozen=True)
class Batch:
    """Replicates of one cell at one size."""

    truth: str
    estimator: str
    n: int
    replicates: tuple[int, ...]
    cost: float
    """Relative to other batches: observations to fit, some thousand for the search at small samples, parameters."""


def missing_batches(study: RateStudy, done: set[tuple[str, str, int, int]]) -> list[Batch]:
    """What the study still needs, dearest batches first so that no worker is left with one at the end."""
    batches = []
    for truth in study.truths:
        for estimator in study.contenders:
            for n in study.sizes:
                todo = [r for r in range(study.replicates) if (truth, estimator, n, r) not in done]
                size = max(1, BATCH_SAMPLES // n)
                each = (n + SEARCH) * (study.contenders[estimator].num_parameters + 5)
                for _, block in groupby(todo, key=lambda r, size=size: r // size):  # type: ignore[misc]
                    replicates = tuple(block)
                    batches.append(Batch(truth, estimator, n, replicates, float(len(replicates) * each)))
    return sorted(batches, key=lambda batch: (-batch.cost, batch.truth, batch.estimator, batch.n))


def run(
    study: RateStudy,
    results: Results,
    jobs: int = 1,
    dask: str | None = None,
    progress: Callable[[int, float, float], None] = lambda fits, done, total: None,
) -> int:
    """Compute the rows that `results` lacks and return how many there were.

    `progress` hears, after every batch, the fits so far, their cost and the total cost.
    """
    batches = missing_batches(study, results.done(study.key))
    if not batches:
        return 0
    began, fits, cost = time.time(), 0, 0.0
    total = sum(batch.cost for batch in batches)
    limits = {cell: cell_limits(study, *cell) for cell in sorted({(b.truth, b.estimator) for b in batches})}
    known = results.notes(study.key)
    for cell, limit in limits.items():
        name = "limits " + " ".join(cell)
        if name not in known or limit.floor <= known[name]["floor"]:  # a search finds an upper bound of the floor
            results.note(study.key, name, limit.to_dict())
    progress(0, 0.0, total)
    for batch, rows in _compute(study, limits, batches, jobs, dask):
        results.add(rows)
        fits, cost = fits + len(rows), cost + batch.cost
        progress(fits, cost, total)
        results.note(study.key, f"run {began:.0f}", _log(began, fits, jobs, dask))
    return fits


def _compute(
    study: RateStudy, limits: dict[Cell, CellLimits], batches: list[Batch], jobs: int, dask: str | None
) -> Iterator[tuple[Batch, list[Row]]]:
    work = [joblib.delayed(fit_batch)(study, limits[batch.truth, batch.estimator], batch) for batch in batches]
    if jobs == 1 and dask is None:
        yield from (call(*args) for call, args, _ in work)
        return
    with _workers(dask):
        parallel = joblib.Parallel(n_jobs=-1 if dask else jobs, return_as="generator_unordered", batch_size=1)
        yield from parallel(work)


@contextmanager
def _workers(dask: str | None) -> Iterator[None]:
    """joblib's own processes, or a Dask cluster: "local" for one of this machine, else a scheduler's address."""
    if dask is None:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            yield
        return
    try:
        from distributed import Client

        client = Client(processes=False, dashboard_address=None) if dask == "local" else Client(dask)
    except ImportError:
        raise InputError("--dask needs Dask: pip install 'moe-prompt[dask]', or leave it out.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler at {dask!r} ({error}): give its address, or `local`.") from None
    with client, joblib.parallel_config(backend="dask"):  # joblib finds the current client
        yield


def fit_batch(study: RateStudy, limits: CellLimits, batch: Batch) -> tuple[Batch, list[Row]]:
    """Sample, start, fit and judge one batch."""
    torch.set_num_threads(1)
    began = time.process_time()
    population, model = study.truths[batch.truth], study.contenders[batch.estimator]
    rngs = {stream: [study.rng(batch.truth, batch.n, r, stream) for r in batch.replicates] for stream in (DATA, STARTS)}
    data = population.sample(batch.n, rngs[DATA])
    matched = study.matched(batch.truth, batch.estimator)
    starts = study.starts.starts(model, population.theta if matched else None, rngs[STARTS])
    fit = study.estimator.fit(model, data, starts)
    columns = _columns(study, batch, fit, data, starts[:, 0], limits)
    seconds = (time.process_time() - began) / len(batch.replicates)
    common = {"study": study.key, "truth": batch.truth, "estimator": batch.estimator, "n": batch.n}
    rows = []
    for i, replicate in enumerate(batch.replicates):
        own = {name: None if column is None else column[i].item() for name, column in columns.items()}
        rows.append(common | own | {"replicate": replicate, "cpu_seconds": seconds, "message": fit.message[i]})
    return batch, rows


def _columns(
    study: RateStudy, batch: Batch, fit: FitResult, data: Dataset, first_start: Tensor, limits: CellLimits
) -> dict[str, Tensor | None]:
    """Every judged number of a batch, (replicates,) each; None where a cell has no such number."""
    population, matched = study.truths[batch.truth], study.matched(batch.truth, batch.estimator)
    target = population.noiseless(study.nodes)
    at_truth = 0.5 * (data.y - population.predict(data.x)).square().sum((1, 2))
    columns: dict[str, Tensor | None] = {
        "excess_risk": _risk(fit.model, fit.theta, target),
        "start_excess_risk": _risk(fit.model, first_start, target),
        "projection_risk": None,
        "objective": fit.objective,
        "objective_at_truth": at_truth,
        "converged": fit.converged,
        "at_boundary": fit.at_boundary,
        "missed": fit.objective > at_truth * (1 + 1e-9) if matched else None,
        "steps": fit.steps,
        "gradient_norm": fit.gradient_norm,
        "offset": fit.offset,
    } | dict.fromkeys(("parameter_loss", "start_parameter_loss", "efficiency", "squared_error"))
    if matched:
        return columns | _parameter_columns(study, batch, fit, first_start, limits)
    if limits.projection is not None:
        projected = fit.model.mean(limits.projection, target.x[0])
        columns["projection_risk"] = _risk(fit.model, fit.theta, replace(target, y=projected[None]))
    return columns


def _parameter_columns(
    study: RateStudy, batch: Batch, fit: FitResult, first_start: Tensor, limits: CellLimits
) -> dict[str, Tensor]:
    model, truth = fit.model, study.truths[batch.truth].theta
    true = model.measure(truth)
    loss = VoronoiLoss(model.symmetry)
    columns = {
        "parameter_loss": loss(fit.measure, true),
        "start_parameter_loss": loss(model.measure(first_start), true),
    }
    if (
        limits.information is not None and model.symmetry.dimension(true) == 0
    ):  # else parameters are identified in other coordinates only
        error = model.flatten(model.symmetry.align(fit.measure, true, atoms=True)) - truth
        quadratic = (error @ limits.information * error).sum(1) / limits.noise**2
        columns |= {
            "efficiency": batch.n * quadratic / limits.parameters,
            "squared_error": error.square().sum(1),
        }
    return columns


def _risk(model: RegressionModel, theta: Tensor, target: Dataset) -> Tensor:
    """E |f_theta - target|^2 by quadrature, one number per parameter vector."""
    prepared, y = model.prepare(target.x), target.y[0].mT
    errors = (model.at(one[None])(prepared)[0] - y for one in theta)
    weights = torch.tensor(1 / target.n) if target.weights is None else target.weights
    return torch.stack([(error.square().sum(0) * weights).sum() for error in errors])


def _log(began: float, fits: int, jobs: int, dask: str | None) -> dict:
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(began))
    return {"began_utc": stamp, "wall_seconds": round(now - began, 1), "fits": fits, "jobs": jobs, "dask": dask}
