"""What the prompts of a vision transformer do on a picture, block by block."""
