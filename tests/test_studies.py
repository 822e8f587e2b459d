"""Named studies are what their files say; a user's file is loaded whatever it is called and defines."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from joblib.externals.loky.backend.reduction import dumps

from moe_prompt import studies
from moe_prompt.errors import InputError
from moe_prompt.studies import NAMES, load

SMALL = Path(__file__).parent / "small_study.py"
KEYS = {"vpt-vs-vapt": "06d12fe4c49b8bf5", "vpt-vs-vapt-patches": "881892079d03b60e"}


@pytest.fixture(scope="module", params=NAMES)
def named(request):
    return load(request.param)


def documented(name: str) -> str:
    return (Path(studies.__file__).parent / f"{NAMES[name]}.py").read_text().split('"""')[1]


def test_key_is_that_of_the_rows_computed_so_far(named):
    """Whoever means to change a study's content computes its rows again, and then changes this."""
    assert named.key == KEYS[named.name] and set(KEYS) == set(NAMES)


def test_cost_and_command_are_as_written(named):
    text = documented(named.name)
    fits = len(named.truths) * len(named.contenders) * len(named.sizes) * named.replicates
    assert f"moe-prompt study run {named.name} " in text and re.search(r"Cost: +(\d+) fits", text)[1] == str(fits)


def test_design(named):
    """All four cells; sizes over three decades; truths well inside the box, and starts that do not know them."""
    assert list(named.truths) == list(named.contenders) == ["vpt", "vapt"]
    assert (named.sizes[0], named.sizes[-1], named.replicates) == (100, 100_000, 100)
    assert named.window[1] == 100_000 and sum(n >= named.window[0] for n in named.sizes) >= 5
    for truth in named.truths.values():
        assert float(truth.theta.abs().max()) < 0.7 * named.estimator.box
    assert type(named.starts).__name__ == "Random"


def test_quick_is_a_part_that_still_has_a_slope(named):
    quick = named.quick()
    assert set(quick.sizes) < set(named.sizes) and quick.replicates <= named.replicates and quick.key == named.key
    fits = len(quick.truths) * len(quick.contenders) * sum(quick.sizes) * quick.replicates
    whole = len(named.truths) * len(named.contenders) * sum(named.sizes) * named.replicates
    assert fits < whole / 10


def test_building_twice_gives_the_same(named):
    again = load(named.name)
    assert again.key == named.key and again is not named


@pytest.mark.slow
def test_floors_and_leverage_are_as_written(named):
    text = documented(named.name)
    for value, estimator, truth in re.findall(r"([\d.]+) \((VP?A?PT) on (VP?A?PT) data\)", text):
        floor = named.limits(truth.lower(), estimator.lower()).floor
        assert floor == pytest.approx(float(value), rel=0.05)
    for value in re.findall(r"leverage (\d+)", text):
        assert named.limits("vapt", "vapt").leverage == pytest.approx(float(value), rel=0.05)


# ------------------------------------------------------------------------------------------- users' files

OWN = f"""
from __future__ import annotations
import runpy
from dataclasses import dataclass, replace
import torch
from moe_prompt.initializers import Initializer

@dataclass(frozen=True)
class Shifted(Initializer):
    shift: float = 0.5
    def draw(self, model, truth, rng):
        return self.shift + torch.from_numpy(rng.standard_normal((3, model.num_parameters)))

study = replace(runpy.run_path({str(SMALL)!r})["study"], starts=Shifted())
"""


@pytest.mark.parametrize("name", ["own.py", "torch.py", "my study-2.py"])
def test_a_users_file(tmp_path, name):
    """With a dataclass under postponed annotations, and named like a library."""
    import torch

    (tmp_path / name).write_text(OWN)
    before = set(sys.modules)
    study = load(str(tmp_path / name))
    assert study.starts.shift == 0.5 and study.key != load(str(SMALL)).key
    assert study.key == load(str(tmp_path / name)).key
    assert sys.modules["torch"] is torch and not {m for m in set(sys.modules) - before if "study" in m}


def test_a_users_classes_travel_to_other_processes(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    study = load(str(tmp_path / "own.py"))
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).starts.shift)"
    run = subprocess.run([sys.executable, "-c", program], input=bytes(dumps(study)), capture_output=True)
    assert run.stdout.strip() == b"0.5", run.stderr


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = ", "does not run: SyntaxError"),
        ("1 / 0", "does not run: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "does not run: ModuleNotFoundError"),
        ("raise SystemExit(0)", "does not run: SystemExit"),
        ("x = 1", "needs to define `study = RateStudy"),
        ("study = {'sizes': (1, 2)}", "needs to define `study = RateStudy.*got dict"),
        ("from moe_prompt.errors import require\nrequire(False, 'a sentence of its own')", "^a sentence of its own$"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, text, words):
    (tmp_path / "bad.py").write_text(text)
    before = set(sys.modules)
    with pytest.raises(InputError, match=words):
        load(str(tmp_path / "bad.py"))
    assert not {m for m in set(sys.modules) - before if "bad" in m}


def test_names_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"unknown study 'vpt-vs-vap': choose one of .* did you mean 'vpt-vs-vapt'"):
        load("vpt-vs-vap")
    for path in (tmp_path / "none.py", tmp_path / "folder.py"):
        (tmp_path / "folder.py").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="no study file"):
            load(str(path))
