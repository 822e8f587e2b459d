"""The benchmark of prompted ViTs: its count of operations, and a line with every number that is claimed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.vision import forward_operations
from moe_prompt.vision.vit.transformer import VisionTransformer, ViTConfig


@pytest.mark.parametrize("size", [{}, {"dim": 40, "heads": 5, "depth": 4, "mlp_dim": 56, "image": (12, 20)}])
def test_operations_are_those_that_torch_counts(size):
    config = ViTConfig(**{"dim": 24, "depth": 3, "heads": 3, "patch": 4, "image": (8, 12), "mlp_dim": 40, **size})
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        VisionTransformer(config)(torch.zeros(5, 3, *config.image))
    assert forward_operations(config, 5) == counter.get_total_flops()


@pytest.mark.slow
def test_every_number_that_is_claimed_is_in_a_line():
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "experiments.benchmarks", "vision", "--quick"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    *steps, arithmetic = (json.loads(line) for line in run.stdout.splitlines())
    assert {(s["model"], s["num_prompts"], s["peer"]) for s in steps} == {("vit-b/16", 10, "prompts-as-tokens")}
    assert {s["method"] for s in steps} == {"vpt-deep", "vapt"}
    for line in steps:
        assert all(line[name] > 0.5 for name in ("ratio", "ratio_bf16", "ratio_to_float32", "memory_ratio"))
    assert 0 < arithmetic["share_of_matrix_rate"] < 1.2
