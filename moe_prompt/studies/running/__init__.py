"""Carry a study out and keep its rows."""
