"""Prompt tuning seen as a mixture of experts (arXiv 2501.18936): theory, simulation, images."""
