"""Finding a block among the tensors of a file, and what is said of files that cannot be used."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from moe_prompt.attention.block_weights import find_block
from moe_prompt.attention.tensor_files import TensorFile
from moe_prompt.errors import InputError

DIM = 5


def timm(blocks: int, prefix: str = "", dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    tensors = {}
    for b in range(blocks):
        name = f"{prefix}blocks.{b}."
        tensors[f"{name}attn.qkv.weight"] = torch.arange(3 * DIM * DIM, dtype=dtype).reshape(3 * DIM, DIM) + 1000 * b
        tensors[f"{name}attn.proj.weight"] = torch.full((DIM, DIM), float(b), dtype=dtype)
    return tensors


@pytest.mark.parametrize("prefix", ["", "model.backbone."])
@pytest.mark.parametrize("number", [0, 2, 10])
def test_block_is_chosen_by_number_not_by_spelling(prefix, number):
    found = find_block(timm(12, prefix), number)
    for part, weight in enumerate((found.w_q, found.w_k, found.w_v)):
        for a in range(DIM):
            assert weight[a].tolist() == [(part * DIM + out) * DIM + a + 1000.0 * number for out in range(DIM)]
    assert found.w_o.unique().item() == number and found.b_o.tolist() == [0.0] * DIM


def test_half_precision_becomes_single():
    assert find_block(timm(1, dtype=torch.bfloat16)).w_q.dtype == torch.float32
    assert find_block(timm(1, dtype=torch.float64)).w_q.dtype == torch.float64


def test_tensor_file_is_a_mapping(tmp_path):
    save_file(timm(2), tmp_path / "vit.safetensors")
    tensors = TensorFile(tmp_path / "vit.safetensors")
    assert dict(tensors).keys() == timm(2).keys() and len(tensors) == 4
    assert all(torch.equal(tensors[name], tensor) for name, tensor in timm(2).items())
    with pytest.raises(KeyError):
        tensors["nothing"]


def changed(**changes) -> dict[str, torch.Tensor]:
    tensors = timm(1)
    for name, tensor in changes.items():
        key = f"blocks.0.attn.{name}.weight"
        tensors[key] = tensor
        if tensor is None:
            del tensors[key]
    return tensors


@pytest.mark.parametrize(
    ("tensors", "block", "says"),
    [
        ({}, 0, "holds no attention block.*no tensor at all"),
        ({"head.weight": torch.ones(2, 2)}, 0, "holds no attention block.*got head.weight"),
        (timm(2), 2, r"holds 2 attention block\(s\), numbered from 0: got block 2"),
        (timm(2), -1, "got block -1"),
        (changed(proj=None), 0, "lacks the output map of blocks.0.attn.qkv.weight"),
        (changed(qkv=torch.ones(3 * DIM + 1, DIM)), 0, r"needs shape \(3 d, d\): got \(16, 5\)"),
        (changed(qkv=torch.ones(3 * DIM)), 0, r"needs shape \(3 d, d\): got \(15,\)"),
        (changed(proj=torch.ones(DIM, DIM + 1)), 0, r"w_o \(6, 5\)"),
        (changed(proj=torch.full((DIM, DIM), torch.nan)), 0, "blocks.0.attn.proj.weight .* not finite"),
        (changed(qkv=torch.ones(3 * DIM, DIM, dtype=torch.int8)), 0, "floating-point numbers: got torch.int8"),
        ({"a.query.weight": torch.ones(2, 2)}, 0, "lacks a.key.weight"),
    ],
)
def test_unusable_tensors_are_named(tensors, block, says):
    with pytest.raises(InputError, match=says) as caught:
        find_block(tensors, block, "my file")
    assert "my file" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps({"a": 1}), "is a pickle, which can run code"),
        (b"PK\x03\x04 a zip as torch.save writes it", "is a pickle, which can run code"),
        (b"not a tensor file at all", "not a readable safetensors file"),
        (b"", "not a readable safetensors file"),
        (None, "is not a file"),
    ],
)
def test_unusable_files_are_named(tmp_path, content, says):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + says):
        TensorFile(path)
