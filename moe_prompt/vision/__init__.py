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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
