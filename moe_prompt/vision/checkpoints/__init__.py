"""Pre-trained backbones: where they come from and how a file becomes a ViT."""
