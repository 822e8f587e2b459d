"""Pre-trained vision transformers tuned with the prompt experts of the core, from pictures on disk to a table.

    from moe_prompt import vision

    task = vision.with_validation(vision.open_task("pictures"))
    backbone, found = vision.load_backbone("vit.safetensors")
    problem = vision.TuningProblem(backbone, "my ViT", task, vision.VTAB(backbone.config.image))
    recipe = vision.TrainingRecipe(base_lr=0.0, epochs=20, warmup=2)
    vapt = vision.method_named("vapt", num_prompts=10)
    tuned = vision.tune(problem, vapt, recipe, vision.search_named("small"), "runs")
    print(vision.tuning_report(tuned.trials + tuned.finals).text())

Names are imported when they are first used, so that ``import moe_prompt.vision`` does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_prompt.vision.checkpoints.loading import load_backbone as load_backbone
    from moe_prompt.vision.data.layouts.open_task import open_task as open_task
    from moe_prompt.vision.data.preprocessing import FGVC as FGVC
    from moe_prompt.vision.data.preprocessing import VTAB as VTAB
    from moe_prompt.vision.data.preprocessing import Preprocessing as Preprocessing
    from moe_prompt.vision.data.sets.fetch import fetch_set as fetch_set
    from moe_prompt.vision.data.subsets import with_validation as with_validation
    from moe_prompt.vision.methods.base import DeepExperts as DeepExperts
    from moe_prompt.vision.methods.base import DeepMethod as DeepMethod
    from moe_prompt.vision.methods.base import Method as Method
    from moe_prompt.vision.methods.by_name import method_named as method_named
    from moe_prompt.vision.methods.classifier import Classifier as Classifier
    from moe_prompt.vision.methods.prompts import VAPT as VAPT
    from moe_prompt.vision.methods.prompts import VPTDeep as VPTDeep
    from moe_prompt.vision.methods.tuned_file import load_tuned as load_tuned
    from moe_prompt.vision.methods.tuned_file import save_tuned as save_tuned
    from moe_prompt.vision.report.report import tuning_report as tuning_report
    from moe_prompt.vision.training.recipe import TrainingRecipe as TrainingRecipe
    from moe_prompt.vision.training.train import train as train
    from moe_prompt.vision.tuning.prediction import predict as predict
    from moe_prompt.vision.tuning.problem import TuningProblem as TuningProblem
    from moe_prompt.vision.tuning.run_table import read_rows as read_rows
    from moe_prompt.vision.tuning.searches import search_named as search_named
    from moe_prompt.vision.tuning.tune import tune as tune
    from moe_prompt.vision.vit.config import ViTConfig as ViTConfig
    from moe_prompt.vision.vit.transformer import VisionTransformer as VisionTransformer

_PLACES = {
    "checkpoints.loading": ("load_backbone",),
    "data.layouts.open_task": ("open_task",),
    "data.preprocessing": ("FGVC", "VTAB", "Preprocessing"),
    "data.sets.fetch": ("fetch_set",),
    "data.subsets": ("with_validation",),
    "methods.base": ("DeepExperts", "DeepMethod", "Method"),
    "methods.by_name": ("method_named",),
    "methods.classifier": ("Classifier",),
    "methods.prompts": ("VAPT", "VPTDeep"),
    "methods.tuned_file": ("load_tuned", "save_tuned"),
    "report.report": ("tuning_report",),
    "training.recipe": ("TrainingRecipe",),
    "training.train": ("train",),
    "tuning.prediction": ("predict",),
    "tuning.problem": ("TuningProblem",),
    "tuning.run_table": ("read_rows",),
    "tuning.searches": ("search_named",),
    "tuning.tune": ("tune",),
    "vit.config": ("ViTConfig",),
    "vit.transformer": ("VisionTransformer",),
}
"""Module -> the public names that come from it."""
_MODULES = {name: f"{__name__}.{place}" for place, names in _PLACES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
