"""Content in the terms of JSON: equal content, equal hash, in every process; different content, another."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt, ReparameterizedPrefix
from moe_prompt.errors import InputError
from moe_prompt.models.covariates import ImagePatches
from moe_prompt.studies.fingerprint import content, fingerprint


class Plain:
    def __init__(self, scale):
        self.scale = scale


@dataclass(frozen=True)
class Data:
    scale: float


class Layer(nn.Module):
    def __init__(self, act, width=3):
        super().__init__()
        self.act, self.inner = act, nn.Linear(2, width)


PAIRS = {
    "floats": (0.1, 1 / 10, np.float64(0.1), 0.10000000000000002),
    "arrays": (np.arange(6.0), np.arange(12.0)[::2] / 2, torch.arange(6.0).double(), np.arange(6.0).reshape(2, 3)),
    "order of columns": (np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).copy("F"), None, np.arange(6.0)),
    "mappings": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, None, {"a": 2, "b": 1}),
    "tuples": ((1, 2), [1, 2], None, (2, 1)),
    "dataclasses": (Data(1.0), Data(1.0), None, Data(2.0)),
    "objects": (Plain(1.0), Plain(1.0), None, Plain(2.0)),
    "numpy's integers": (np.int64(3), 3, None, 4),
    "functions": (torch.tanh, torch.tanh, None, torch.sigmoid),
    "modules": (Layer(torch.tanh), Layer(torch.tanh), None, Layer(torch.sigmoid)),
    "shapes": (Layer(torch.tanh), Layer(torch.tanh), None, Layer(torch.tanh, 4)),
    "experts": (ConstantPrompt(2, 3), ConstantPrompt(2, 3), None, ConstantPrompt(3, 2)),
    "activations": (
        FlatAdaptivePrompt(1, 2, 1),
        FlatAdaptivePrompt(1, 2, 1),
        None,
        FlatAdaptivePrompt(1, 2, 1, "gelu"),
    ),
    "buffers": tuple(ReparameterizedPrefix(2, 3, generator=torch.Generator().manual_seed(k)) for k in (1, 1, 1, 2)),
    "pictures": tuple(ImagePatches(np.arange(32.0).reshape(2, 4, 4) ** p, 2, 1) for p in (1, 1, 1, 2)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_last_bits_of_an_array_are_the_processors_and_do_not_count(dtype):
    array = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    odd = array * (1 + 2 * np.finfo(dtype).eps * np.random.default_rng(1).integers(-2, 3, 1000)).astype(dtype)
    off = array.copy()
    off[500] *= 1 + 1e3 * np.finfo(dtype).eps ** (2 / 3)
    assert not np.array_equal(array, odd) and fingerprint(odd[:20]) == fingerprint(array[:20])
    assert fingerprint(off) != fingerprint(array)
    assert fingerprint(np.array([0.0, np.inf, np.nan])) == fingerprint(np.array([-0.0, np.inf, np.nan]))


@pytest.mark.parametrize("kind", PAIRS)
def test_equal_content_equal_hash_and_only_then(kind):
    one, same, again, other = PAIRS[kind]
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert again is None or fingerprint(again) == fingerprint(one)


@pytest.mark.parametrize("one, other", [(Data(1.0), Plain(1.0)), (1, 1.5), (None, 0), ("1", 1), ((), {})])
def test_kinds_are_told_apart(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_content_is_json():
    everything = [value for values in PAIRS.values() for value in values]
    assert json.loads(json.dumps(content(everything))) == content(everything)


@pytest.mark.parametrize("thing", [lambda x: x, object(), iter([]), Layer(lambda x: x)])
def test_what_has_no_lasting_content_is_refused_not_hashed_by_its_address(thing):
    with pytest.raises(InputError, match="known by its content"):
        fingerprint([thing])


def test_hash_is_the_same_in_another_process():
    """Whatever that process's hash seed and addresses."""
    program = (
        "import torch; from moe_prompt.studies.fingerprint import fingerprint\n"
        "from moe_prompt.attention.prompts import *\n"
        "class Plain:\n    def __init__(self): self.scale, self.names = 1.0, {'b': 2, 'a': 1}\n"
        "found = fingerprint([Plain(), torch.tanh, FlatAdaptivePrompt(1, 2, 1), torch.ones(3).double()])\n"
    )
    space: dict = {}
    runs = [
        subprocess.run(
            [sys.executable, "-c", program + "print(found)"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
        )
        for seed in ("1", "2")
    ]
    exec(program, space)
    assert [run.stdout.decode().strip() for run in runs] == [space["found"]] * 2
