"""A ViT small enough to be written out, with sizes that no swapped axis survives: width 24, grid 2 x 3, 3 heads."""

import torch

from moe_prompt.vision.vit.transformer import VisionTransformer, ViTConfig

SMALL = ViTConfig(dim=24, depth=3, heads=3, patch=4, image=(8, 12), mlp_dim=40)


def small_vit(seed: int = 0, **changes) -> VisionTransformer:
    """Weights large enough that every part of a block shows in the features."""
    config = ViTConfig(**{**SMALL.__dict__, **changes})
    generator = torch.Generator().manual_seed(seed)
    vit = VisionTransformer(config, generator).double()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return vit.requires_grad_(False)


def pictures(count: int = 5, config: ViTConfig = SMALL, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, *config.image, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
