"""What docs/images.md says is so: commands parse, code runs, counts, names, tests and rooms are those of the code."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import typer

from moe_prompt.cli import main
from moe_prompt.vision.checkpoints.backbones import BACKBONES, GraphInWheel, HubModel, PublishedFile
from moe_prompt.vision.commands.quick import COMPARED as QUICK_METHODS
from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.data.sets.fetch import SETS
from moe_prompt.vision.methods.by_name import METHODS, method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.user_file import method_from_file
from moe_prompt.vision.report.outcomes import sections
from moe_prompt.vision.report.report import tuning_report
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.tuning.recipes import GRIDS, SEEDS
from moe_prompt.vision.tuning.run_spec import protocol_of
from moe_prompt.vision.tuning.run_table import read_rows
from moe_prompt.vision.tuning.searches import SEARCHES, search_named
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer
from tests.builders import pages
from tests.builders.pages import parse, tables
from tests.builders.pages import value as shown_value
from tests.builders.small_vit import pictures, small_vit

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "images.md").read_text()
BLOCKS = pages.code(PAGE)
COMMANDS = sorted(
    {line.split("moe-prompt ", 1)[1] for line in re.findall(r"^    (.*\bmoe-prompt .+)$", PAGE, flags=re.M)}
    | set(re.findall(r"`(?:[^`\n]* )?moe-prompt (classify .+?)`", PAGE))
)


def section(title):
    """The text under a heading of the page."""
    return pages.section(PAGE, title)


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    given = parse(line).params
    methods = given.get("method") or []
    for name in [methods] if isinstance(methods, str) else methods:
        assert name in (*METHODS, "vapt-paper", "scaled.py")
    assert given.get("search", "small") in SEARCHES
    if parse(line).command.name == "fetch":
        assert given["name"] in (*SETS, *BACKBONES)


@pytest.mark.parametrize("line", ["classify walk", "classify fetch", "classify train --fast", "classify predict a.png"])
def test_parser_can_refuse(line):
    with pytest.raises(Exception, match=r"(?i)no such command|missing|no such option"):
        parse(line)


def test_every_command_is_shown():
    known = set(typer.main.get_command(main.app).commands["classify"].commands)
    assert {parse(line).command.name for line in COMMANDS} == known


def test_options_that_are_named_exist():
    classify = typer.main.get_command(main.app).commands["classify"]
    known = {option for command in classify.commands.values() for p in command.params for option in p.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE)) - {"--nproc-per-node", "--no-python"}  # torchrun's
    assert named <= known, f"docs/images.md names {sorted(named - known)}"
    with_json = {
        name for name, command in classify.commands.items() if "--json" in str([p.opts for p in command.params])
    }
    assert with_json == set(re.findall(r"\w+", PAGE.split("`--json` (")[1].split(")")[0]))


def test_the_benchmark_exists():
    from experiments.benchmarks.__main__ import __file__ as benchmarks

    assert "python -m experiments.benchmarks vision" in PAGE and '"vision":' in Path(benchmarks).read_text()


# ------------------------------------------------------------------------------------------------ methods

SIZES = {"d": 768, "L": 12, "H": 14, "P": 16, "N_p": 10, "D": 1, "K": 2, "r": 8, "m": 2, "h": 64, "k": 1}


def value(formula):
    """A formula of the page, products written side by side."""
    tokens = re.findall(r"N_p|[A-Za-z]|\d+|[-+^()]", formula)
    assert "".join(tokens) == formula.replace(" ", "")
    code = ""
    for before, token in zip(["", *tokens], tokens, strict=False):
        beside = before and before not in "-+^(" and token not in "-+^)"
        code += ("*" if beside else "") + {"^": "**"}.get(token, token)
    return eval(code, {"__builtins__": {}}, SIZES)


def method_rows():
    return {row[1].strip("`"): row for row in tables(section("Methods"))[0]}


@pytest.fixture(scope="module")
def vit_b16():
    with torch.device("meta"):
        return VisionTransformer(VIT_SIZES["vit-b/16"])


def test_methods_are_those_there_are():
    assert sorted(method_rows()) == sorted([*METHODS, "vapt-paper"])
    assert "twelve ways to tune" in PAGE and len(METHODS) == 12


@pytest.mark.parametrize("name", [*METHODS, "vapt-paper"])
def test_counts_are_those_on_vit_b16(vit_b16, name):
    formula, _, stated = method_rows()[name][4].rpartition("=")
    count = int(stated.strip().replace(",", ""))
    assert count == Classifier(vit_b16, method_named(name), 3).num_tuned()
    if formula:
        assert value(formula.strip().strip("`")) == count


def stated_options(text):
    return dict(re.findall(r"`(\w+)=([^`]+)`", text))


def shown(option):
    return str(option).lower() if isinstance(option, bool) else str(option)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "vapt"])
def test_options_are_those_of_the_methods(name):
    method = method_named(name)
    assert stated_options(method_rows()[name][2]) == {f.name: shown(getattr(method, f.name)) for f in fields(method)}


def test_every_switch_of_vapt_is_named():
    released, paper = method_named("vapt"), method_named("vapt-paper")
    switches = {row[0].strip("`"): tuple(row[1:3]) for row in tables(section("Methods"))[1]}
    own = {f.name: (shown(getattr(released, f.name)), shown(getattr(paper, f.name))) for f in fields(released)}
    assert switches == {name: both for name, both in own.items() if both[0] != both[1]}
    same = stated_options(section("Methods").split("Equal in both are")[1].split("\n")[0])
    assert same == {name: both[0] for name, both in own.items() if both[0] == both[1]}


def test_measured_counts_are_those_of_the_code(vit_b16):
    (found,) = tables(section("Measured"))
    assert len(found) == 8
    for *sizes, count in found:
        num_prompts, kernel_size, rank = map(int, sizes)
        method = method_named("vapt", num_prompts=num_prompts, kernel_size=kernel_size, rank=rank)
        assert Classifier(vit_b16, method, 3).num_tuned() == int(count.replace(",", ""))
    fewer = [n for n in range(1, 11) if value(f"11({n}(13^2+1)+K^2+2d)+2rd+{n}d") < value(f"L {n} d")]
    assert fewer[0] == 5 and "for N_p of at least 5" in section("Measured")


def test_layer_norms_of_vapt_that_the_paper_does_not_count():
    assert value("2 L d") == 18_432 and "`2 L d` = 18,432" in PAGE


# ------------------------------------------------------------------------------------------------ code


def test_the_expert_is_that_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    classes = [node for node in ast.parse(BLOCKS[0]).body if isinstance(node, ast.ClassDef)]
    assert len(BLOCKS) == 1 and ast.get_source_segment(BLOCKS[0], classes[0]) in readme


def test_the_expert_trains_in_a_vit(tmp_path):
    (tmp_path / "scaled.py").write_text(BLOCKS[0])
    torch.manual_seed(0)
    vit = small_vit()
    model = Classifier(vit, method_from_file(tmp_path / "scaled.py"), 5).double()
    assert model.num_tuned() == len(vit.blocks) * 2 * 10 * vit.config.dim
    logits = model(pictures())
    logits.sin().sum().backward()
    learned = [p for name, p in model.trainable().items() if not name.startswith("head")]
    assert logits.shape == (5, 5) and all(p.grad is not None and p.grad.abs().max() > 0 for p in learned)
    assert not torch.allclose(model.features(pictures()), vit(pictures()))


def test_a_file_may_define_a_method(tmp_path):
    (line,) = re.findall(r"`(method = mp.vision.VAPT\(.+?\))`", PAGE)
    (tmp_path / "mine.py").write_text(f"import moe_prompt as mp\n\n{line}\n")
    method = method_from_file(tmp_path / "mine.py").method
    assert (method.num_prompts, method.learned_scale) == (20, True)


def test_python_that_is_named_runs():
    from moe_prompt.vision.data.preprocessing import VTAB

    for code in ('TrainingRecipe(zero_first_epoch=True, decay="all")', "VTAB(antialias=False)"):
        assert f"`{code}`" in PAGE
        made = eval(code.replace("(", "(base_lr=1.0, ") if "Recipe" in code else code, {**globals(), "VTAB": VTAB})
        assert getattr(made, "antialias", None) is False or made.decay == "all"


# ------------------------------------------------------------------------------------------------ backbones, data


def test_backbones_are_those_there_are():
    rows = {row[0].strip("`"): row for row in tables(section("Backbones"))[0]}
    named = {name: one for name, one in BACKBONES.items() if not isinstance(one, HubModel)}
    assert sorted(rows) == sorted(named)
    for name, one in named.items():
        assert ("sha256" in rows[name][2]) == isinstance(one, GraphInWheel)
        assert ("NC" in one.about) == ("NC" in rows[name][1])
        if isinstance(one, PublishedFile):
            assert rows[name][2] == f"md5 begins with {one.md5_prefix}"
    assert len(BACKBONES) - len(named) == 8 and "eight models of the hub" in PAGE


def test_environment_variables_are_those_of_the_code():
    from moe_prompt.vision.downloads.registries import CACHE_VARIABLE, DEBIAN_VARIABLE, NPM_VARIABLE

    assert all(f"`{name}`" in section("Backbones") for name in (CACHE_VARIABLE, DEBIAN_VARIABLE, NPM_VARIABLE))


def test_sets_are_those_there_are():
    rows = {row[0].strip("`"): row for row in tables(section("Data"))[0]}
    assert list(rows) == list(SETS)
    for name, source in SETS.items():
        _, tasks, classes, test, origin, licence = rows[name]
        assert re.findall(r"`(\w+)`", tasks) == list(source.task_names)
        assert all(any(word in origin for word in (file.name, "-twitter")) for file in source.files)
        assert source.files[0].version in origin or name == "fashion-mnist"  # whose version is a date and a commit
        assert int(classes) > 1 and int(test.replace(",", "")) > 600
        assert set(re.findall(r"CC BY 4.0|CC0|MIT|Apache-2.0", source.licence)) >= set(
            re.findall(r"CC BY 4.0|CC0|MIT|Apache-2.0", licence)
        )


def test_what_is_said_of_orientation():
    from moe_prompt.vision.data.sets.dsprites import BINS, FACTORS

    orientation = FACTORS[1]
    bins = [BINS * angle // orientation.values for angle in (0, orientation.values - 1)]
    assert bins[0] != bins[1] and 1 - 2 / orientation.values / 2 == 0.975 and "97.5 %" in PAGE


def test_the_vtab_example_is_that_layout(tmp_path):
    from PIL import Image

    line = re.search(r"each line of a list: (\S+) (\d)", PAGE)
    folder = tmp_path / "mine"
    (folder / line[1]).parent.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (5, 7), (number, 0, 0)).save(folder / line[1].replace("000000", f"00000{number}"))
    listed = f"{line[1]} 0\n{line[1].replace('000000', '000001')} 1\n"
    lists = re.findall(r"(\w+)\.txt", PAGE.split("vtab-1k/svhn/")[1].split("[")[0])
    for name in lists:
        (folder / f"{name}.txt").write_text(listed)
    task = open_task(folder)
    assert task.layout == "vtab" and sorted(task.splits) == sorted(lists)
    assert protocol_of(tuple(task.splits), "mine").search == ("train800", "val200")


# ------------------------------------------------------------------------------------------------ training, search


def test_the_defaults_are_those_of_the_recipe():
    recipe = TrainingRecipe(base_lr=1.0)
    said = section("Training, search, report")
    assert f"SGD with momentum {recipe.momentum}" in said and recipe.optimizer == "sgd"
    assert f"{recipe.epochs} epochs, {recipe.warmup} of warm-up" in said and f"batch {recipe.batch}," in said
    assert recipe.normalisation == "imagenet" and recipe.decay == "matrices" and not recipe.zero_first_epoch
    assert all(str(seed) in said for seed in SEEDS)


def test_searches_are_those_there_are():
    rows = tables(section("Training, search, report"))[2]
    stated = {name: int(row[1]) for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert stated == {name: search_named(name).trials for name in SEARCHES}
    full = tuple(search_named(name, "adamw").trials for name in ("paper", "coordinates"))
    assert f"{full[0]} and {full[1]}" in PAGE
    assert parse("classify tune").params["search"] == "coordinates"
    small, rates = GRIDS["small"]["sgd"], GRIDS["rates"]["sgd"]
    assert small.base_lrs == (25.0, 5.0, 1.0) and len(small.weight_decays) == 2
    assert (max(rates.base_lrs), min(rates.base_lrs), len(rates.base_lrs)) == (1.0, 0.01, 6)
    assert rates.weight_decays == (0.0001,)
    assert len(QUICK_METHODS) == 3


# ------------------------------------------------------------------------------------------------ tests that are named


def test_named_tests_exist():
    rows = tables(section("Faults of released pipelines"))[0]
    assert len(rows) == 12
    for _, cell in rows:
        (named,) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cell)
        there = {
            node.name for node in ast.parse((ROOT / named[0]).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert named[1] in there, f"{named[0]} has no {named[1]}"


# ------------------------------------------------------------------------------------------------ measured

MEASURED = (ROOT / "docs" / "images-measured.md").read_text()
ROWS = ROOT / "experiments" / "results" / "images.csv"


def test_measured_tables_are_those_of_the_committed_rows():
    assert pages.blocks(MEASURED)["report"].strip() == tuning_report(read_rows(ROWS)).markdown().strip()


def test_what_was_run_is_what_the_rows_say():
    rows = read_rows(ROWS)
    settings = {(row.backbone, row.height, row.width, row.epochs, row.batch, row.precision) for row in rows}
    assert settings == {("dinov2-small-derived", 56, 56, 6, 64, "float32")}
    assert {row.training_images for row in rows if row.purpose == "final"} == {1000}
    assert {json.loads(row.method).get("num_prompts", 10) for row in rows} == {10}
    hours = sum(row.seconds + row.seconds_test for row in rows if row.label != "linear") / 3600
    told = shown_value(MEASURED, "in all")
    assert told.startswith(f"{len(rows)} trainings, {hours:.1f} hours of one core")
    for task in ("dsprites_loc", "dsprites_ori"):
        assert {row.evaluation_images for row in rows if row.task == task and row.purpose == "final"} == {1475}
    assert shown_value(MEASURED, "dSprites").startswith("1,475 of the 73,728")


def test_who_is_ahead_is_what_the_differences_say():
    """LoRA is worse than none; VAPT is worse than VPT-deep on emoji; prompts are better than linear on the X-rays."""
    (section,) = sections(read_rows(ROWS))
    said = lambda a, b, task: section.difference(a, b, (task,)).sentence()  # noqa: E731
    for task in section.tasks:
        assert ("worse" if task == "emoji_google" else "not told apart") in said("vapt", "vpt-deep", task)
        assert all("worse" not in said("lora", other, task) for other in section.labels if other != "lora")
        ahead = [prompts for prompts in ("vpt-deep", "vapt") if "better" in said(prompts, "linear", task)]
        assert ahead == (["vpt-deep", "vapt"] if task == "chest_xray" else [])
