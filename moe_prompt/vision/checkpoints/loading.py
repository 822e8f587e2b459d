"""Load pre-trained vision transformers from files, from the hub or by name, and report what the file contained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from moe_prompt.attention.tensor_files import checked
from moe_prompt.errors import InputError, require
from moe_prompt.vision.checkpoints.backbones import (
    BACKBONES,
    NamedBackbone,
    PublishedFile,
    fetch_backbone,
    locate,
    md5_of,
)
from moe_prompt.vision.checkpoints.files import read_checkpoint, weights_in
from moe_prompt.vision.checkpoints.formats.recognise import Encoder, encoder_of
from moe_prompt.vision.downloads.registries import Teller, sha256_of
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer, ViTConfig, resample_positions

__all__ = ["BACKBONES", "LoadReport", "NamedBackbone", "fetch_backbone", "load_backbone"]

_OPTIONAL = re.compile(r"(fc_)?norm\.weight|.*\.bias")
"""Tensors that a file may lack: the scale of a norm is then one and a bias zero."""

_AXES = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    "reg_token": 3,
    "blocks.0.attn.qkv.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc2.weight": 2,
}


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint contained, and how it was used.

    `missing` tensors were not in the file and are zero (biases) or one (scales of norms). `unexpected` tensors were in
    the file and not used, apart from heads, decoders and projectors, which the notes name.
    """

    source: str
    format: str
    sha256: str
    md5: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]

    def sentence(self) -> str:
        """The whole report as one sentence."""
        said = [
            f"missing: {_some(self.missing)}",
            f"unexpected: {_some(self.unexpected)}",
            *self.notes,
            f"sha256 {self.sha256}, md5 {self.md5}",
        ]
        return f"{self.source} ({self.format}): {'; '.join(said)}."


def load_backbone(
    name_or_path: str | Path,
    image: int | tuple[int, int] | None = None,
    pooling: str = "cls",
    heads: int | None = None,
    config: ViTConfig | None = None,
    progress: Teller | None = None,
) -> tuple[VisionTransformer, LoadReport]:
    """A pre-trained ViT from a file, a folder, a name in `BACKBONES` or a name on the hub.

    Args:
        image: pixels of a side, or (height, width); positions are resampled to it. None: the size of the file.
        pooling: "cls", or "avg" for the mean of the patch tokens.
        heads: for a file that does not show them and whose heads are not those of the published widths.
        config: a width, depth, patch and MLP that the file must have.

    Raises:
        InputError: naming the file: missing or damaged, not a plain ViT, tensors lacking, another size than `config`.
    """
    named = None if Path(name_or_path).exists() else BACKBONES.get(str(name_or_path))
    path = weights_in(locate(name_or_path, progress))
    source, stored = str(path), read_checkpoint(path)
    encoder = encoder_of(stored)
    tensors = {name: checked(encoder.tensors, name, source) for name in encoder.tensors}
    own = _sizes(tensors, encoder, source, heads, pooling)
    _agree(own, config or (VIT_SIZES[named.size] if named is not None else own), source)
    wanted = replace(own, image=own.image if image is None else (image, image) if isinstance(image, int) else image)
    tensors, notes = _pooled(tensors, own, pooling)
    extra = own.positions - math.prod(own.grid)
    tensors["pos_embed"] = resample_positions(tensors["pos_embed"], own.grid, wanted.grid, extra)
    vit, missing = _filled(wanted, tensors, source)
    if heads is None and encoder.heads is None:
        notes += (f"{own.heads} heads, as published for width {own.dim}: the file does not show them",)
    md5, kind = md5_of(path), f"{encoder.format} in {stored.container}"
    notes = (*_papers_file(md5), *encoder.notes, *notes, *_resampled(own, wanted))
    return vit, LoadReport(source, kind, sha256_of(path), md5, missing, encoder.unexpected, notes)


def _sizes(tensors: Mapping[str, Tensor], encoder: Encoder, source: str, heads: int | None, pooling: str) -> ViTConfig:
    """Sizes of the ViT in the file, with its own grid of positions."""
    for name, axes in _AXES.items():
        require(
            name not in tensors or tensors[name].ndim == axes,
            f"{name} in {source} needs {axes} axes: got {tuple(tensors[name].shape) if name in tensors else ()}.",
        )
    try:
        config = ViTConfig.from_tensors(tensors, source, heads=heads or encoder.heads, pooling=pooling)
    except InputError as error:
        raise error if source in str(error) else InputError(f"{source}: {error}") from error
    hidden = len(tensors["blocks.0.mlp.fc1.weight"])
    columns = tensors["blocks.0.mlp.fc2.weight"].shape[1] if "blocks.0.mlp.fc2.weight" in tensors else hidden
    require(
        hidden == columns,
        f"{source} has gated (SwiGLU) MLPs (fc1 gives {hidden} numbers, fc2 takes {columns}), and here every MLP is "
        "fc2(gelu(fc1(x))): give the checkpoint of a ViT without them.",
    )
    return replace(config, norm_eps=encoder.norm_eps)


def _agree(own: ViTConfig, required: ViTConfig, source: str) -> None:
    for field, what in {"dim": "width", "depth": "blocks", "patch": "patch side", "mlp_dim": "MLP width"}.items():
        found, wanted = getattr(own, field), getattr(required, field)
        require(
            found == wanted,
            f"{source} is the checkpoint of another model: its {what} is {found}, and {wanted} was required; give the "
            "checkpoint of that model.",
        )


def _pooled(tensors: dict[str, Tensor], own: ViTConfig, pooling: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The last norm under the name that the pooling needs, and what is to be said of that."""
    needed, other = ("norm", "fc_norm") if own.pooling == "cls" else ("fc_norm", "norm")
    notes: tuple[str, ...] = ()
    if own.pooling != pooling:
        notes = (f"no class token: pooling {own.pooling!r} instead of {pooling!r}",)
    has = {norm: f"{norm}.weight" in tensors for norm in (needed, other)}
    if has[other] and not has[needed]:
        notes += (f"its {other} serves as {needed}, for pooling {own.pooling!r}",)
        return {re.sub(f"^{other}\\.", f"{needed}.", name): tensors[name] for name in tensors}, notes
    if has[other]:
        notes += (f"dropped: {other}, which pooling {own.pooling!r} does not use",)
    return {name: tensors[name] for name in tensors if not name.startswith(f"{other}.")}, notes


def _filled(config: ViTConfig, tensors: Mapping[str, Tensor], source: str) -> tuple[VisionTransformer, tuple[str, ...]]:
    """The ViT with the file's tensors in it, and the names it has beyond them."""
    with torch.device("meta"):
        vit = VisionTransformer(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    missing = [name for name in shapes if name not in tensors]
    kinds = {_kind(name) for name in tensors}
    lacking = [name for name in missing if not _OPTIONAL.fullmatch(name) or _kind(name) in kinds]
    require(not lacking, f"{source} is cut short or not a plain ViT: it lacks {_some(lacking)}.")
    for name, tensor in tensors.items():
        require(name in shapes, f"{source} is not a plain ViT: {name} has no place among its {config.depth} blocks.")
        require(
            tuple(tensor.shape) == shapes[name],
            f"{name} in {source} needs shape {shapes[name]}, like the rest of it: got {tuple(tensor.shape)}.",
        )
    state = {name: tensor.float().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    state |= {name: torch.full(shapes[name], float(name.endswith("weight"))) for name in missing}
    vit.load_state_dict(state, assign=True)
    return vit, tuple(missing)


def _kind(name: str) -> str:
    """One name for the same tensor of all blocks."""
    return re.sub(r"\.\d+\.", ".i.", name)


def _papers_file(md5: str) -> tuple[str, ...]:
    known = {name: named for name, named in BACKBONES.items() if isinstance(named, PublishedFile)}
    return tuple(
        f"md5 begins with {named.md5_prefix}: this is {name}, {named.about}"
        for name, named in known.items()
        if md5.startswith(named.md5_prefix)
    )


def _resampled(own: ViTConfig, wanted: ViTConfig) -> tuple[str, ...]:
    if own.grid == wanted.grid:
        return ()
    (height, width), (new_height, new_width) = own.grid, wanted.grid
    return (f"positions resampled from {height} x {width} to {new_height} x {new_width}",)


def _some(names: tuple[str, ...] | list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) + more) or "nothing"
