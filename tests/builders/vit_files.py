"""Models of transformers with random weights, and files of every checkpoint format written from them by plain loops."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTModel
from transformers import ViTConfig as TheirConfig

HEADS, COLUMNS, DEPTH, PATCH, GRID, HIDDEN = 3, 7, 2, 5, 4, 63
DIM, IMAGE = HEADS * COLUMNS, PATCH * GRID
SIZES = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": IMAGE,
    "patch_size": PATCH,
}


@cache
def model(kind: str, **sizes) -> torch.nn.Module:
    """One of transformers' models, every parameter drawn, in evaluation mode."""
    sizes = {**SIZES, **sizes}
    if kind == "vit":
        built = ViTModel(TheirConfig(intermediate_size=3 * sizes["hidden_size"], **sizes), add_pooling_layer=False)
    elif kind == "dinov2":
        built = Dinov2Model(Dinov2Config(mlp_ratio=3, **sizes))
    else:
        built = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(mlp_ratio=3, num_register_tokens=2, **sizes))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = name.endswith(("norm1.weight", "norm2.weight", "lambda1")) or "layernorm" in name
            parameter.copy_(1 + 0.2 * noise if scale and "bias" not in name else 0.1 * noise)
    return built.eval()


def images(size: int = IMAGE) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(11))


def hidden(theirs: torch.nn.Module, pictures: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens after the last norm (2, tokens, d)."""
    with torch.no_grad():
        return theirs(images() if pictures is None else pictures).last_hidden_state


def before_norm(theirs: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return theirs(images(), output_hidden_states=True).hidden_states[-1]


def stored(theirs: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Its tensors under the names of version 4, in which `save_pretrained` writes."""
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def timm_names(theirs: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Its tensors under timm's names, one by one."""
    v4 = stored(theirs, folder)
    named = {
        "cls_token": v4["embeddings.cls_token"],
        "pos_embed": v4["embeddings.position_embeddings"],
        "patch_embed.proj.weight": v4["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": v4["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": v4["layernorm.weight"],
        "norm.bias": v4["layernorm.bias"],
    }
    if "embeddings.register_tokens" in v4:
        named["reg_token"] = v4["embeddings.register_tokens"]
    for i in range(theirs.config.num_hidden_layers):
        layer, block, scaled = f"encoder.layer.{i}.", f"blocks.{i}.", f"encoder.layer.{i}.norm1.weight" in v4
        for end in ("weight", "bias"):
            q, k, v = (v4[f"{layer}attention.attention.{part}.{end}"] for part in ("query", "key", "value"))
            named[f"{block}attn.qkv.{end}"] = torch.vstack([q, k, v]) if end == "weight" else torch.hstack([q, k, v])
            named[f"{block}attn.proj.{end}"] = v4[f"{layer}attention.output.dense.{end}"]
            named[f"{block}norm1.{end}"] = v4[layer + ("norm1." if scaled else "layernorm_before.") + end]
            named[f"{block}norm2.{end}"] = v4[layer + ("norm2." if scaled else "layernorm_after.") + end]
            named[f"{block}mlp.fc1.{end}"] = v4[layer + ("mlp.fc1." if scaled else "intermediate.dense.") + end]
            named[f"{block}mlp.fc2.{end}"] = v4[layer + ("mlp.fc2." if scaled else "output.dense.") + end]
        if scaled:
            for j in (1, 2):
                named[f"{block}ls{j}.gamma"] = v4[f"{layer}layer_scale{j}.lambda1"]
    return named


def google_arrays(timm: dict[str, torch.Tensor], heads: int) -> dict[str, np.ndarray]:
    """timm's tensors as Google's JAX code keeps them, head by head."""
    t = {name: tensor.numpy() for name, tensor in timm.items()}
    dim = len(t["norm.bias"])
    columns, depth = dim // heads, 1 + max(int(name.split(".")[1]) for name in t if name.startswith("blocks."))
    arrays = {
        "cls": t["cls_token"],
        "Transformer/posembed_input/pos_embedding": t["pos_embed"],
        "embedding/kernel": np.moveaxis(t["patch_embed.proj.weight"], (0, 1), (3, 2)),
        "embedding/bias": t["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": t["norm.weight"],
        "Transformer/encoder_norm/bias": t["norm.bias"],
    }
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{theirs}LayerNorm_{number}/scale"] = t[f"{ours}{norm}.weight"]
            arrays[f"{theirs}LayerNorm_{number}/bias"] = t[f"{ours}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for j, part in enumerate(("query", "key", "value")):
            kernel, bias = np.zeros((dim, heads, columns), np.float32), np.zeros((heads, columns), np.float32)
            for h in range(heads):
                rows = slice(j * dim + h * columns, j * dim + (h + 1) * columns)
                kernel[:, h], bias[h] = t[f"{ours}attn.qkv.weight"][rows].T, t[f"{ours}attn.qkv.bias"][rows]
            arrays[f"{attention}{part}/kernel"], arrays[f"{attention}{part}/bias"] = kernel, bias
        out = np.zeros((heads, columns, dim), np.float32)
        for h in range(heads):
            out[h] = t[f"{ours}attn.proj.weight"][:, h * columns : (h + 1) * columns].T
        arrays[f"{attention}out/kernel"], arrays[f"{attention}out/bias"] = out, t[f"{ours}attn.proj.bias"]
        for j, layer in enumerate(("fc1", "fc2")):
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = t[f"{ours}mlp.{layer}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = t[f"{ours}mlp.{layer}.bias"]
    return arrays


def write(tensors: dict[str, torch.Tensor], path: Path, **said: str) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, said or None)
    return path
