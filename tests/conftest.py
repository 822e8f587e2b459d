"""Shapes in signatures are checked here, and only here."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["OMP_NUM_THREADS"] = "1"  # here and in children: the same bits need the same number of threads

from jaxtyping import install_import_hook

install_import_hook("moe_prompt", "beartype.beartype")
