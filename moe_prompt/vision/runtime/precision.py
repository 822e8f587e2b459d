"""The precision in which a network runs: float32 as it is, or bf16 or fp16 by autocast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from moe_prompt.errors import choose

PRECISIONS: Mapping[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by name. `float32` leaves the arithmetic to the parameters' own type, float64 included."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which a forward pass has this precision."""
    dtype = choose("precision", precision, PRECISIONS)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers below the normal range (1e-38 in float32) are 0 on a CPU, as they are in much of a GPU's arithmetic.

    A training that diverges produces many such numbers, and some processors take 20 times as long with them.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushes_denormals() -> bool:
    """Whether denormal numbers are 0 in this thread; torch has a switch for it but no way to read the switch."""
    least_normal = torch.tensor(torch.finfo(torch.float32).tiny)
    return float(least_normal / 2) == 0


def gradient_scaler(precision: str, device: torch.device) -> GradScaler:
    """Scales the loss in fp16, whose small gradients would be 0 otherwise; does nothing in other precisions."""
    return GradScaler(device.type, enabled=precision == "fp16")


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """The type in which the model takes its input: that of its first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def widened(logits: Tensor) -> Tensor:
    """Half precision as float32: losses are not summed in ten bits."""
    return logits.float() if logits.itemsize < 4 else logits
