"""The door: every public name is there, documented and typed, and tunes from Python in ten lines."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from moe_prompt import vision
from tests.builders.small_files import bars, vit_file

NAMES = (
    *("load_backbone", "VisionTransformer", "ViTConfig", "method_named", "Method", "DeepMethod", "DeepExperts"),
    *("VAPT", "VPTDeep", "Classifier", "open_task", "fetch_set", "with_validation", "Preprocessing", "VTAB", "FGVC"),
    *("TrainingRecipe", "train", "TuningProblem", "search_named", "tune", "tuning_report", "read_rows"),
    *("predict", "load_tuned", "save_tuned", "view_picture"),
)


def test_the_public_names():
    assert vision.__all__ == sorted(NAMES) and set(NAMES) <= set(dir(vision))
    with pytest.raises(AttributeError, match="tuna"):
        _ = vision.tuna


def test_every_name_comes_from_the_module_that_the_stub_says():
    """The stub is what type checkers and editors read, and the lazy import too."""
    tree = ast.parse(Path(vision.__file__).with_suffix(".pyi").read_text())
    listed = {alias.name: f"moe_prompt.vision.{node.module}" for node in tree.body for alias in node.names}
    assert set(listed) == set(NAMES)
    assert all(getattr(vision, name) is vars(import_module(module))[name] for name, module in listed.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name):
    """By a docstring of its own with, for what computes numbers, an equation, a shape, or an example."""
    thing = getattr(vision, name)
    assert len(inspect.getdoc(thing) or "") > 20 and not (inspect.getdoc(thing) or "").startswith(f"{name}(")
    if name in ("VisionTransformer", "Classifier", "VAPT", "VPTDeep", "DeepExperts", "predict", "TrainingRecipe"):
        text = inspect.getdoc(thing) + (inspect.getdoc(inspect.getmodule(thing)) or "")
        assert re.search(r">>>| = |\(batch|softmax\(", text)


def test_ten_lines_from_pictures_to_a_table_and_back(tmp_path):
    folder, file = bars(tmp_path / "bars"), vit_file(tmp_path / "vit.safetensors")

    task = vision.open_task(folder)
    backbone, _ = vision.load_backbone(file)
    problem = vision.TuningProblem(backbone, "small", task, vision.VTAB(backbone.config.image))
    vapt = vision.method_named("vapt", num_prompts=2, rank=2)
    recipe = vision.TrainingRecipe(base_lr=0.0, epochs=2, warmup=0, batch=16)
    tuned = vision.tune(problem, vapt, recipe, vision.search_named("small"), tmp_path / "runs", seeds=(42, 44))
    print(vision.tuning_report(tuned.trials + tuned.finals).text())
    pictures = sorted((folder / "images" / "test").iterdir())
    found = vision.predict(pictures, tmp_path / "runs" / "runs" / tuned.finals[0].key / "tuned.safetensors", file)

    assert len(tuned.trials) == 6 and [row.seed for row in tuned.finals] == [42, 44]
    right = [p.label == label for p, label in zip(found, task.split("test").labels, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(tuned.finals[0].accuracy)
    assert set(vision.read_rows(tmp_path / "runs")) == {*tuned.trials, *tuned.finals}
