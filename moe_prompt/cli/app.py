"""The applications that commands join."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: idle threads sleep instead of spinning

import typer

HELP = "The command line: a sentence and exit code 2 for bad input, never a traceback, and nothing computed is lost."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
study_app = typer.Typer(no_args_is_help=True, help="Rate studies: error against sample size.")
