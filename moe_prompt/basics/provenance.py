"""What a run was made with: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What a run was made with."""
    packages = {name: version(name) for name in ("moe-prompt", "torch", "numpy", "scipy", "pandas")}
    machine = {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()}
    return {"packages": packages, "machine": machine, "commit": _commit()}


def _commit() -> str | None:
    """The commit of the source tree this runs from, marked if the tree has changes; None outside a repository."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None if shown.returncode == 0 else None
