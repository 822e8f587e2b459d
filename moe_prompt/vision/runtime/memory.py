"""Peak memory: of tensors on a GPU as CUDA reports it, or of this process as the operating system reports it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

MEBIBYTE = 2**20


class PeakMemory:
    """The peak in megabytes (2^20 bytes) since this object was made; `kind` says what was measured.

    `cuda-allocated`: tensors on the device (`torch.cuda.max_memory_allocated`). `resident`: memory of the whole
    process, interpreter and frozen weights included (Linux's VmHWM, reset at the start). `resident-ever`: the same
    since the process began, where the system cannot reset it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.kind = "cuda-allocated"
            self.before = torch.cuda.memory_allocated(device) / MEBIBYTE
        else:
            self.kind = "resident" if _reset_peak() else "resident-ever"
            self.before = self.megabytes()

    def megabytes(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MEBIBYTE
        return _peak_of_process(ever=self.kind == "resident-ever")

    def increase(self) -> float:
        """Megabytes above what was taken at the start."""
        return self.megabytes() - self.before


def _reset_peak() -> bool:
    """Reset the peak to the present use, after the C library has returned memory that it keeps for later."""
    with suppress(OSError, AttributeError):  # no GNU C library
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmHWM") is not None
    except OSError:
        return False


def _peak_of_process(ever: bool) -> float:
    found = None if ever else _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows has no such thing
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024


def _status(field: str) -> float | None:
    """Megabytes of a field of /proc/self/status, which has kibibytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return None
