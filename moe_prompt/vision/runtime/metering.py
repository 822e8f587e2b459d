"""The cost of a model: its arithmetic is counted, its time and memory are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_prompt.errors import require
from moe_prompt.vision.runtime.memory import PeakMemory
from moe_prompt.vision.runtime.precision import autocast, device_of, parameter_dtype, widened
from moe_prompt.vision.runtime.randomness import own_randomness


@dataclass(frozen=True)
class Cost:
    """What a batch costs in a forward pass and in a training step (forward and backward, no optimizer).

    `flops_forward` and `flops_step` count matrix products and convolutions with torch's own counter, two operations for
    a multiply-add. Seconds are medians. `peak_memory_mb` (2^20 bytes) is the memory that a step needs in addition to
    what was in use before; `memory_kind` names the measurement (:class:`PeakMemory`). `tuned_parameters` counts the
    learned numbers outside the head, `head_parameters` those of the head.
    """

    flops_forward: int
    flops_step: int
    seconds_forward: float
    seconds_step: float
    images_per_second: float
    peak_memory_mb: float
    memory_kind: str
    tuned_parameters: int
    head_parameters: int
    all_parameters: int


def measure(
    model: nn.Module,
    image_size: int | tuple[int, int],
    batch: int = 64,
    precision: str = "float32",
    repeats: int = 5,
) -> Cost:
    """The cost of `batch` random pictures of this size in training mode. Weights and gradients stay as they are.

    Raises:
        InputError: nothing to repeat, or no picture.
    """
    require(repeats >= 1 and batch >= 1, f"measuring needs a batch and a repetition: got {batch} and {repeats}.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    device, dtype = device_of(model), parameter_dtype(model)
    images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    forward, step = _forward(model, images, precision), _step(model, images, precision)
    with _as_it_was(model), own_randomness(0, 0, device):
        memory = PeakMemory(device)
        step()
        peak = memory.increase()
        flops = _flops(model, images, precision)
        seconds = [_seconds(run, device, repeats) for run in (forward, step)]
    return Cost(
        flops_forward=flops[0],
        flops_step=flops[1],
        seconds_forward=seconds[0],
        seconds_step=seconds[1],
        images_per_second=batch / seconds[1],
        peak_memory_mb=peak,
        memory_kind=memory.kind,
        **_parameters(model),
    )


def _parameters(model: nn.Module) -> dict[str, int]:
    learned = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    head = sum(count for name, count in learned.items() if name.startswith("head."))
    return {
        "tuned_parameters": sum(learned.values()) - head,
        "head_parameters": head,
        "all_parameters": sum(p.numel() for p in model.parameters()),
    }


def flops(model: nn.Module, image_size: tuple[int, int], precision: str = "float32") -> tuple[int, int]:
    """Floating-point operations for one picture, in a forward pass and in a training step."""
    images = torch.zeros(1, 3, *image_size, dtype=parameter_dtype(model), device=device_of(model))
    with _as_it_was(model), own_randomness(0, 0, images.device):
        return _flops(model, images, precision)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """In training mode inside; mode and gradients are put back."""
    was_training, kept = model.training, [(p, p.grad) for p in model.parameters()]
    model.train()
    try:
        yield
    finally:
        model.train(was_training)
        for parameter, gradient in kept:
            parameter.grad = gradient


def _forward(model: nn.Module, images: Tensor, precision: str, graph: bool = False) -> Callable[[], Tensor]:
    """`graph` for the counter, whose hooks want one where a module hands on a parameter as it is."""

    def run() -> Tensor:
        with torch.set_grad_enabled(graph), autocast(precision, images.device):
            return model(images)

    return run


def _step(model: nn.Module, images: Tensor, precision: str) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(precision, images.device):
            logits = model(images)
        labels = torch.arange(len(images), device=images.device) % logits.shape[-1]
        nn.functional.cross_entropy(widened(logits), labels).backward()

    return run


def _flops(model: nn.Module, images: Tensor, precision: str) -> tuple[int, int]:
    """Forward pass and step on this many pictures: counted on two and on three, for each picture adds the same.

    Attention is computed in its plain form meanwhile: of the fused ones, the counter does not know the CPU's.
    """

    def counted(run: Callable[[], object]) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    few = (images[:1].expand(count, -1, -1, -1) for count in (2, 3))
    two, three = (
        (counted(_forward(model, some, precision, graph=True)), counted(_step(model, some, precision))) for some in few
    )
    forward, step = (a + (len(images) - 2) * (b - a) for a, b in zip(two, three, strict=True))
    return forward, step


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])
