"""Shapes in signatures are checked here, and only here; and the command line as a function."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["OMP_NUM_THREADS"] = "1"  # here and in children: the same bits need the same number of threads

import jaxtyping
import pytest
from jaxtyping import install_import_hook

install_import_hook("moe_prompt", "beartype.beartype")


@pytest.fixture
def without_shape_checks():
    """As a user has it: the checks of annotations, which only tests have, would be first to object."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `moe-prompt ...` in this process, in an empty folder: exit code, output, errors."""
    from moe_prompt.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moe-prompt", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return call
