"""Ratios against named peers, measured in one process on one thread: `python -m experiments.benchmarks NAME`."""
