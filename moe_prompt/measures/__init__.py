"""Mixing measures, the symmetries of their parameters, their alignment, and losses between them."""
