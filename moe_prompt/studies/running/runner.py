"""Carry out a study: which batches are missing, what a batch computes, and who computes it.

A batch is a number of replicates of one cell and one size. It is fitted at once in one process with one thread; batches
go to worker processes on this machine, or through Dask to others. Rows reach the database in the order in which
batches finish and are the same whoever computed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import joblib
import torch

from moe_prompt.errors import InputError
from moe_prompt.studies.base import Limits, Study
from moe_prompt.studies.running.database import Results, Row, limits_note

BATCH_SAMPLES = 400_000  # observations in a batch: some hundred megabytes, some seconds


@dataclass(frozen=True)
class Batch:
    """Replicates of one cell at one size."""

    truth: str
    estimator: str
    n: int
    replicates: tuple[int, ...]
    cost: float
    """Relative to other batches."""


def missing_batches(study: Study, done: set[tuple[str, str, int, int]]) -> list[Batch]:
    """What the study still needs, dearest batches first so that no worker is left with one at the end."""
    batches = []
    for truth, estimator in study.cells:
        for n in study.sizes:
            todo = [r for r in range(study.replicates) if (truth, estimator, n, r) not in done]
            size, each = max(1, BATCH_SAMPLES // n), study.cost(truth, estimator, n)
            for _, block in groupby(todo, key=lambda r, size=size: r // size):  # type: ignore[misc]
                replicates = tuple(block)
                batches.append(Batch(truth, estimator, n, replicates, len(replicates) * each))
    return sorted(batches, key=lambda batch: (-batch.cost, batch.truth, batch.estimator, batch.n))


def run(
    study: Study,
    results: Results,
    jobs: int = 1,
    dask: str | None = None,
    progress: Callable[[int, float, float], None] = lambda fits, done, total: None,
) -> int:
    """Compute the rows that `results` lacks and return how many there were.

    `progress` hears the fits so far, their cost and the total cost: before the cells' limits, after them and after
    every batch.
    """
    batches = missing_batches(study, results.done(study.key))
    if not batches:
        return 0
    began, fits, cost = time.time(), 0, 0.0
    total = sum(batch.cost for batch in batches)
    progress(0, 0.0, total)
    limits = {cell: study.limits(*cell) for cell in sorted({(b.truth, b.estimator) for b in batches})}
    known = results.notes(study.key)
    for cell, limit in limits.items():
        name, found = limits_note(*cell), limit.to_dict()
        if name not in known or study.better(known[name], found):
            results.note(study.key, name, found)
    progress(0, 0.0, total)
    for batch, rows in _compute(study, limits, batches, jobs, dask):
        results.add(rows)
        fits, cost = fits + len(rows), cost + batch.cost
        progress(fits, cost, total)
        results.note(study.key, f"run {began:.0f}", _log(began, fits, jobs, dask))
    return fits


def _compute(
    study: Study, limits: dict[tuple[str, str], Limits], batches: list[Batch], jobs: int, dask: str | None
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


def fit_batch(study: Study, limits: Limits, batch: Batch) -> tuple[Batch, list[Row]]:
    """The rows of one batch, with their coordinates and the time that each took."""
    threads, began = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)
    try:
        rows = study.fit_batch(batch.truth, batch.estimator, batch.n, batch.replicates, limits)
    finally:
        torch.set_num_threads(threads)
    common = {"study": study.key, "truth": batch.truth, "estimator": batch.estimator, "n": batch.n}
    common |= {"cpu_seconds": (time.process_time() - began) / len(batch.replicates)}
    return batch, [common | row | {"replicate": r} for row, r in zip(rows, batch.replicates, strict=True)]


def _log(began: float, fits: int, jobs: int, dask: str | None) -> dict:
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(began))
    return {"began_utc": stamp, "wall_seconds": round(now - began, 1), "fits": fits, "jobs": jobs, "dask": dask}
