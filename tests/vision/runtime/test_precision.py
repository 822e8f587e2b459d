"""What each precision does to a forward pass."""

import pytest
import torch
from torch import nn

from moe_prompt.errors import InputError
from moe_prompt.vision.runtime.precision import (
    autocast,
    device_of,
    flushes_denormals,
    gradient_scaler,
    parameter_dtype,
    widened,
    without_denormals,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_have_the_precision(precision, dtype):
    with autocast(precision, CPU):
        assert nn.Linear(3, 5)(torch.zeros(2, 3)).dtype == dtype


def test_only_fp16_scales_its_gradients():
    assert [gradient_scaler(name, CPU).is_enabled() for name in ("float32", "bf16", "fp16")] == [False, False, True]


def test_input_follows_the_parameters():
    assert parameter_dtype(nn.Linear(3, 5).double()) == torch.float64
    assert parameter_dtype(nn.Identity()) == torch.float32 and device_of(nn.Identity()) == CPU


def test_losses_are_not_summed_in_half_precision():
    assert widened(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert widened(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_unknown_precision_is_named():
    with pytest.raises(InputError, match="unknown precision"):
        autocast("fp8", CPU)


def test_denormals_are_zero_inside_and_not_after():
    tiny = torch.tensor(1e-30) * torch.tensor(1e-10)
    with without_denormals():
        assert float(torch.tensor(1e-30) * torch.tensor(1e-10)) == 0.0
    assert float(tiny) > 0 and float(torch.tensor(1e-30) * torch.tensor(1e-10)) > 0


def test_denormals_stay_zero_where_they_were():
    torch.set_flush_denormal(True)
    try:
        with without_denormals():
            assert flushes_denormals()
        assert flushes_denormals()
    finally:
        torch.set_flush_denormal(False)
    assert not flushes_denormals()
