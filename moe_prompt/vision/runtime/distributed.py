"""One process or several (`torchrun`) compute the same batches and the same gradient; only the first one writes.

The gradient of a step is a sum over its pictures, so the processes add up their parts: one `all_reduce` per step sends
every gradient and the sums beside them. The model needs no wrapper. Layers may share parameters, parameters may lack a
gradient, and processes may have different numbers of pictures; the sum stays exact, where a mean of means would not.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """The number of this process, how many there are, and the device from which tensors are sent."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the tensor's own device."""
        if self.world == 1:
            return tensor
        sent = tensor.to(self.device, copy=True)
        dist.all_reduce(sent)
        return sent.to(tensor.device)

    def gather(self, thing: Any) -> list[Any]:
        """What each process has, in order of rank."""
        if self.world == 1:
            return [thing]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, thing)
        return found

    def share(self, thing: Any) -> Any:
        """What the first process has."""
        if self.world == 1:
            return thing
        held = [thing if self.first else None]
        dist.broadcast_object_list(held, device=self.device if self.device.type == "cuda" else None)
        return held[0]

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        if self.world > 1:
            with torch.no_grad():
                for tensor in tensors:
                    sent = tensor.detach().to(self.device, copy=True)
                    dist.broadcast(sent, 0)
                    tensor.copy_(sent)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], sums: Tensor) -> Tensor:
        """Add up the gradients in place, and `sums`, in one message.

        A parameter for which no process has a gradient must keep none, as weight decay would move it otherwise.
        Therefore a flag is sent with each gradient.
        """
        if self.world == 1:
            return sums
        flags = torch.tensor([float(p.grad is not None) for p in parameters])
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([part.detach().flatten().to(self.device, dtype) for part in [*parts, flags, sums]])
        dist.all_reduce(message)
        *summed, flags, sums = message.split([p.numel() for p in parameters] + [len(flags), len(sums)])
        for parameter, gradient, flag in zip(parameters, summed, flags.tolist(), strict=True):
            if flag:
                parameter.grad = gradient.view_as(parameter).to(parameter.device, parameter.dtype)
        return sums


def local_device() -> torch.device:
    """The device of this process: its own CUDA device under torchrun, the first without, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def joined(device: torch.device) -> Ranks:
    """Join the other processes of a `torchrun`, over nccl where the model lies on a CUDA device and gloo elsewhere.

    A process joins once and stays until it ends, because a second meeting at the same address can find what is left of
    the first. A process group that exists already is used, and closed by its maker.
    """
    if not dist.is_available() or (int(os.environ.get("WORLD_SIZE", 1)) == 1 and not dist.is_initialized()):
        return Ranks(0, 1, device)
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return Ranks(0, 1, device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    if dist.get_backend() == "nccl":
        return Ranks(dist.get_rank(), dist.get_world_size(), device if device.type == "cuda" else local_device())
    return Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
