"""The entry point of `moe-prompt`: every command joins here."""

from __future__ import annotations

import sys

import moe_prompt.cli.models
import moe_prompt.cli.pages
import moe_prompt.cli.study  # noqa: F401 - commands register themselves
from moe_prompt.cli.app import app, study_app
from moe_prompt.errors import InputError
from moe_prompt.vision.commands.app import classify_app

app.add_typer(study_app, name="study")
app.add_typer(classify_app, name="classify")


def main() -> None:
    """Run a command; an InputError becomes a sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"moe-prompt: {error}", file=sys.stderr)
        sys.exit(2)
