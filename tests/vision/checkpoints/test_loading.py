"""Every checkpoint format gives the features of transformers' own models; what is wrong is said in one sentence."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.loading import LoadReport, load_backbone
from tests.builders.onnx_files import GraphWriter
from tests.builders.vit_files import (
    DIM,
    HEADS,
    IMAGE,
    PATCH,
    before_norm,
    google_arrays,
    hidden,
    images,
    model,
    stored,
    timm_names,
    write,
)

SMALL = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224, "patch_size": 16}
SMALL_14 = {**SMALL, "image_size": 84, "patch_size": 14}


def agree(vit: torch.nn.Module, theirs: torch.nn.Module, pictures: torch.Tensor | None = None) -> None:
    """Features and all tokens, to 1e-5."""
    pictures = images() if pictures is None else pictures
    expected = hidden(theirs, pictures)
    with torch.no_grad():
        torch.testing.assert_close(vit(pictures), expected[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vit.tokens(pictures), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def vit_1e6(tmp_path):
    """A ViT of transformers with timm's epsilon, and its tensors in timm's names."""
    theirs = model("vit", layer_norm_eps=1e-6)
    return theirs, timm_names(theirs, tmp_path / "theirs")


def test_google_npz(tmp_path, vit_1e6):
    theirs, timm = vit_1e6
    extra = {"pre_logits/kernel": np.ones((DIM, DIM)), "pre_logits/bias": np.ones(DIM)}
    extra |= {"head/kernel": np.ones((DIM, 11)), "head/bias": np.ones(11)}
    np.savez(tmp_path / "ViT.npz", **google_arrays(timm, HEADS), **extra)
    vit, report = load_backbone(tmp_path / "ViT.npz")
    agree(vit, theirs)
    assert vit.config.heads == HEADS and report.format == "Google ViT in npz"
    for parameter in vit.parameters():  # no view of a larger array, and none that safetensors would refuse to write
        assert parameter.is_contiguous() and parameter.untyped_storage().nbytes() == 4 * parameter.numel()
    assert (report.missing, report.unexpected) == ((), ())
    assert report.notes == ("dropped: pre-logits layer (2 tensors), classification head (2 tensors)",)


def test_timm_safetensors(tmp_path, vit_1e6):
    theirs, timm = vit_1e6
    head = {"head.weight": torch.ones(11, DIM), "head.bias": torch.ones(11), "something.else": torch.ones(2)}
    path = write(timm | head, tmp_path / "timm.safetensors")
    vit, report = load_backbone(path, heads=HEADS)
    agree(vit, theirs)
    assert report.format == "timm in safetensors" and report.unexpected == ("something.else",)
    assert report.notes == ("dropped: classification head (2 tensors)",)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.md5 == hashlib.md5(path.read_bytes()).hexdigest()


def test_mae(tmp_path, vit_1e6):
    theirs, timm = vit_1e6
    torch.save({"model": timm}, tmp_path / "encoder.pth")
    decoder = {"mask_token": torch.ones(1, 1, 5), "decoder_pos_embed": torch.ones(1, 17, 5)}
    decoder |= {"decoder_embed.weight": torch.ones(5, DIM), "decoder_blocks.0.attn.qkv.weight": torch.ones(15, 5)}
    decoder |= {"decoder_norm.weight": torch.ones(5), "decoder_pred.bias": torch.ones(75)}
    torch.save({"model": timm | decoder, "epoch": 3}, tmp_path / "whole.pth")
    for name, notes in (("encoder", ()), ("whole", ("dropped: mask token (1 tensor), decoder (5 tensors)",))):
        vit, report = load_backbone(tmp_path / f"{name}.pth", heads=HEADS)
        agree(vit, theirs)
        assert (report.format, report.unexpected, report.notes) == ("MAE in torch file", (), notes)


def test_moco_v3_linear(tmp_path, vit_1e6):
    theirs, timm = vit_1e6
    content = {f"module.{name}": tensor for name, tensor in timm.items()}
    content |= {"module.head.weight": torch.ones(11, DIM), "module.head.bias": torch.ones(11)}
    torch.save(
        {"epoch": 90, "arch": "vit_base", "state_dict": content, "best_acc1": torch.tensor(1)}, tmp_path / "l.tar"
    )
    vit, report = load_backbone(tmp_path / "l.tar", heads=HEADS)
    agree(vit, theirs)
    assert report.format == "MoCo v3, linear in torch file" and report.unexpected == ()
    assert report.notes == ("dropped: classification head (2 tensors)",)


def test_moco_v3_pretraining(tmp_path, vit_1e6):
    """The momentum encoder holds other numbers, and comes first."""
    theirs, timm = vit_1e6
    content = {f"module.momentum_encoder.{name}": tensor + 1 for name, tensor in timm.items()}
    content |= {f"module.base_encoder.{name}": tensor for name, tensor in timm.items()}
    for i in (0, 3, 6):
        content[f"module.base_encoder.head.{i}.weight"] = torch.ones(5, DIM)
    content |= {"module.base_encoder.head.1.num_batches_tracked": torch.tensor(7)}
    content |= {"module.predictor.0.weight": torch.ones(5, 5), "module.predictor.1.running_mean": torch.ones(5)}
    optimizer = {"state": {0: {"mu": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"state_dict": content, "optimizer": optimizer, "epoch": 300}, tmp_path / "p.pth.tar")
    vit, report = load_backbone(tmp_path / "p.pth.tar", heads=HEADS)
    agree(vit, theirs)
    assert report.format == "MoCo v3, pre-training in torch file" and report.unexpected == ()
    assert f"second encoder ({len(timm)} tensors)" in report.notes[0]
    assert "projection head (2 tensors)" in report.notes[0] and "classification head (4 tensors)" in report.notes[0]


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2-registers"])
@pytest.mark.parametrize("prefix", ["", "vit.", "dinov2."])
@pytest.mark.parametrize("version", ["as saved (4)", "in memory (5)"])
def test_transformers(tmp_path, kind, prefix, version):
    theirs = model(kind)
    tensors = stored(theirs, tmp_path) if version.startswith("as saved") else dict(theirs.state_dict())
    theirs.config.save_pretrained(tmp_path)
    head = {"classifier.weight": torch.ones(11, DIM), "classifier.bias": torch.ones(11)}
    head |= {f"{prefix}pooler.dense.weight": torch.ones(DIM, DIM)}
    path = write({prefix + name: tensor for name, tensor in tensors.items()} | head, tmp_path / "model.safetensors")
    vit, report = load_backbone(path)
    agree(vit, theirs)
    assert report.format.startswith("ViT" if kind == "vit" else "DINOv2")
    assert (report.missing, report.unexpected) == ((), ())
    assert re.search(r"pooler \(1 tensor\).*classification head \(2 tensors\)|head.*pooler", report.notes[0])
    assert vit.config.norm_eps == theirs.config.layer_norm_eps == (1e-12 if kind == "vit" else 1e-6)
    assert vit.config.heads == HEADS and vit.config.registers == (2 if kind == "dinov2-registers" else 0)


def test_folder_of_transformers(tmp_path):
    theirs = model("dinov2")
    theirs.save_pretrained(tmp_path)
    agree(load_backbone(tmp_path)[0], theirs)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    agree(load_backbone(str(tmp_path))[0], theirs)


def test_epsilon_without_config_is_that_of_the_library_and_said(tmp_path):
    for kind, eps in (("vit", 1e-12), ("dinov2", 1e-6)):
        path = write(stored(model(kind), tmp_path / kind), tmp_path / f"{kind}.safetensors")
        vit, report = load_backbone(path, heads=HEADS)
        agree(vit, model(kind))
        assert vit.config.norm_eps == eps and f"default epsilon {eps:g}" in " ".join(report.notes)
    other = model("vit", layer_norm_eps=1e-3)
    other.save_pretrained(tmp_path)
    agree(load_backbone(tmp_path)[0], other)


@pytest.mark.parametrize("chunked", [False, True])
def test_official_dinov2(tmp_path, chunked):
    """timm's names with registers called register_tokens, a mask token, and blocks.chunk.i where they are chunked."""
    theirs = model("dinov2-registers")
    timm = timm_names(theirs, tmp_path / "theirs")
    official = {name.replace("reg_token", "register_tokens"): tensor for name, tensor in timm.items()}
    if chunked:
        official = {re.sub(r"^blocks\.(\d+)", r"blocks.\1.\1", name): tensor for name, tensor in official.items()}
    torch.save(official | {"mask_token": torch.ones(1, DIM)}, tmp_path / "dinov2_reg.pth")
    vit, report = load_backbone(tmp_path / "dinov2_reg.pth", heads=HEADS)
    agree(vit, theirs)
    assert report.format == "DINOv2 in torch file" and report.notes == ("dropped: mask token (1 tensor)",)


def test_timm_dinov2_with_registers_has_no_position_for_the_class(tmp_path):
    """timm adds the class token's position to the token itself, and drops the row."""
    theirs = model("dinov2-registers")
    timm = timm_names(theirs, tmp_path / "theirs")
    positions = timm["pos_embed"]
    timm |= {"cls_token": timm["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    vit, _ = load_backbone(write(timm, tmp_path / "reg.safetensors"), heads=HEADS)
    assert not vit.config.position_class
    agree(vit, theirs)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_onnx(tmp_path, kind, fused, cut):
    theirs = model(kind)
    eps = theirs.config.layer_norm_eps
    graph = GraphWriter(stored(theirs, tmp_path), HEADS, eps, "backbone.", fused, cut)
    (tmp_path / "model.onnx").write_bytes(graph.write((2, 3, IMAGE, IMAGE)))
    vit, report = load_backbone(tmp_path / "model.onnx")
    agree(vit, theirs)
    assert vit.config.heads == HEADS and vit.config.norm_eps == eps
    assert report.format.endswith("of transformers in ONNX") and report.notes == ("dropped: decoder (1 tensor)",)


@pytest.mark.parametrize("container", ["npz", "safetensors", "transformers"])
def test_real_widths(tmp_path, container):
    """ViT-S/16 at 224 pixels and DINOv2-S/14 at 84, two blocks; heads and epsilon by what the format implies."""
    sizes = SMALL_14 if container == "transformers" else {**SMALL, "layer_norm_eps": 1e-6}
    theirs = model("dinov2" if container == "transformers" else "vit", **sizes)
    timm = timm_names(theirs, tmp_path)
    path = tmp_path / "model.safetensors"
    if container == "npz":
        np.savez(path := tmp_path / "S_16.npz", **google_arrays(timm, 6))
    elif container == "safetensors":
        (tmp_path / "config.json").unlink()
        write(timm, path)
    vit, report = load_backbone(path)
    agree(vit, theirs, images(sizes["image_size"]))
    assert ("6 heads, as published" in report.sentence()) == (container == "safetensors")


def test_half_precision_becomes_float32(tmp_path, vit_1e6):
    theirs, timm = vit_1e6
    half = {name: tensor.half() for name, tensor in timm.items()}
    vit, _ = load_backbone(write(half, tmp_path / "half.safetensors"), heads=HEADS)
    assert {parameter.dtype for parameter in vit.parameters()} == {torch.float32}
    torch.testing.assert_close(vit(images()), hidden(theirs)[:, 0], atol=2e-2, rtol=2e-2)


def test_average_pooling(tmp_path, vit_1e6):
    """The mean of the patch tokens, then fc_norm; a file with norm alone lends it, and the report says so."""
    theirs, timm = vit_1e6
    plain, report = load_backbone(write(timm, tmp_path / "cls.safetensors"), heads=HEADS, pooling="avg")
    mean = before_norm(theirs)[:, 1:].mean(1)
    expected = torch.nn.functional.layer_norm(mean, (DIM,), timm["norm.weight"], timm["norm.bias"], 1e-6)
    torch.testing.assert_close(plain(images()), expected, atol=1e-5, rtol=1e-5)
    assert "its norm serves as fc_norm, for pooling 'avg'" in report.notes
    average = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: timm[name] for name in timm}
    same, report = load_backbone(write(average, tmp_path / "avg.safetensors"), heads=HEADS, pooling="avg")
    torch.testing.assert_close(same(images()), expected, atol=1e-5, rtol=1e-5)
    assert report.notes == () and report.missing == ()
    agree(load_backbone(tmp_path / "avg.safetensors", heads=HEADS)[0], theirs)


def test_both_norms_keep_the_one_that_is_used(tmp_path, vit_1e6):
    theirs, timm = vit_1e6
    both = timm | {"fc_norm.weight": torch.full((DIM,), 5.0), "fc_norm.bias": torch.ones(DIM)}
    vit, report = load_backbone(write(both, tmp_path / "both.safetensors"), heads=HEADS)
    agree(vit, theirs)
    assert report.notes == ("dropped: fc_norm, which pooling 'cls' does not use",)


def test_no_class_token_is_pooled_by_the_mean(tmp_path, vit_1e6):
    _, timm = vit_1e6
    timm["pos_embed"] = timm["pos_embed"][:, 1:]
    vit, report = load_backbone(
        write({n: timm[n] for n in timm if n != "cls_token"}, tmp_path / "gap.safetensors"), heads=HEADS
    )
    assert vit.config.pooling == "avg" and vit(images()).shape == (2, DIM)
    assert "no class token: pooling 'avg' instead of 'cls'" in report.notes


def test_another_image_size_resamples_positions(tmp_path, vit_1e6):
    """Oracle: Pillow's bicubic resampling, which is also antialiased, of each of the grid's columns of numbers."""
    from PIL import Image

    _, timm = vit_1e6
    path = write(timm, tmp_path / "timm.safetensors")
    vit, report = load_backbone(path, image=(2 * PATCH, 7 * PATCH), heads=HEADS)
    assert vit.config.image == (10, 35) and vit(torch.zeros(1, 3, 10, 35)).shape == (1, DIM)
    assert report.notes == ("positions resampled from 4 x 4 to 2 x 7",)
    grid = timm["pos_embed"][0, 1:].unflatten(0, (4, 4)).numpy()
    planes = [
        Image.fromarray(np.ascontiguousarray(grid[..., i])).resize((7, 2), Image.Resampling.BICUBIC) for i in range(DIM)
    ]
    expected = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes], -1)).flatten(0, 1)
    torch.testing.assert_close(vit.pos_embed[0, 1:].detach(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(vit.pos_embed[0, 0], timm["pos_embed"][0, 0])
    square, _ = load_backbone(path, image=35, heads=HEADS)
    assert square.config.grid == (7, 7)


def test_missing_biases_and_norm_are_said(tmp_path, vit_1e6):
    _, timm = vit_1e6
    lacking = {n: timm[n] for n in timm if n not in ("norm.weight", "norm.bias") and not n.endswith("mlp.fc1.bias")}
    vit, report = load_backbone(write(lacking, tmp_path / "bare.safetensors"), heads=HEADS)
    assert sorted(report.missing) == ["blocks.0.mlp.fc1.bias", "blocks.1.mlp.fc1.bias", "norm.bias", "norm.weight"]
    assert (vit.norm.weight == 1).all() and (vit.norm.bias == 0).all() and (vit.blocks[1].mlp.fc1.bias == 0).all()
    no_qkv_bias = {name: timm[name] for name in timm if not name.endswith("qkv.bias")}
    vit, report = load_backbone(write(no_qkv_bias, tmp_path / "qkv.safetensors"), heads=HEADS)
    assert not vit.config.qkv_bias and report.missing == ()


def test_the_loaded_vit_is_its_own(tmp_path, vit_1e6):
    """Learned in place without touching the file, or another load of it."""
    _, timm = vit_1e6
    path = write(timm, tmp_path / "timm.safetensors")
    first, second = (load_backbone(path, heads=HEADS)[0] for _ in range(2))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in first.parameters())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert torch.equal(second.pos_embed, timm["pos_embed"])
    assert torch.equal(load_file(path)["pos_embed"], timm["pos_embed"])


def test_a_config_of_another_model_is_not_used(tmp_path):
    """Beside a file of width 21 lies the config.json of a model of another width: nothing is taken from it."""
    path = write(stored(model("vit"), tmp_path), tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 24, "layer_norm_eps": 1e-3}))
    agree(load_backbone(path, heads=HEADS)[0], model("vit"))


def test_what_the_header_says(tmp_path, vit_1e6):
    """Heads, epsilon and provenance in a safetensors header, as a derived backbone is kept."""
    theirs = model("vit", layer_norm_eps=1e-3)
    path = write(
        timm_names(theirs, tmp_path / "t"), tmp_path / "m.safetensors", heads="3", norm_eps="0.001", provenance="ours"
    )
    vit, report = load_backbone(path)
    agree(vit, theirs)
    assert report.notes == ("provenance: ours (no source given)",)
    with pytest.raises(InputError, match=r"header of .* needs a number"):
        load_backbone(write(vit_1e6[1], tmp_path / "n.safetensors", heads="three"))


def test_sentence():
    report = LoadReport("a.npz", "Google ViT in npz", "12", "34", (), tuple(f"u{i}" for i in range(6)), ("noted",))
    assert report.sentence() == (
        "a.npz (Google ViT in npz): missing: nothing; unexpected: u0, u1, u2, u3 and 2 more; noted; sha256 12, md5 34."
    )
