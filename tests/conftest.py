"""Shapes in signatures are checked here, and only here."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from jaxtyping import install_import_hook

install_import_hook("moe_prompt", "beartype.beartype")
