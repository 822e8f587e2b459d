"""Precision, memory, random streams, processes and what they cost."""
