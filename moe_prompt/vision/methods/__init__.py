"""The ways to tune a pre-trained ViT, one by one, by name, or from a user's file."""
