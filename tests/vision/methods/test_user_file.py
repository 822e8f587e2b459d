"""A method in a file of the user's own: the expert of the README, seeds, edits, and everything that can be wrong."""

from pathlib import Path

import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.user_file import method_from_file
from tests.builders.small_vit import SMALL, pictures, small_vit

README = (Path(__file__).parents[3] / "README.md").read_text()
EXPERT = next(block for block in README.split("```python\n")[1:] if "class ScaledPrompt" in block).split("```")[0]
OWN = EXPERT + "\n\ndef prompt(config):\n    return ScaledPrompt(5, config.dim)\n"


def written(folder: Path, text: str, name: str = "scaled.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def prompts_of(path: Path, seed: int) -> torch.Tensor:
    prompting = method_from_file(path).prompting(SMALL, torch.Generator().manual_seed(seed))
    return torch.cat([parameter.detach().flatten() for parameter in prompting.parameters()])


def test_the_expert_of_the_readme_is_in_every_block(tmp_path):
    method = method_from_file(written(tmp_path, OWN))
    classifier = Classifier(small_vit(), method, 7)
    assert sorted(classifier.prompting.experts) == ["0", "1", "2"]
    assert classifier.num_tuned() == 3 * 2 * 5 * 24
    classifier.double()
    classifier(pictures()).sum().backward()
    gradients = [parameter.grad for parameter in classifier.prompting.parameters()]
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_its_prompts_are_drawn_from_the_seed_of_the_run(tmp_path):
    """Whatever was drawn before, and nothing that others draw is moved by it."""
    path = written(tmp_path, OWN)
    first = prompts_of(path, 42)
    torch.rand(13)
    before = torch.get_rng_state()
    again = prompts_of(path, 42)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, prompts_of(path, 44))
    assert len(first.unique()) == len(first)  # blocks differ too


def test_a_method_of_ones_own(tmp_path):
    text = "from moe_prompt.vision.methods.prompts import VPTDeep\nmethod = VPTDeep(3)\n"
    method = method_from_file(written(tmp_path, text))
    assert method.to_dict()["name"] == "scaled" and method.to_dict()["method"]["num_prompts"] == 3
    assert method.copies == "nothing"
    full = method_from_file(
        written(tmp_path, "from moe_prompt.vision.methods.baselines import Full\nmethod = Full()", "a.py")
    )
    vit = small_vit()
    Classifier(vit, full, 7)
    assert full.copies == "weights" and not any(parameter.requires_grad for parameter in vit.parameters())


def test_an_edited_file_is_another_method(tmp_path):
    first = method_from_file(written(tmp_path, OWN)).to_dict()
    assert method_from_file(written(tmp_path, OWN)).to_dict() == first
    edited = method_from_file(written(tmp_path, OWN.replace("(5, ", "(7, "))).to_dict()
    assert edited["name"] == first["name"] and edited["sha256"] != first["sha256"]


WRONG = {
    "broken": ("1 / 0", "mine.py does not run: ZeroDivisionError: division by zero."),
    "unfinished": ("prompt = (", "mine.py does not run: SyntaxError"),
    "leaves": ("import sys; sys.exit(3)", "mine.py does not run: SystemExit"),
    "empty": ("x = 1", "needs to define `method`, a Method, or `prompt.config.`.*nothing named method or prompt"),
    "no method": ("method = 'vapt'", "needs to define `method`.*its method is of type str"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_gives_no_method(tmp_path, case):
    text, says = WRONG[case]
    with pytest.raises(InputError, match=says):
        method_from_file(written(tmp_path, text, "mine.py"))


def test_a_file_that_is_not_there_or_has_a_taken_name(tmp_path):
    with pytest.raises(InputError, match=r"no file mine\.py"):
        method_from_file("mine.py")
    for name in ("vapt.py", "vapt-paper.py"):
        with pytest.raises(InputError, match="has the name of a method here"):
            method_from_file(written(tmp_path, OWN, name))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OWN.replace("(5, config.dim)", "(5)"), "scaled.py cannot make its prompts: TypeError: .*missing 1 required"),
        (OWN.replace("config.dim", "config.width"), "cannot make its prompts: AttributeError: .*'width'"),
    ],
)
def test_an_expert_that_cannot_be_made(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        Classifier(small_vit(), method_from_file(written(tmp_path, text)), 7)


def test_a_file_that_tunes_everything_is_trained_as_full_fine_tuning_is(tmp_path):
    path = tmp_path / "everything.py"
    path.write_text("from moe_prompt.vision.methods.baselines import Full\n\nmethod = Full()\n")
    assert (method_from_file(path).optimizer, method_from_file(path).copies) == ("adamw", "weights")
