"""The named studies, one file per claim; a user's own is a Python file that defines `study`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from moe_prompt.errors import InputError, choose, require
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
        return _from_file(Path(name))
    module = choose("study", name, NAMES)
    return importlib.import_module(f"moe_prompt.studies.named.{module}").build()


def _from_file(path: Path) -> Study:
    require(path.is_file(), f"no study file {path}: name a Python file that defines `study = RateStudy(...)`.")
    spec = importlib.util.spec_from_file_location(f"moe_prompt_study_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {error}.") from error
    finally:
        del sys.modules[spec.name]  # so that its classes travel to worker processes by value
    study = getattr(module, "study", None)
    if not isinstance(study, Study):
        raise InputError(f"{path} needs to define `study = RateStudy(...)`: got {type(study).__name__}.")
    return study
