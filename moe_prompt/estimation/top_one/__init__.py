"""Least squares under a gate that takes one prompt, where the objective jumps."""
