"""Named studies are what their files say; a user's file is loaded whatever it is called and defines."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from joblib.externals.loky.backend.reduction import dumps

from moe_prompt.errors import InputError
from moe_prompt.likelihood.starts import BesideTruth, Scattered
from moe_prompt.studies import loading as studies
from moe_prompt.studies.kinds.likelihood import LikelihoodStudy
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.loading import NAMES, load
from moe_prompt.studies.named.vpt_vs_vapt import NOISE
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import sigma_2

SMALL = Path(__file__).parents[2] / "builders" / "small_study.py"
KEYS = {
    "vpt-vs-vapt": "8cf179404262bdd4",
    "vpt-vs-vapt-patches": "5fec8a7e1c987442",
    "over-specified": "2c1035005b0faf56",
    "over-specified-low-noise": "fa8a182b7b4ab931",
    "over-specified-by-two": "f512f3c5369a8740",
    "over-specified-relu": "8bcd4534843ae15d",
    "non-identifiable": "d80aeb582860afce",
    "norga": "2c950091ecc38dbe",
    "gates": "8fccadcb7772802f",
    "gates-top-k": "1131fb211e4573cd",
    "contaminated": "aeda8d48cab3fc88",
    "softmax-gaussian": "2527e220d17638c4",
    "softmax-gaussian-published": "3ebf84693bcc671d",
}
STUDIES = {name: load(name) for name in NAMES}


def documented(name: str) -> str:
    return (Path(studies.__file__).parent / "named" / f"{NAMES[name]}.py").read_text().split('"""')[1]


def of_kind(kind: type) -> list[str]:
    return [name for name, study in STUDIES.items() if isinstance(study, kind)]


# --------------------------------------------------------------------------------------------- every study


@pytest.fixture(params=NAMES)
def named(request):
    return STUDIES[request.param]


def test_key_is_that_of_the_rows_computed_so_far(named):
    """Whoever means to change a study's content computes its rows again, and then changes this."""
    assert named.key == KEYS[named.name]


def test_every_study_has_a_key_and_no_two_the_same():
    assert set(KEYS) == set(NAMES) and len(set(KEYS.values())) == len(KEYS)
    assert {study.name for study in STUDIES.values()} == set(NAMES)


def test_cost_and_command_are_as_written(named):
    text = documented(named.name)
    fits = len(named.cells) * len(named.sizes) * named.replicates
    assert f"moe-prompt study run {named.name} " in text and re.search(r"Cost: +(\d+) fits", text)[1] == str(fits)
    for part in ("Claim:", "Expect:", "Setting:"):
        assert part in text, part


def test_sizes_reach_over_the_window(named):
    """At least a decade, at least three sizes of it, to the largest; sizes in order."""
    low, high = named.window
    inside = [n for n in named.sizes if low <= n <= high]
    assert list(named.sizes) == sorted(set(named.sizes)) and high == named.sizes[-1] == 100_000
    assert len(inside) >= 3 and inside[-1] >= 10 * inside[0]
    assert named.replicates >= (20 if named.name == "over-specified-by-two" else 40)  # the dearest of all a fit


def test_quick_is_a_part_that_still_has_a_slope(named):
    quick, (low, high) = named.quick(), named.window
    assert type(quick) is type(named) and quick.key == named.key and quick.cells == named.cells
    assert set(quick.sizes) < set(named.sizes) and quick.replicates <= named.replicates
    assert sum(low <= n <= high for n in quick.sizes) >= 2
    assert sum(quick.sizes) * quick.replicates < sum(named.sizes) * named.replicates / 10


def test_building_twice_gives_the_same(named):
    again = load(named.name)
    assert again.key == named.key and again is not named


def test_quantities_are_judged_and_their_names_differ(named):
    for cell in named.cells:
        found = named.quantities(*cell)
        assert {quantity.column for quantity in found} <= set(named.columns)
        assert len({quantity.name for quantity in found}) == len(found) > 0


# ---------------------------------------------------------------------------------------- of three kinds


def test_kinds_are_these():
    kinds = [of_kind(kind) for kind in (RateStudy, OverSpecifiedStudy, LikelihoodStudy)]
    assert sorted(name for names in kinds for name in names) == sorted(NAMES) and all(kinds)


@pytest.mark.parametrize("name", ["vpt-vs-vapt", "vpt-vs-vapt-patches"])
def test_vpt_and_vapt_meet_in_four_cells(name):
    assert STUDIES[name].cells == (("vpt", "vpt"), ("vpt", "vapt"), ("vapt", "vpt"), ("vapt", "vapt"))


@pytest.mark.parametrize("name", [*of_kind(RateStudy), *of_kind(OverSpecifiedStudy)])
def test_truths_are_well_inside_the_box_and_starts_do_not_know_them(name):
    study = STUDIES[name]
    least_squares = getattr(study.estimator, "newton", study.estimator)
    box = getattr(least_squares, "first", least_squares).box
    for truth in study.truths.values():
        assert float(truth.theta.abs().max()) < 0.7 * box
    assert type(study.starts).__name__ == "Random"


@pytest.mark.parametrize("name", of_kind(OverSpecifiedStudy))
def test_over_specified_settings_are_as_written(name):
    """Noise of vpt-vs-vapt or a tenth; starts, keep and box; L' = L + 1 or L + 2."""
    study, text = STUDIES[name], " ".join(documented(name).split())
    noise = NOISE / 10 if name == "over-specified-low-noise" else NOISE
    assert {truth.noise for truth in study.truths.values()} == {noise} and f"noise {noise:g}" in text.lower()
    extra = 2 if name == "over-specified-by-two" else 1
    if name == "over-specified-relu":
        newton = study.estimator
        assert (study.starts.count, newton.keep) == (48, 3) and "48 starts and keep = 3" in text
    else:
        newton = study.estimator.newton
        assert (study.starts.count, newton.keep, study.estimator.levels) == (8, 1, extra)
        assert re.search("8 (random starts beside splits|standard normal vectors)", text) and "splits" in text
    assert newton.first.box == 3.0 and "box [-3, 3]" in text.replace("box of the fits is", "box")
    assert newton.tolerance == {"non-identifiable": 1e-3, "over-specified-relu": 0.1}.get(name, 1e-6)
    assert study.extra == extra
    for (truth, estimator), population in zip(study.cells, study.truths.values(), strict=True):
        assert truth.endswith(f", L = {population.model.num_atoms}")
        assert estimator == f"L' = {population.model.num_atoms + extra}"


def test_low_noise_and_two_more_have_the_same_truths():
    first = STUDIES["over-specified"]
    for name in ("over-specified-low-noise", "over-specified-by-two"):
        assert list(STUDIES[name].truths) == list(first.truths) and STUDIES[name].smooth == first.smooth
        for truth, population in STUDIES[name].truths.items():
            assert torch.equal(population.theta, first.truths[truth].theta)


@pytest.mark.parametrize("name", ["over-specified", "over-specified-relu", "non-identifiable", "norga"])
def test_smooth_truths_are_those_with_a_positive_sigma_2(name):
    """Of every atom; relu has none at all."""
    study = STUDIES[name]
    for cell, population in study.truths.items():
        if "relu" in cell:
            assert cell not in study.smooth
            continue
        nodes, atoms = population.covariates.nodes(343), range(population.model.num_atoms)
        gone = {sigma_2(LocalGeometry(population.model, population.theta, nodes), j, starts=32).vanishes for j in atoms}
        assert gone == {cell not in study.smooth}, cell


@pytest.mark.parametrize("name", of_kind(OverSpecifiedStudy))
def test_predictions_are_those_of_smooth_truths(name):
    study = STUDIES[name]
    for truth, estimator in study.cells:
        slopes = {quantity.column: quantity.slope for quantity in study.quantities(truth, estimator)}
        own = (-0.5, -0.25) if truth in study.smooth else (None, None)
        assert (slopes["parameter_loss"], slopes["split_error"]) == own
        assert slopes["first_moment_error"] == (None if truth in study.kinked else -0.5)
        assert slopes["function_error"] == -0.5 and (truth in study.kinked) == ("relu" in truth)


@pytest.mark.parametrize("name", of_kind(LikelihoodStudy))
def test_likelihood_settings_are_as_written(name):
    """Starts know nothing of the truth, but where published ones do; a surplus of experts where the names say so."""
    study, count = STUDIES[name], {"two": 2, "three": 3, "four": 4}
    kind = BesideTruth if name == "softmax-gaussian-published" else Scattered
    for truth, estimator in study.cells:
        contender = study.contenders[estimator]
        assert type(contender.starts) is kind
        for n in (study.sizes[0], study.sizes[-1]):
            population = study.truths[truth].at(n)
            assert len(population.theta) == population.model.num_parameters
            model = contender.fitted(study.truths[truth], n)
            if estimator in count:
                assert model.num_experts == count[estimator] and population.model.num_experts == count[truth]
            else:
                assert type(model) is type(population.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", of_kind(RateStudy))
def test_floors_and_leverage_are_as_written(name):
    study, text = STUDIES[name], documented(name)
    for value, estimator, truth in re.findall(r"([\d.]+) \((VP?A?PT) on (VP?A?PT) data\)", text):
        floor = study.limits(truth.lower(), estimator.lower()).floor
        assert floor == pytest.approx(float(value), rel=0.05)
    for value in re.findall(r"leverage (\d+)", text):
        assert study.limits("vapt", "vapt").leverage == pytest.approx(float(value), rel=0.05)


# ------------------------------------------------------------------------------------------- users' files

OWN = f"""
from __future__ import annotations
import runpy
from dataclasses import dataclass, replace
import torch
from moe_prompt.estimation.starts import Initializer

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
        ("study = {'sizes': (1, 2)}", "needs to define `study = RateStudy.*dict"),
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
        with pytest.raises(InputError, match="no file"):
            load(str(path))
