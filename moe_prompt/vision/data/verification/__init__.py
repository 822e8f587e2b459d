"""Checks of a task before it is trained on."""
