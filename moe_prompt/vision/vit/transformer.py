r"""A plain vision transformer whose tensors have timm's names, and whose blocks take prompt experts.

    X_0 = [class; registers; W patch + b] + position
    X'  = X + ls1 * Attention(LN1 X, LN1 P(X)),     X_next = X' + ls2 * MLP(LN2 X')        (arXiv 2010.11929)

P(X) are the block's prompts, keys and values only (:mod:`moe_prompt.vision.vit.prompting`). Where the class
token is pooled, only its row of the last block is computed.

| tensor                                        | shape                                              |
|-----------------------------------------------|----------------------------------------------------|
| cls_token, reg_token                          | (1, 1, d), (1, R, d)                               |
| pos_embed                                     | (1, [1 +] H W, d)                                  |
| patch_embed.proj.{weight, bias}               | (d, 3, P, P), (d,)                                 |
| blocks.i.{norm1, norm2}                       | (d,)                                               |
| blocks.i.attn.{qkv, proj}                     | (3 d, d), (d, d)                                   |
| blocks.i.mlp.{fc1, fc2}                       | (m, d), (d, m)                                     |
| blocks.i.{ls1, ls2}.gamma                     | (d,), with layer scale (arXiv 2103.17239)          |
| norm, or fc_norm where patches are averaged   | (d,)                                               |
"""

from __future__ import annotations

import hashlib
import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from moe_prompt.errors import require
from moe_prompt.vision.vit.blocks import TransformerBlock
from moe_prompt.vision.vit.config import VIT_SIZES, ViTConfig
from moe_prompt.vision.vit.prompting import BlockPrompts, PictureTokens, Prompting

__all__ = ["VIT_SIZES", "ViTConfig", "VisionTransformer", "resample_positions"]

Images = Float[Tensor, "batch 3 height width"]


class PatchEmbedding(nn.Module):
    """Patches of P x P pixels to tokens, row by row."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Images) -> PictureTokens:
        return self.proj(images).flatten(2).mT


class VisionTransformer(nn.Module):
    """Pictures (batch, 3, height, width), normalised, to features (batch, d).

    Weights are drawn as timm draws them (normal, standard deviation 0.02); `generator` seeds them.

    Raises:
        InputError: pictures of another size than `config.image`.

    >>> vit = VisionTransformer(ViTConfig(dim=24, depth=2, heads=3, patch=4, image=(8, 12), mlp_dim=48))
    >>> vit(torch.zeros(5, 3, 8, 12)).shape
    torch.Size([5, 24])
    """

    def __init__(self, config: ViTConfig, generator: Generator | None = None) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.positions, dim))
        self.patch_embed = PatchEmbedding(dim, config.patch)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.norm = norm if config.pooling == "cls" else nn.Identity()
        self.fc_norm = norm if config.pooling == "avg" else nn.Identity()
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Images, prompting: Prompting | None = None) -> Float[Tensor, "batch dim"]:
        """Pooled features: what a classification head sees."""
        class_row = self.config.pooling == "cls"
        tokens = self._run(images, prompting, class_row)
        if class_row:
            return self.norm(tokens[:, 0])
        return self.fc_norm(self._patches(tokens).mean(dim=1))

    def tokens(self, images: Images, prompting: Prompting | None = None) -> PictureTokens:
        """Class token, registers and patches after the last norm (batch, 1 + R + H W, d)."""
        tokens = self._run(images, prompting, False)
        return self.norm(tokens[:, : self.config.extra + math.prod(self.config.grid)])

    def embed(self, images: Images) -> PictureTokens:
        """The input of the first block: class token, registers and patches with their positions."""
        require(
            tuple(images.shape[-2:]) == self.config.image,
            f"this ViT is built for pictures of {self.config.image[0]} x {self.config.image[1]} pixels: got "
            f"{images.shape[-2]} x {images.shape[-1]}; resize them, or load the backbone with that image size.",
        )
        config, batch = self.config, len(images)
        patches: Tensor = self.patch_embed(images)
        position: Tensor = self.pos_embed
        parts = [patches]
        if config.class_token:
            class_token: Tensor = self.cls_token
            if config.position_class:
                class_token, position = class_token + position[:, :1], position[:, 1:]
            parts.append(class_token.expand(batch, -1, -1))
        if config.registers:
            parts.append(self.reg_token.expand(batch, -1, -1))
        return torch.cat([*parts[1:], patches + position], dim=1)

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and float32 bytes of all tensors: which backbone a prompt was trained on."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _patches(self, tokens: PictureTokens) -> PictureTokens:
        extra = self.config.extra
        return tokens[:, extra : extra + math.prod(self.config.grid)]

    def entering(
        self, block: int, images: Images, prompting: Prompting | None = None
    ) -> tuple[PictureTokens, BlockPrompts | None]:
        """The tokens at the input of a block, carried ones last, and the block's prompts."""
        tokens = self.embed(images)
        carried = prompting.carried(len(images)) if prompting is not None else None
        if carried is not None:
            tokens = torch.cat([tokens, carried], dim=1)
        for i in range(block):
            tokens = self.blocks[i](tokens, self._prompts(i, tokens, prompting))
        return tokens, self._prompts(block, tokens, prompting)

    def _prompts(self, block: int, tokens: PictureTokens, prompting: Prompting | None) -> BlockPrompts | None:
        return prompting.prompts(block, self._patches(tokens)) if prompting is not None else None

    def _run(self, images: Images, prompting: Prompting | None, class_row: bool) -> PictureTokens:
        last = len(self.blocks) - 1
        return self.blocks[last](*self.entering(last, images, prompting), class_row)


def resample_positions(
    positions: Float[Tensor, "1 rows dim"], old_grid: tuple[int, int], new_grid: tuple[int, int], extra: int
) -> Float[Tensor, "1 new_rows dim"]:
    """Position embeddings for another grid: bicubic with antialiasing, the first `extra` rows (class token) kept.

    Raises:
        InputError: the rows are not those of `old_grid`.
    """
    rows = math.prod(old_grid) + extra
    require(positions.shape[1] == rows, f"positions of a {old_grid} grid need {rows} rows: got {positions.shape[1]}.")
    if old_grid == new_grid:
        return positions
    kept, grid = positions[:, :extra], positions[:, extra:].unflatten(1, old_grid).movedim(-1, 1)
    resized = functional.interpolate(grid.float(), size=new_grid, mode="bicubic", antialias=True)
    return torch.cat([kept, resized.to(positions.dtype).flatten(2).mT], dim=1)
