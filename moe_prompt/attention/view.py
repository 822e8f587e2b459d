r"""An attention block on a picture, seen as mixtures of experts: the analysis behind `moe-prompt view`, no drawing.

For each head and each query (a patch of the picture, or the class token) the report holds the gate over N pre-trained
and N_p prompt experts, and of it

    mass on prompts        m_i = sum_j' gate_i(N + j')                       (uniform gate: N_p / (N + N_p))
    effective experts      exp(-sum_j gate_ij log gate_ij)                   (between 1 and N + N_p)
    input-adaptivity       E |P_j' - E P_j'|^2 / E |P_j'|^2                  (0: blind to its input; at most 1)

the last over shifted views of the picture, for VPT (arXiv 2203.12119) and VAPT (arXiv 2501.18936) prompts alike. The
prompts are untrained, drawn at the scale of normalised tokens: the report shows what kind of expert each is, not what
it would learn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Generator, Tensor

from moe_prompt.attention.block_weights import AttentionWeights, Block, find_block
from moe_prompt.attention.heads import MultiHeadAttentionMoE
from moe_prompt.attention.pictures import Box, PatchEmbedding, find_embedding, pixels, read_picture, shifted_boxes
from moe_prompt.attention.prompts import AdaptivePrompt, ConstantPrompt, FeatureProjector, PromptExpert
from moe_prompt.attention.tensor_files import TensorFile
from moe_prompt.errors import InputError, choose, require

SHIFTED_VIEWS = 16
_FEATURE_RANK = 8
_WIDTH = 192  # of a random block: three heads of 64 columns, the smallest of the usual ViTs


@dataclass(frozen=True)
class ViewReport:
    """What the heads of one block do with one picture; tokens are patches row by row after `special` class tokens."""

    image: str
    picture: UInt8[ndarray, "height width 3"]
    grid: tuple[int, int]
    prompt: str
    block: str
    special: int
    gates: Float[Tensor, "heads tokens experts"]
    experts: Float[Tensor, "heads experts value_dim"]
    adaptivity: Mapping[str, Float[Tensor, " prompts"]]
    notes: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """N: queries, and pre-trained experts."""
        return self.gates.shape[1]

    @property
    def num_prompts(self) -> int:
        """N_p."""
        return self.gates.shape[2] - self.num_tokens

    @property
    def uniform_mass(self) -> float:
        """The prompts' share of a gate that ignores its scores."""
        return self.num_prompts / (self.num_tokens + self.num_prompts)

    @property
    def prompt_mass(self) -> Float[Tensor, "heads tokens"]:
        """The prompts' share of every gate."""
        return self.gates[..., self.num_tokens :].sum(dim=-1)

    @property
    def effective_experts(self) -> Float[Tensor, "heads tokens"]:
        """exp(entropy) of every gate: how many experts it listens to."""
        return torch.special.entr(self.gates).sum(dim=-1).exp()

    def sentence(self) -> str:
        """The report in words."""
        mass, experts = float(self.prompt_mass.mean()), float(self.effective_experts.mean())
        moves = " and ".join(f"{float(value.mean()):.3g} for {kind.upper()}" for kind, value in self.adaptivity.items())
        return (
            f"{self.image}: {len(self.gates)} heads of {self.block}, {self.num_tokens} queries each, every query a "
            f"mixture of {self.num_tokens} pre-trained and {self.num_prompts} {self.prompt.upper()} experts; prompts "
            f"hold {mass:.3f} of the gate (a uniform gate: {self.uniform_mass:.3f}), a query listens to {experts:.1f} "
            f"experts, and the share of a prompt that moves with the picture is {moves}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The report's numbers as plain lists, for JSON; per head, means over queries."""
        return {
            "image": self.image,
            "block": self.block,
            "prompt": self.prompt,
            "grid": list(self.grid),
            "tokens": self.num_tokens,
            "prompts": self.num_prompts,
            "heads": len(self.gates),
            "uniform_mass": self.uniform_mass,
            "prompt_mass": self.prompt_mass.mean(dim=-1).tolist(),
            "effective_experts": self.effective_experts.mean(dim=-1).tolist(),
            "adaptivity": {kind: value.tolist() for kind, value in self.adaptivity.items()},
            "notes": list(self.notes),
        }


def view_picture(
    image: str | Path,
    *,
    weights: str | Path | None = None,
    prompt: str = "vapt",
    num_prompts: int = 10,
    grid: tuple[int, int] = (14, 14),
    dim: int | None = None,
    heads: int | None = None,
    block: int = 0,
    seed: int = 0,
) -> ViewReport:
    """The heads of a ViT block, stored or random, on a picture.

    Args:
        image: a picture file. `grid`: patches down and across.
        weights: a safetensors file with the block; None: random maps of width `dim` (192).
        prompt: "vpt" or "vapt", which prompt experts the gates see.
        heads: None: one per 64 columns. `block`: which block of the file, from 0.
        seed: of random maps, prompts and shifts; each has a stream of its own.

    Raises:
        InputError: an unreadable file, or sizes that do not fit together.
    """
    require(num_prompts >= 1, f"the number of prompts must be at least 1: got {num_prompts}.")
    require(min(grid) >= 2, f"the grid needs at least 2 patches down and across: got {grid[0]} x {grid[1]}.")
    picture = read_picture(image)
    stored, embedding, notes = _body(weights, dim, block, seed)
    special = int(embedding.class_token is not None)
    prompts = _prompt_experts(num_prompts, grid, len(stored.attention.w_q), seed)
    whole: Box = (0.0, 0.0, float(picture.width), float(picture.height))
    boxes = [whole, *shifted_boxes(picture, SHIFTED_VIEWS, _stream(seed, 2))]
    size = grid[0] * embedding.weight.shape[2], grid[1] * embedding.weight.shape[3]
    with torch.no_grad():
        tokens = stored.normalise(embedding(pixels(picture, size, boxes)))
        prompts = {kind: expert.to(tokens) for kind, expert in prompts.items()}
        layer = _layer(stored.attention, heads, choose("prompt", prompt, prompts), slice(special, None), weights)
        mixture = layer(tokens[0])
        adaptivity = {kind: _adaptivity(expert(tokens[1:, special:]).value) for kind, expert in prompts.items()}
    shown = np.asarray(picture.resize((size[1], size[0])))
    name = stored.name
    return ViewReport(str(image), shown, grid, prompt, name, special, mixture.gates, mixture.experts, adaptivity, notes)


def _stream(seed: int, number: int) -> Generator:
    """One of the independent random streams of a seed, so that no part's size changes another part's numbers."""
    state = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _body(
    weights: str | Path | None, dim: int | None, block: int, seed: int
) -> tuple[Block, PatchEmbedding, tuple[str, ...]]:
    """The block, what embeds a picture for it, and what a reader must know of both."""
    if weights is None:
        require(block == 0, f"a random block is a single one: got block {block}, give a weights file to choose one.")
        width = _WIDTH if dim is None else dim
        require(width >= 1, f"dim must be at least 1: got {width}.")
        drawn = Block("a random block", AttentionWeights.random(width, _stream(seed, 0)), None)
        embedding = PatchEmbedding.random(width, generator=_stream(seed, 1))
        return drawn, embedding, ("attention and patch embedding are random maps",)
    tensors = TensorFile(weights)
    stored = find_block(tensors, block, str(weights))
    width = len(stored.attention.w_q)
    require(dim in (None, width), f"the block in {weights} has dim {width}: got dim {dim}, leave dim out.")
    found = find_embedding(tensors, str(weights))
    if found is None:
        embedding = PatchEmbedding.random(width, generator=_stream(seed, 1))
        return stored, embedding, (f"{weights} holds no patch embedding: patches are embedded by a random map",)
    require(len(found.weight) == width, f"{weights} embeds patches in {len(found.weight)} dims, its block has {width}.")
    deep = f"block {block} is fed the patch embedding itself, not the output of the blocks before it"
    return stored, found, (deep,) if block else ()


def _prompt_experts(num_prompts: int, grid: tuple[int, int], dim: int, seed: int) -> dict[str, PromptExpert]:
    """One untrained prompt expert per kind; VAPT is built as released but for its start at zero."""
    vpt, vapt = _stream(seed, 3), _stream(seed, 4)
    projector = FeatureProjector(dim, _FEATURE_RANK, residual=True, generator=vapt)
    constant = ConstantPrompt(num_prompts, dim, bound=math.sqrt(3), generator=vpt)
    adaptive = AdaptivePrompt(num_prompts, grid, projector, token_bias=True, generator=vapt)
    with torch.no_grad():
        adaptive.kernel.div_(len(adaptive.kernel))  # K^2 weights of variance 1 / K^2 keep the scale of the tokens
    return {"vpt": constant, "vapt": adaptive}


def _layer(
    attention: AttentionWeights, heads: int | None, prompt: PromptExpert, seen: slice, weights: str | Path | None
) -> MultiHeadAttentionMoE:
    heads = max(1, attention.w_q.shape[1] // 64) if heads is None else heads
    try:
        return MultiHeadAttentionMoE(attention, heads, prompt, prompt_tokens=seen)
    except InputError as error:
        raise InputError(f"{weights or 'a random block'}: {error}") from error


def _adaptivity(prompts: Float[Tensor, "views prompts dim"]) -> Float[Tensor, " prompts"]:
    """E |P - E P|^2 / E |P|^2 per prompt; differences to the first view make a constant's exactly 0."""
    moved = prompts - prompts[0]
    variance = (moved - moved.mean(dim=0)).square().sum(dim=-1).mean(dim=0)
    return variance / prompts.square().sum(dim=-1).mean(dim=0)
