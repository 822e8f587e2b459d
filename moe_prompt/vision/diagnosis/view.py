r"""One block of a vision transformer on a picture, with prompts, taken apart into mixtures of experts.

The picture runs through the whole network up to block k, with the network's prompts in every block before it. In block
k the attention is then written out, head by head,

    h_i = sum_j gate_ij W_V^T [LN(X); LN(P(X))]_j,

instead of fused, with the same numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from moe_prompt.attention.attention_weights import AttentionWeights
from moe_prompt.attention.heads import LayerOutput, MultiHeadAttentionMoE
from moe_prompt.attention.pictures import read_picture, shifted_boxes
from moe_prompt.attention.prompts import PromptTokens
from moe_prompt.attention.view import ViewReport
from moe_prompt.basics.user_files import told
from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.preprocessing import normalise
from moe_prompt.vision.diagnosis.networks import Network, stream, tuned_network, untrained_network
from moe_prompt.vision.downloads.registries import Teller
from moe_prompt.vision.vit.blocks import SOFTMAX, TransformerBlock
from moe_prompt.vision.vit.prompting import BlockPrompts, PictureTokens, Prompting
from moe_prompt.vision.vit.transformer import Images, VisionTransformer

SHIFTED_VIEWS = 16
"""Views of the picture, each 85 % of its sides at a random place, over which a prompt's variance is taken."""


def view_picture(
    image: str | Path,
    *,
    backbone: str | Path | None = None,
    prompt: str | None = None,
    num_prompts: int | None = None,
    tuned: str | Path | None = None,
    block: int = 0,
    heads: int | None = None,
    size: int | tuple[int, int] | None = None,
    normalisation: str | None = None,
    seed: int = 0,
    progress: Teller | None = None,
) -> ViewReport:
    """The heads of one block of a ViT, stored or random, on a picture.

    Args:
        image: a picture file.
        backbone: a file of weights, a name of `moe-prompt classify list` or of the hub; None: random maps.
        prompt: a name in :data:`~moe_prompt.vision.diagnosis.networks.PROMPTS` ("vapt" by default) or a Python file.
        num_prompts: how many prompts a block gets (10); a Python file and a tuned file say it themselves.
        tuned: a file of prompts trained on this backbone by `moe-prompt classify`. `prompt` is then needed only for a
            method of the user's own, whose Python file it names.
        block: which block, from 0.
        heads: where the file of weights does not say how many; None: those of its width, one per 64 columns.
        size: pixels of a side, or (height, width); None: those of the backbone or of the tuned file.
        normalisation: "imagenet", "half" or "none"; None: the backbone's own where it has a name, else "imagenet".
        seed: of random maps, prompts and shifts; each has a stream of its own.

    Raises:
        InputError: an unreadable file, sizes that do not fit together, or a block without prompts.
    """
    picture = read_picture(image)
    if tuned is None:
        chosen = (prompt or "vapt", num_prompts, block, heads, size, normalisation, seed)
        network = untrained_network(backbone, *chosen, progress)
    else:
        if backbone is None:
            raise InputError(f"{tuned} was trained on a backbone: name that backbone too.")
        free = num_prompts is None and size is None and normalisation is None
        require(free, f"{tuned} has its own number of prompts, size and normalisation: leave those options out.")
        network = tuned_network(tuned, backbone, prompt, heads, progress)
    depth = network.vit.config.depth
    require(0 <= block < depth, f"{network.name} has blocks 0 to {depth - 1}: got block {block}.")
    boxes = shifted_boxes(picture, SHIFTED_VIEWS, stream(seed, 2))
    views = torch.stack([network.pixels(view) for view in (picture, *(picture.crop(box) for box in boxes))])
    return _report(str(image), network, block, views, tuned is not None)


def block_mixtures(vit: VisionTransformer, block: int, images: Images, prompting: Prompting) -> LayerOutput:
    """The attention of one block, written out: gates (batch, heads, rows, rows + prompts), experts and output.

    Rows are class token, registers and patches. Tokens that a prompting carries from block to block (VPT-shallow) count
    as prompts; what they ask for as queries is left out.
    """
    tokens, prompts = _entering(vit, block, images, prompting)
    layer = cast(TransformerBlock, vit.blocks[block])
    key, value = layer.enter(prompts).tokens
    entered = PromptTokens(*(part.expand(len(images), -1, -1) for part in (key, value)))
    attention = layer.attn
    maps, bias = attention.qkv.matrix(), attention.qkv.bias
    w_q, w_k, w_v = (part.mT for part in maps.chunk(3))
    b_q, b_k, b_v = (maps.new_zeros(len(maps)) if bias is None else bias).chunk(3)
    weights = AttentionWeights(w_q, w_k, w_v, attention.proj.weight.mT, b_q, b_k, b_v, attention.proj.bias)
    written_out = MultiHeadAttentionMoE(weights, attention.heads, gate=prompts.gate or SOFTMAX)
    return written_out.mix(layer.norm1(tokens), entered)


def _entering(
    vit: VisionTransformer, block: int, images: Images, prompting: Prompting
) -> tuple[PictureTokens, BlockPrompts]:
    """The queries and the prompts of a block, before its layer norm."""
    rows = vit.config.extra + math.prod(vit.config.grid)
    tokens, prompts = vit.entering(block, images, prompting)
    carried = tokens[:, rows:]
    if carried.shape[1]:
        require(prompts is None, f"block {block} has prompts of two kinds, carried and deep: one kind can be viewed.")
        prompts = BlockPrompts(PromptTokens.both(carried))
    if prompts is None:
        raise InputError(f"block {block} has no prompts to view: choose a block that has some.")
    return tokens[:, :rows], prompts


def _report(image: str, network: Network, block: int, views: Tensor, trained: bool) -> ViewReport:
    """The report on the first of the views (uint8); the others are its shifted copies."""
    vit, prompting = network.vit, network.prompting
    seen = normalise(views, network.preprocessing.normalisation)
    with torch.no_grad(), told(network.prompt, f"fails in block {block}"):
        mixture = block_mixtures(vit, block, seen[:1], prompting)
        shifted = _entering(vit, block, seen[1:], prompting)[1]
        adaptivity = _adaptivity(torch.cat(shifted.tokens, dim=-1))
    return ViewReport(
        image,
        views[0].movedim(0, -1).numpy(),
        vit.config.grid,
        network.prompt,
        trained,
        f"block {block} of {network.name}",
        vit.config.extra,
        mixture.gates[0],
        mixture.experts[0],
        adaptivity,
        network.notes,
    )


def _adaptivity(prompts: Float[Tensor, "views prompts dim"]) -> Float[Tensor, " prompts"]:
    """E |P - E P|^2 / E |P|^2 per prompt; differences to the first view make a constant's exactly 0."""
    moved = prompts - prompts[0]
    variance = (moved - moved.mean(dim=0)).square().sum(dim=-1).mean(dim=0)
    size = prompts.square().sum(dim=-1).mean(dim=0)
    return torch.where(size > 0, variance / size, 0.0)
