"""Least squares with more prompts than the truth has: Newton's method where Gauss-Newton is singular."""
