"""One thread, its clock, and how many floating-point operations a second it does in a matrix product.

Numerical libraries are imported where they are used: :func:`limit_threads` must run before they start their threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Unavailable(RuntimeError):
    """A peer that is not installed here; the message says how to install it."""


def limit_threads() -> None:
    """One thread for every library that asks the environment when it is imported."""
    os.environ.update(dict.fromkeys(THREADS, "1"))


def limit_loaded_threads() -> None:
    """One thread for the libraries already imported."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def cpu_seconds(work: Callable[[], T]) -> tuple[float, T]:
    """CPU time of this process, which waiting for a busy core does not add to, and what `work` returned."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def matrix_rate(size: int = 1024, rounds: int = 7) -> float:
    """Double-precision operations a second in a (size, size) product: the better of torch's and numpy's best."""
    import torch

    a = torch.randn(size, size, dtype=torch.float64)
    b = a.numpy()
    best = min(min(cpu_seconds(lambda: a @ a)[0], cpu_seconds(lambda: b @ b)[0]) for _ in range(rounds))
    return 2 * size**3 / best
