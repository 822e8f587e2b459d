"""A prompt expert of the user's own: one file with the class of the README through every command that takes one."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from tests.builders.small_files import bars, vit_file
from tests.vision.methods.test_user_file import OWN

PHOTO = Path(str(files("sklearn.datasets") / "images" / "china.jpg"))
STUDY = """

import numpy as np
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.kinds.rates import RateStudy

rng = np.random.default_rng(2)
maps = [torch.from_numpy(rng.standard_normal((2, 2))) for _ in range(2)]
model = RegressionModel(FrozenExperts.random(1, 2, 2, rng), ScaledPrompt(1, 2), *maps)
theta = torch.tensor([0.3, 1.1, -0.7, 0.4, 0.6], dtype=torch.float64)
study = RateStudy(
    name="scaled",
    claim="prompts that scale with the mean token are learned at n^-1/2",
    truths={"scaled": Population(model, theta, Uniform(-1.7, 1.7, 2), noise=0.02)},
    contenders={"scaled": model},
    sizes=(50, 100),
    replicates=4,
    window=(50, 100),
    nodes=21**2,
)
"""


@pytest.fixture(autouse=True)
def own_file(tmp_path):
    (tmp_path / "scaled.py").write_text(OWN + STUDY)


def test_identifiability(command):
    code, shown, _ = command("identifiability", "--expert", "scaled.py", "--json")
    (found,) = json.loads(shown)["families"]
    assert code == 0 and found["family"] == "scaled.py"
    assert (found["num_parameters"], found["rank"], found["gauge"]) == (18, 18, 0)  # 2 (b, p, w) with p, w in R^4
    assert found["rate_exact"] == "n^-1/2" and found["sigma_2"] > 0
    assert command("identifiability", "--expert", "scaled.py")[1].count("scaled.py") == 1


def test_view_before_and_after_classify_train(command, tmp_path):
    vit_file(tmp_path / "vit.safetensors")
    bars(tmp_path / "bars")
    view = ("view", "--image", PHOTO, "--backbone", "vit.safetensors", "--prompt", "scaled.py", "--block", 1)
    code, shown, _ = command(*view)
    assert code == 0 and "scaled.py, untrained" in shown and (tmp_path / "view.png").stat().st_size > 10_000
    train = ("classify", "train", "--data", "bars", "--backbone", "vit.safetensors", "--method", "scaled.py")
    code, shown, _ = command(*train, "--epochs", 2, "--batch", 8, "--json")
    told = json.loads(shown)
    assert code == 0 and told["method"]["name"] == "scaled" and 0 <= told["accuracy"] <= 100
    numbers = [json.loads(command(*view, *words, "--json")[1]) for words in ((), ("--tuned", told["tuned"]))]
    assert [found["trained"] for found in numbers] == [False, True]
    assert all(found["prompts"] == 5 and found["heads"] == 3 for found in numbers)
    assert numbers[0]["adaptivity"] != numbers[1]["adaptivity"] and min(numbers[1]["adaptivity"]) > 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_study_run(command, jobs):
    """With two jobs the class travels to other processes, which cannot import the file."""
    code, shown, _ = command("study", "run", "scaled.py", "--out", "rows", "--jobs", jobs)
    assert code == 0 and "8 new fits" in shown
    cell = json.loads(command("study", "show", "scaled.py", "--out", "rows", "--json")[1])["cells"][0]
    assert cell["truth"] == "scaled"


WRONG = {
    "no file": (None, "no file own.py: name a Python file"),
    "does not run": ("import torch\n1 / 0", "own.py does not run: ZeroDivisionError: division by zero."),
    "lacks it": ("x = 1", "own.py needs to define .*defines nothing named"),
    "another thing": (
        "prompt = study = method = 3",
        "own.py needs to define .*its (prompt|study|method) is of type int",
    ),
}
COMMANDS = {
    "identifiability": ("identifiability", "--expert", "own.py"),
    "view": ("view", "--image", PHOTO, "--prompt", "own.py"),
    "study": ("study", "run", "own.py"),
    "classify": ("classify", "train", "--data", "bars", "--backbone", "vit.safetensors", "--method", "own.py"),
}


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_one_sentence_in_every_command(command, tmp_path, case, words):
    text, says = WRONG[case]
    if words == "classify":
        vit_file(tmp_path / "vit.safetensors")
        bars(tmp_path / "bars")
    if text is not None:
        (tmp_path / "own.py").write_text(text)
    code, shown, errors = command(*COMMANDS[words])
    assert (code, shown) == (2, "")
    assert re.search(says, errors.splitlines()[-1]) and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("{}", "prompt.config. has to return a PromptExpert: got dict"),
        ("ScaledPrompt(2)", "own.py does not fit a regression model .*TypeError: .*missing 1 required"),
        ("ScaledPrompt(2, 5)", "own.py does not fit a regression model .*RuntimeError"),
    ],
)
def test_an_expert_that_does_not_fit_the_theory(command, tmp_path, made, says):
    (tmp_path / "own.py").write_text(OWN.replace("ScaledPrompt(5, config.dim)", made))
    code, shown, errors = command("identifiability", "--expert", "own.py")
    assert (code, shown, errors.count("\n")) == (2, "", 1)
    assert re.search(says, errors), errors
