"""Kinds of files are told from their bytes, families of names from the names; nothing is ever unpickled."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.files import read_checkpoint
from moe_prompt.vision.checkpoints.formats.recognise import CHECKPOINT_FORMATS, StoredTensors, encoder_of

KERNEL = "patch_embed.proj.weight"


class Harmful:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def files(folder: Path) -> dict[str, Path]:
    """The same two tensors in every kind of file, under names that tell nothing."""
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([5])}
    paths = {kind: folder / f"{i}.bin" for i, kind in enumerate(["npz", "safetensors", "zip", "legacy", "wrapped"])}
    with paths["npz"].open("wb") as stream:
        np.savez(stream, **{name: tensor.numpy() for name, tensor in tensors.items()})
    save_file(tensors, paths["safetensors"])
    torch.save(OrderedDict(tensors), paths["zip"])
    torch.save(tensors, paths["legacy"], _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": tensors | {"note": "text"}}, paths["wrapped"])
    return paths


@pytest.mark.parametrize("kind", ["npz", "safetensors", "zip", "legacy", "wrapped"])
def test_kinds_are_told_from_the_bytes(tmp_path, kind):
    read = read_checkpoint(files(tmp_path)[kind])
    assert set(read.tensors) == {"a.weight", "b"}
    assert torch.equal(read.tensors["a.weight"], torch.arange(6.0).view(2, 3)) and read.tensors["b"].item() == 5
    assert read.container == (kind if kind in ("npz", "safetensors") else "torch file")
    assert read.wrapper == ("state_dict" if kind == "wrapped" else "")


@pytest.mark.parametrize("kind", ["npz", "safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0.3, 0.97])
def test_cut_short(tmp_path, kind, kept):
    path = files(tmp_path)[kind]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["torch", "legacy", "wrapped", "npz", "pickle"])
def test_nothing_is_unpickled(tmp_path, kind):
    marker, path = tmp_path / "harm", tmp_path / "file"
    harmful = {"a": torch.ones(2), "b": Harmful(marker)}
    if kind == "npz":
        with path.open("wb") as stream:
            np.savez(stream, a=np.ones(2), b=np.array([Harmful(marker)], dtype=object))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Harmful(marker)))
    else:
        content = {"model": harmful} if kind == "wrapped" else harmful
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*unpickling") as caught:
        read_checkpoint(path)
    assert not marker.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89HDF\r\n", b"PK\x03\x04", b"\x80", b"\x08", b"\x08\x07\x12\x99"]
)
def test_no_checkpoint_at_all(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_checkpoint(path)


def test_other_archives_and_objects(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    np.savez(tmp_path / "words.npz", words=np.array(["one"]), a=np.ones(2))
    for name, says in {"a.zip": "cannot be read", "list.pth": "holds a list, not named tensors"}.items():
        with pytest.raises(InputError, match=says):
            read_checkpoint(tmp_path / name)
    assert list(read_checkpoint(tmp_path / "words.npz").tensors) == ["a"]
    with pytest.raises(InputError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        read_checkpoint(tmp_path)
    with pytest.raises(InputError, match="is not a file"):
        read_checkpoint(tmp_path / "gone")


def stored(**tensors) -> StoredTensors:
    return StoredTensors({n.replace("__", "."): t for n, t in tensors.items()}, "my file", "npz")


def test_prefix_is_found_and_the_rest_reported():
    inside = {f"model.encoder.{name}": torch.ones(2) for name in (KERNEL, "cls_token", "blocks.0.norm1.bias", "odd")}
    outside = {"ema_decay": torch.ones(1), "head.fc.bias": torch.ones(1), "model.decoder.bias": torch.ones(1)}
    encoder = encoder_of(StoredTensors(inside | outside, "my file", "torch file"))
    assert set(encoder.tensors) == {KERNEL, "cls_token", "blocks.0.norm1.bias"}
    assert encoder.unexpected == ("odd", "ema_decay")
    assert encoder.notes == ("dropped: classification head (1 tensor), decoder (1 tensor)",)


def test_one_family_recognises_each_name():
    for landmark in ("embedding/kernel", KERNEL, "embeddings.patch_embeddings.projection.weight"):
        for prefix in ("", "any.", "any/"):
            found = [
                family
                for family in CHECKPOINT_FORMATS
                if family.recognises(stored(**{prefix + landmark: torch.ones(1)}))
            ]
            assert len(found) == 1 and found[0].landmark == landmark
        assert not any(family.recognises(stored(**{"my" + landmark: torch.ones(1)})) for family in CHECKPOINT_FORMATS)


GOOGLE = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "lacks .*query/kernel"),
        ({f"{GOOGLE}/query/kernel": (4, 2)}, "query/kernel in my file needs 3 axes"),
        ({f"{GOOGLE}/query/kernel": (4, 2, 2), f"{GOOGLE}/key/kernel": (4, 2, 2)}, "lacks .*value/kernel"),
        ({f"{GOOGLE}/{part}/kernel": (4, 2, i) for i, part in enumerate(("query", "key", "value"))}, "need one shape"),
        (
            {f"{GOOGLE}/{part}/kernel": (4, 2, 2) for part in ("query", "key", "value")} | {"conv_root/kernel": (1,)},
            "conv_root",
        ),
    ],
)
def test_google_files_that_are_not_plain_vits(tensors, says):
    shapes = {"embedding/kernel": (5, 5, 3, 4)} | tensors
    with pytest.raises(InputError, match=says):
        encoder_of(stored(**{name: torch.ones(shape) for name, shape in shapes.items()}))


@pytest.mark.parametrize(("value", "says"), [(None, "lacks blocks.0.attn.value.weight"), ((3, 3), "need one shape")])
def test_transformers_files_with_a_broken_attention(value, says):
    layer = "vit.encoder.layer.0.attention.attention."
    shapes = {f"{layer}query.weight": (2, 2), f"{layer}key.weight": (2, 2), f"{layer}value.weight": value}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items() if shape is not None}
    with pytest.raises(InputError, match=says):
        encoder_of(stored(**{"vit.embeddings.patch_embeddings.projection.weight": torch.ones(2, 3, 1, 1)}, **tensors))


@pytest.mark.parametrize("version", ["encoder.layer.0.mlp.weights_in.weight", "layers.0.mlp.w12.weight"])
def test_gated_mlps_of_transformers(version):
    tensors = {"embeddings.patch_embeddings.projection.weight": torch.ones(2, 3, 1, 1), version: torch.ones(2, 2)}
    with pytest.raises(InputError, match=r"my file has gated \(SwiGLU\) MLPs \(blocks.0.mlp.w"):
        encoder_of(stored(**tensors))
