"""The named studies, one file per claim; a user's own is a Python file that defines `study`."""

from __future__ import annotations

import importlib

from moe_prompt.basics.user_files import defined_in
from moe_prompt.errors import choose
from moe_prompt.studies.base import Study

NAMES = {
    "vpt-vs-vapt": "vpt_vs_vapt",
    "vpt-vs-vapt-patches": "vpt_vs_vapt_patches",
    "over-specified": "over_specified",
    "over-specified-low-noise": "over_specified_low_noise",
    "over-specified-by-two": "over_specified_by_two",
    "over-specified-relu": "over_specified_relu",
    "non-identifiable": "non_identifiable",
    "norga": "norga",
    "gates": "gates",
    "gates-top-k": "gates_top_k",
    "contaminated": "contaminated",
    "softmax-gaussian": "softmax_gaussian",
    "softmax-gaussian-published": "softmax_gaussian_published",
}


def load(name: str) -> Study:
    """A named study, or the `study` of a Python file."""
    if name.endswith(".py"):
        return defined_in(name, "`study = RateStudy(...)`", study=Study)[1]
    module = choose("study", name, NAMES)
    return importlib.import_module(f"moe_prompt.studies.named.{module}").build()
