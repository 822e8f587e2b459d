"""Shapes in signatures are checked here, and only here."""

import os

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
