"""A training step of a prompted ViT-B/16, prompts as experts, against the plain form that carries them as tokens.

Both sides have the same weights, pictures and loss (cross-entropy, forward and backward to the prompts and the head),
training mode with the methods' own dropout, one thread, and pay CPU seconds; they take turns, and `ratio` is the median
over pairs of the peer's seconds over ours. `bf16` lines are under autocast, for both; `ratio_to_float32` is ours in
float32 over ours in bf16, in turns too. Peak memory is what three steps take above what lay in memory before
them, in a fresh process; `memory_ratio` is the peer's over ours.

`arithmetic` is the frozen forward pass: operations counted by hand over seconds, divided by the rate of a float32
matrix product on the same thread.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks.machine import cpu_seconds, limit_loaded_threads
from experiments.benchmarks.prompts_as_tokens import PromptsAsTokens
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.runtime.memory import PeakMemory
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer, ViTConfig

MODEL, CLASSES, BATCH = "vit-b/16", 100, 4
NUM_PROMPTS, PAIRS, STEPS = (10, 50, 100), 7, 3
METHODS = ("vpt-deep", "vapt")


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    limit_loaded_threads()
    torch.manual_seed(0)
    vit = VisionTransformer(VIT_SIZES[MODEL])
    batch, pairs = (1, 1) if quick else (BATCH, PAIRS)
    images, labels = torch.randn(batch, 3, 224, 224), torch.arange(batch)
    for num_prompts in NUM_PROMPTS[:1] if quick else NUM_PROMPTS:
        for method in METHODS:
            ours = Classifier(vit, method_named(method, num_prompts=num_prompts), CLASSES).train()
            peer = PromptsAsTokens(ours).train()
            about = {"model": MODEL, "method": method, "num_prompts": num_prompts, "peer": "prompts-as-tokens"}
            about |= {"batch": batch, "pairs": pairs}
            yield {**about, **_compared(ours, peer, images, labels, pairs), **_memory(method, num_prompts, batch)}
    yield _arithmetic(vit, images, pairs)


def _compared(ours: Classifier, peer: nn.Module, images: Tensor, labels: Tensor, pairs: int) -> dict[str, Any]:
    """Medians over rounds in which the four variants take turns; the first round warms up."""
    variants: dict[str, Callable[[], None]] = {
        f"{who}_{precision}": lambda model=model, bf16=precision == "bf16": step(model, images, labels, bf16)
        for who, model in (("ours", ours), ("peer", peer))
        for precision in ("float32", "bf16")
    }
    rounds = [{name: cpu_seconds(work)[0] for name, work in variants.items()} for _ in range(pairs + 1)][1:]
    seconds = {f"{name}_seconds": round(median(r[name] for r in rounds), 4) for name in variants}
    return {
        "ratio": _ratio(rounds, "peer_float32", "ours_float32"),
        "ratio_bf16": _ratio(rounds, "peer_bf16", "ours_bf16"),
        "ratio_to_float32": _ratio(rounds, "ours_float32", "ours_bf16"),
        **seconds,
    }


def step(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> None:
    """Forward and backward."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = functional.cross_entropy(model(images).float(), labels)
    loss.backward()


def _ratio(rounds: list[dict[str, float]], dear: str, cheap: str) -> float:
    return round(median(r[dear] / r[cheap] for r in rounds), 3)


def _memory(method: str, num_prompts: int, batch: int) -> dict[str, Any]:
    ours, peer = (_peak(who, method, num_prompts, batch) for who in ("ours", "peer"))
    return {"ours_peak_mb": round(ours), "peer_peak_mb": round(peer), "memory_ratio": round(peer / ours, 3)}


def _peak(who: str, method: str, num_prompts: int, batch: int) -> float:
    """Megabytes that a few steps take in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.vision", who, method, str(num_prompts), str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _alone(who: str, method: str, num_prompts: str, batch: str) -> None:
    """The body of that process."""
    limit_loaded_threads()
    vit = VisionTransformer(VIT_SIZES[MODEL])
    ours = Classifier(vit, method_named(method, num_prompts=int(num_prompts)), CLASSES).train()
    model = ours if who == "ours" else PromptsAsTokens(ours).train()
    images, labels = torch.randn(int(batch), 3, 224, 224), torch.arange(int(batch))
    memory = PeakMemory(torch.device("cpu"))
    for _ in range(STEPS):
        step(model, images, labels, False)
    print(memory.increase())


def _arithmetic(vit: VisionTransformer, images: Tensor, rounds: int) -> dict[str, Any]:
    """Operations a second of the frozen forward pass beside those of a matrix product, in turns."""
    square = torch.randn(2048, 2048)
    operations, product = forward_operations(vit.config, len(images)), 2 * 2048**3
    with torch.inference_mode():
        timed = [
            (cpu_seconds(lambda: vit(images))[0], cpu_seconds(lambda: square @ square)[0]) for _ in range(rounds + 1)
        ]
    shares = [(operations / forward) / (product / multiply) for forward, multiply in timed[1:]]
    rate = median(operations / forward for forward, _ in timed[1:])
    return {
        "model": MODEL,
        "peer": "matrix product",
        "batch": len(images),
        "gflops": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(median(shares), 3),
    }


def forward_operations(config: ViTConfig, batch: int) -> int:
    """Multiplications and additions of matrix products in a forward pass to the class token's features.

    A block: queries, keys, values and output 8 N d^2, attention 4 N^2 d, MLP 4 N d m. The last one is computed for one
    row, with h heads' scores and averages over N tokens 4 N h d and the maps of one token.
    """
    d, m = config.dim, config.mlp_dim
    patches = config.grid[0] * config.grid[1]
    tokens = patches + config.extra
    block = 8 * tokens * d**2 + 4 * tokens**2 * d + 4 * tokens * d * m
    last = 8 * d**2 + 4 * tokens * config.heads * d + 4 * d * m
    return batch * (2 * patches * 3 * config.patch**2 * d + (config.depth - 1) * block + last)


if __name__ == "__main__":
    _alone(*sys.argv[1:])
