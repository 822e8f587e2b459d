"""The command line in this process, a checkpoint and a task: small, real files."""

import pytest

from tests.builders.small_files import bars, vit_file


@pytest.fixture
def command(command):
    """Runs `moe-prompt classify ...`."""
    return lambda *words: command("classify", *words)


@pytest.fixture
def files(tmp_path):
    """The words for a checkpoint `vit.safetensors` and a task `bars`, both written to the folder."""
    vit_file(tmp_path / "vit.safetensors")
    bars(tmp_path / "bars")
    return ("--data", "bars", "--backbone", "vit.safetensors")
