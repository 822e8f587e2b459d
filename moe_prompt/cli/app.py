"""The applications that commands join."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: idle threads sleep instead of spinning

from typing import Annotated

import typer

HELP = "The command line: a sentence and exit code 2 for bad input, never a traceback, and nothing computed is lost."
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
study_app = typer.Typer(no_args_is_help=True, help="Rate studies: error against sample size.")


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(f"moe-prompt {version('moe-prompt')}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""
