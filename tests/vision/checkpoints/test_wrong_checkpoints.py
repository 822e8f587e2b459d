"""Checkpoints of other networks, of other sizes, or damaged ones: one sentence that names the file."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.loading import load_backbone
from moe_prompt.vision.vit.transformer import ViTConfig
from tests.builders.vit_files import DEPTH, DIM, HEADS, IMAGE, PATCH, model, timm_names, write


@pytest.fixture
def timm(tmp_path):
    return timm_names(model("vit"), tmp_path / "theirs")


def without(name):
    return lambda tensors: {key: tensors[key] for key in tensors if key != name}


def plus(**extra):
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in extra.items()}


WRONG = {
    "no positions": (without("pos_embed"), "is not a plain ViT: it lacks pos_embed"),
    "no class token but its position": (without("cls_token"), "needs a square grid of positions"),
    "a lost tensor": (
        without("blocks.1.mlp.fc2.weight"),
        "is cut short or not a plain ViT: it lacks blocks.1.mlp.fc2.weight",
    ),
    "a lost bias": (without("blocks.1.mlp.fc2.bias"), "it lacks blocks.1.mlp.fc2.bias"),
    "a lost block": (lambda t: {n: t[n] for n in t if "blocks.0" not in n}, "it lacks blocks.0.attn.qkv.weight"),
    "a wrong shape": (
        plus(blocks__1__attn__proj__weight=torch.ones(2, 3)),
        "blocks.1.attn.proj.weight in .* needs shape",
    ),
    "not a number": (plus(norm__bias=torch.full((DIM,), torch.nan)), "norm.bias in .* not finite"),
    "integers": (plus(norm__bias=torch.ones(DIM, dtype=torch.int32)), "norm.bias in .* needs floating-point"),
    "gated": (plus(blocks__0__mlp__w12__weight=torch.ones(2)), r"has gated \(SwiGLU\) MLPs"),
    "gated and packed": (plus(blocks__0__mlp__fc1__weight=torch.ones(6 * DIM, DIM)), r"has gated \(SwiGLU\) MLPs"),
    "normed queries": (
        plus(blocks__0__attn__q_norm__weight=torch.ones(7)),
        "not a plain ViT, which has no place for blocks.0.attn.q_norm",
    ),
    "a norm before": (
        plus(norm_pre__weight=torch.ones(DIM)),
        "not a plain ViT, which has no place for norm_pre.weight",
    ),
    "distilled": (plus(dist_token=torch.ones(1, 1, DIM)), "not a plain ViT, which has no place for dist_token"),
    "grey": (
        plus(patch_embed__proj__weight=torch.ones(DIM, 1, PATCH, PATCH)),
        "patch_embed.proj.weight in .* needs shape",
    ),
    "two encoders": (plus(other__patch_embed__proj__weight=torch.ones(1)), "holds 2 encoders"),
    "two copies of a block": (plus(blocks__9__1__norm1__bias=torch.ones(DIM)), "holds blocks.1.norm1.bias twice"),
    "flat kernel": (plus(patch_embed__proj__weight=torch.ones(DIM, 75)), "patch_embed.proj.weight in .* needs 4 axes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoints_are_refused_in_a_sentence(tmp_path, timm, case):
    change, says = WRONG[case]
    path = write(change(timm), tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match=says) as caught:
        load_backbone(path, heads=HEADS)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        [
            "patch_embed.proj.weight",
            "layers.0.blocks.0.attn.qkv.weight",
            "layers.0.blocks.0.attn.relative_position_bias_table",
        ],
        [
            "swin.embeddings.patch_embeddings.projection.weight",
            "swin.encoder.layers.0.blocks.0.attention.self.query.weight",
        ],
        ["conv1.weight", "layer1.0.conv1.weight"],
        ["model.vision_model.encoder.layers.0.self_attn.q_proj.weight"],
    ],
    ids=["swin of timm", "swin of transformers", "resnet", "clip"],
)
def test_other_networks_are_refused(tmp_path, names):
    path = write({name: torch.ones(2, 3, 2, 2) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"is not (a plain|the checkpoint of a) ViT") as caught:
        load_backbone(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 42}, "width is 21, and 42"),
        ({"depth": 3}, "blocks is 2, and 3"),
        ({"patch": 4, "image": (20, 20)}, "patch side is 5"),
    ],
)
def test_another_size_than_required(tmp_path, timm, change, says):
    path = write(timm, tmp_path / "timm.safetensors")
    right = {"dim": DIM, "depth": DEPTH, "heads": HEADS, "patch": PATCH, "mlp_dim": 3 * DIM, "image": (IMAGE, IMAGE)}
    load_backbone(path, heads=HEADS, config=ViTConfig(**right))
    with pytest.raises(InputError, match=f"checkpoint of another model: its {says}"):
        load_backbone(path, heads=HEADS, config=ViTConfig(**(right | change)))


def test_image_size_and_heads_that_do_not_fit(tmp_path, timm):
    path = write(timm, tmp_path / "timm.safetensors")
    with pytest.raises(InputError, match="patches of 5 pixels"):
        load_backbone(path, image=23, heads=HEADS)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*heads of a ViT must divide"):
        load_backbone(path, heads=4)


def test_another_activation_is_refused(tmp_path):
    model("vit").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    with pytest.raises(InputError, match="activation 'quick_gelu'"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        load_backbone(tmp_path)


def test_unknown_names(tmp_path):
    for name, says in {
        "dinov3": "neither a file nor a backbone known here",
        str(tmp_path / "gone.pth"): "does not exist",
        "weights/vit.npz": "does not exist",
    }.items():
        with pytest.raises(InputError, match=says) as caught:
            load_backbone(name)
        assert name in str(caught.value)
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a.safetensors is not the checkpoint of a ViT: it holds a;"):
        load_backbone(tmp_path / "a.safetensors")
