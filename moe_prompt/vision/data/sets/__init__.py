"""Data sets that a command fetches and lays out."""
