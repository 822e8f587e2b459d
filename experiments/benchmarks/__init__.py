"""Ratios against named peers, measured on one thread: `python -m experiments.benchmarks NAME`."""
