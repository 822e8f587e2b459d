"""The command line in this process, a checkpoint and a task: small, real files."""

import sys

import pytest

from moe_prompt.cli import main
from tests.builders.small_files import bars, vit_file


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `moe-prompt classify ...` in this process, in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moe-prompt", "classify", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def files(tmp_path):
    """The words for a checkpoint `vit.safetensors` and a task `bars`, both written to the folder."""
    vit_file(tmp_path / "vit.safetensors")
    bars(tmp_path / "bars")
    return ("--data", "bars", "--backbone", "vit.safetensors")
