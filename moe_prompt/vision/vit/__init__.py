"""The Vision Transformer, and prompts in its blocks."""
