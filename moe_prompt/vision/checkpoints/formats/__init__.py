"""The formats of checkpoints, and which one a file is in."""
