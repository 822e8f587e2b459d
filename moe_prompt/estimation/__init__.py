"""Least squares for many replicates at once."""
