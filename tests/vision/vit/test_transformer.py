"""The ViT against one written out in loops, its shortcuts, and its sizes."""

import math

import numpy as np
import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer, ViTConfig, resample_positions
from tests.builders.small_vit import SMALL, pictures, small_vit


def by_hand(vit: VisionTransformer, image: np.ndarray) -> np.ndarray:
    """Tokens of one picture before the last norm, in NumPy, one token and one head at a time."""
    w = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
    c, (rows, columns) = vit.config, vit.config.grid
    patches = []
    for i in range(rows):
        for j in range(columns):
            patch = image[:, i * c.patch : (i + 1) * c.patch, j * c.patch : (j + 1) * c.patch]
            patches.append(np.einsum("dcij,cij->d", w["patch_embed.proj.weight"], patch) + w["patch_embed.proj.bias"])
    position = w["pos_embed"][0]
    own = int(c.class_token and c.position_class)
    tokens = [patch + position[own + k] for k, patch in enumerate(patches)]
    if c.registers:
        tokens = [*w["reg_token"][0], *tokens]
    if c.class_token:
        tokens = [w["cls_token"][0, 0] + (position[0] if own else 0), *tokens]

    def norm(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + c.norm_eps) * w[name + ".weight"] + w[name + ".bias"]

    width = c.dim // c.heads
    for i in range(c.depth):
        name = f"blocks.{i}."
        qkv = [w[name + "attn.qkv.weight"] @ norm(x, name + "norm1") + w[name + "attn.qkv.bias"] for x in tokens]
        mixed = [np.zeros(c.dim) for _ in tokens]
        for h in range(c.heads):
            part = slice(h * width, (h + 1) * width)
            q, k, v = ([x[m * c.dim : (m + 1) * c.dim][part] for x in qkv] for m in range(3))
            for a in range(len(tokens)):
                scores = np.array([q[a] @ k[b] / math.sqrt(width) for b in range(len(tokens))])
                gates = np.exp(scores) / np.exp(scores).sum()
                mixed[a][part] = sum(gates[b] * v[b] for b in range(len(tokens)))
        scale1 = w.get(name + "ls1.gamma", 1.0)
        scale2 = w.get(name + "ls2.gamma", 1.0)
        for a, x in enumerate(tokens):
            x = x + scale1 * (w[name + "attn.proj.weight"] @ mixed[a] + w[name + "attn.proj.bias"])
            z = w[name + "mlp.fc1.weight"] @ norm(x, name + "norm2") + w[name + "mlp.fc1.bias"]
            z = np.array([u * 0.5 * (1 + math.erf(u / math.sqrt(2))) for u in z])
            tokens[a] = x + scale2 * (w[name + "mlp.fc2.weight"] @ z + w[name + "mlp.fc2.bias"])
    return np.stack(tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_scale": True, "registers": 2, "position_class": False},
        {"pooling": "avg"},
        {"class_token": False, "pooling": "avg"},
    ],
)
def test_features_are_those_of_the_formula(changes):
    vit = small_vit(**changes)
    images, c = pictures(2, vit.config), vit.config
    features = vit(images)
    for image, feature in zip(images.numpy(), features, strict=True):
        tokens = by_hand(vit, image)
        pooled = tokens[0] if c.pooling == "cls" else tokens[c.extra :].mean(0)
        norm = vit.norm if c.pooling == "cls" else vit.fc_norm
        wanted = norm(torch.from_numpy(pooled))
        torch.testing.assert_close(feature, wanted, rtol=0, atol=1e-10)


def test_the_class_row_alone_is_the_class_row_of_all_tokens():
    vit = small_vit()
    torch.testing.assert_close(vit(pictures()), vit.tokens(pictures())[:, 0], rtol=0, atol=1e-12)


def test_published_sizes():
    counts = {name: sum(p.numel() for p in VisionTransformer(VIT_SIZES[name]).parameters()) for name in ("vit-b/16",)}
    assert counts == {"vit-b/16": 85_798_656}
    huge = VIT_SIZES["vit-h/14"]
    assert (huge.dim // huge.heads, huge.grid) == (80, (16, 16))


@pytest.mark.parametrize(
    "changes", [{}, {"layer_scale": True, "registers": 3, "position_class": False}, {"qkv_bias": False}]
)
def test_sizes_are_read_off_the_tensors(changes):
    square = {**SMALL.__dict__, "image": (12, 12), **changes}
    config = ViTConfig(**square)
    vit = VisionTransformer(config)
    assert ViTConfig.from_tensors(vit.state_dict(), "a file", heads=3) == config


def test_a_file_that_is_no_vit_is_named():
    with pytest.raises(InputError, match=r"resnet\.safetensors is not a plain ViT: it lacks patch_embed"):
        ViTConfig.from_tensors({"conv1.weight": torch.zeros(1)}, "resnet.safetensors")
    tensors = VisionTransformer(ViTConfig(**SMALL.__dict__)).state_dict()
    with pytest.raises(InputError, match="square grid"):
        ViTConfig.from_tensors({**tensors, "pos_embed": torch.zeros(1, 7, 24)}, "a file")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 5}, "heads of a ViT must divide"),
        ({"image": (8, 13)}, "multiples of it"),
        ({"pooling": "max"}, "pooling is"),
        ({"class_token": False}, "needs a class token"),
    ],
)
def test_sizes_that_do_not_fit(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        ViTConfig(**{**SMALL.__dict__, **changes})


def test_pictures_of_another_size_are_refused_in_a_sentence():
    with pytest.raises(InputError, match="8 x 12 pixels: got 12 x 8"):
        small_vit()(pictures().mT)


def test_resampled_positions_keep_the_class_row_and_a_plane():
    """Bicubic interpolation repeats a linear ramp away from the edges, and its mean everywhere."""
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    ramp = (2 * i - 3 * j).reshape(1, 48, 1)
    positions = torch.cat([torch.full((1, 1, 1), 7.0), ramp], dim=1)
    resized = resample_positions(positions, (8, 6), (16, 12), 1)
    assert resized[0, 0, 0] == 7
    y, x = torch.meshgrid(torch.arange(16) / 2 - 0.25, torch.arange(12) / 2 - 0.25, indexing="ij")
    inner = resized[0, 1:, 0].reshape(16, 12)[4:-4, 4:-4]
    torch.testing.assert_close(inner, (2 * y - 3 * x)[4:-4, 4:-4], rtol=0, atol=1e-5)
    assert torch.equal(resample_positions(positions, (8, 6), (8, 6), 1), positions)
    with pytest.raises(InputError, match="need 49 rows: got 48"):
        resample_positions(ramp, (8, 6), (4, 3), 1)


def test_a_fingerprint_sees_one_changed_weight():
    vit, same = small_vit(), small_vit()
    assert vit.fingerprint() == same.fingerprint() and len(vit.fingerprint()) == 64
    same.norm.bias.data[3] += 1e-3
    assert vit.fingerprint() != same.fingerprint()
