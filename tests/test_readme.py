"""What the README shows is so: its code runs, its commands parse, its table of rooms is the import graph."""

import ast
import json
import re
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from moe_prompt.cli import main
from moe_prompt.studies import loading as studies
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.cells import all_summaries, cells_of
from moe_prompt.studies.running import runner
from moe_prompt.studies.running.archive import load_rows
from moe_prompt.studies.running.database import Results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SIMULATIONS = (ROOT / "docs" / "simulations.md").read_text()
PACKAGE, RESULTS = ROOT / "moe_prompt", ROOT / "experiments" / "results"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
SHOWN = (
    "vpt-vs-vapt",
    "vpt-vs-vapt-patches",
    "over-specified",
    "over-specified-low-noise",
    "over-specified-by-two",
    "over-specified-relu",
    "norga",
    "non-identifiable",
)
COMMANDS = sorted(set(re.findall(r"`moe-prompt ([^`]+)`", README)))


def test_is_short():
    assert len(README.splitlines()) <= 150
    assert len(textwrap.dedent((ROOT / "CONTRIBUTING.md").read_text()).splitlines()) <= 50


@pytest.mark.parametrize("name", SHOWN)
def test_results_are_those_of_the_committed_rows(name):
    study = studies.load(name)
    rows, notes, _ = load_rows(study, ROOT / "experiments" / "results", exported=True)
    page = README if name == "vpt-vs-vapt" else SIMULATIONS
    assert caption(study, cells_of(study, rows, notes)) in " ".join(page.split())


def test_figures_that_are_linked_are_there():
    linked = set(re.findall(r"\((?:\.\./)?(figures/[^)]+)\)", README + SIMULATIONS))
    assert {f"figures/{name}.png" for name in SHOWN} <= linked and all((ROOT / path).is_file() for path in linked)


def test_what_is_said_beside_the_findings_is_in_the_committed_rows():
    folder = ROOT / "experiments" / "results"
    rows, patches = (pd.read_csv(folder / f"{name}.csv") for name in SHOWN[:2])
    foreign = rows[(rows.truth == "vpt") & (rows.estimator == "vapt")]
    last, floor = foreign[foreign.n == 100_000], load_rows(studies.load("vpt-vs-vapt"), folder, exported=True).notes
    assert f"only {(last.projection_risk < 0.01).sum()} end near the best approximation" in README
    assert f"{foreign.at_boundary.sum()} of its {len(foreign):,} fits lie on the box" in README
    worst = last.excess_risk.max() / floor["limits vpt vapt"]["floor"] - 1
    assert f"at most {worst:.1%} worse".replace("%", " %") in README
    own = patches[(patches.truth == "vapt") & (patches.estimator == "vapt") & (patches.n >= 1000)]
    mean = own.groupby("n").parameter_loss.mean()
    slope = np.polyfit(np.log(mean.index), np.log(mean), 1)[0]
    assert f"On n >= 1000 VAPT's is {slope:.3f}" in SIMULATIONS


def test_what_is_said_of_splits_is_in_the_committed_rows():
    study = studies.load("over-specified")
    rows, notes, _ = load_rows(study, RESULTS, exported=True)
    ratios = sorted(
        cell.over_prediction for cell in all_summaries(cells_of(study, rows, notes)) if cell.name == "split"
    )
    assert len(ratios) == 10 and f"{ratios[0]:.2f} to {ratios[8]:.2f} times the law's in nine cells" in SIMULATIONS
    assert f"and {ratios[9]:.2f} times in the tenth" in SIMULATIONS
    low = studies.load("over-specified-low-noise")
    rows, notes, _ = load_rows(low, RESULTS, exported=True)
    cells = [cell for cell in all_summaries(cells_of(low, rows, notes)) if cell.name == "split"]
    low_ratios = [cell.over_prediction for cell in cells]
    assert len(cells) == 10 and f"{min(low_ratios):.2f} to {max(low_ratios):.2f} times, and its slope" in SIMULATIONS
    (steep,) = [cell for cell in cells if abs(cell.slope + 0.25) > 3 * cell.stderr]
    assert steep.cell.truth.startswith("reparameterised")
    median = steep.median_fit
    both = f"{steep.slope:.3f} +- {steep.stderr:.3f} in the mean and {median.slope:.3f} +- {median.stderr:.3f}"
    assert both in SIMULATIONS
    by_two = studies.load("over-specified-by-two")
    cells = all_summaries(cells_of(by_two, *load_rows(by_two, RESULTS, exported=True)[:2]))
    off = [cell.cell.truth for cell in cells if cell.name == "split" and not 0.8 < cell.over_prediction < 1.25]
    assert (
        off == ["reparameterised prefix, maps known, L = 1"] and "but for the same prefix with one true" in SIMULATIONS
    )
    norga = studies.load("norga")
    cells = all_summaries(cells_of(norga, *load_rows(norga, RESULTS, exported=True)[:2]))
    medians = sorted(
        (c.median_fit.slope, c.median_fit.stderr) for c in cells if c.name == "D" and "tanh" in c.cell.truth
    )
    said = " and ".join(f"{slope:.3f} +- {error:.3f}" for slope, error in reversed(medians))
    assert f"{said} in the median" in SIMULATIONS


def test_what_is_said_of_invisible_splits_is_in_the_committed_rows():
    rows = pd.read_csv(RESULTS / "non-identifiable.csv")
    ends, rng = rows[rows.n.isin((1000, 100_000))], np.random.default_rng(0)
    spans = []
    for _, cell in ends.groupby("truth"):
        first, last = (cell[cell.n == n].split_error.to_numpy() for n in (1000, 100_000))
        drawn = [np.quantile(rng.choice(a, (4000, len(a))), 0.9, axis=1) for a in (last, first)]
        ratio = np.quantile(last, 0.9) / np.quantile(first, 0.9)
        spans.append((ratio, *np.quantile(drawn[0] / drawn[1], [0.025, 0.975])))
    least = min(spans)
    assert (
        sum(ratio > 0.5 for ratio, _, _ in spans) == 5 and "half of that at n = 1,000 in five of the six" in SIMULATIONS
    )
    assert f"and {least[0]:.2f} times it in the sixth" in SIMULATIONS and len(spans) == 6
    said = [float(end) for end in re.search(r"\(([\d.]+) to ([\d.]+) there by the bootstrap", SIMULATIONS).groups()]
    np.testing.assert_allclose(said, least[1:], rtol=0.1)
    assert sum(low > 0.5 for _, low, _ in spans) == 1 and "one cell alone is sure to be above half" in SIMULATIONS


def test_speed_with_one_prompt_too_many_is_that_of_the_committed_lines():
    lines = [json.loads(line) for line in (RESULTS / "benchmark-over-specified.jsonl").read_text().splitlines()]
    ratios = {(line["truth"], line["n"], line["stage"]): line["ratio"] for line in lines}
    polish = [f"{ratios[truth, n, 'polish']:.1f}x" for n in (1000, 10_000) for truth in ("vpt", "vapt")]
    said = "{} (VPT) and {} (VAPT) at n = 1,000 in batches of 100, {} and {} at 10,000".format(*polish)
    whole = [f"{ratios[truth, n, 'whole']:.1f}x" for n in (1000, 10_000) for truth in ("vpt", "vapt")]
    assert said in README and "{}, {}, {} and {}.".format(*whole) in README
    small = [line for line in lines if line["n"] == 1000]
    missed = [line[method]["missed"] / (line["fits"] / 3) for line in small for method in ("lm", "trf")]
    assert f"{100 * min(missed):.0f} to {100 * max(missed):.0f} % at n = 1,000" in README


def test_cost_of_all_studies_is_that_of_the_committed_rows():
    seconds = sum(pd.read_csv(RESULTS / f"{name}.csv").cpu_seconds.sum() for name in studies.NAMES)
    page = (ROOT / "experiments" / "README.md").read_text()
    assert f"All of it took {seconds / 60:.0f} CPU minutes" in page
    assert seconds / 2 < 3 * 3600 and "just under three hours on two cores" in page


def test_speed_of_a_training_step_is_that_of_the_committed_lines():
    lines = [json.loads(line) for line in (RESULTS / "benchmark-vision.jsonl").read_text().splitlines()]
    steps = {(line["num_prompts"], line["method"]): line for line in lines if "method" in line}
    for count in (10, 50, 100):
        vpt, vapt = (steps[count, method]["ratio"] for method in ("vpt-deep", "vapt"))
        assert f"{vpt:.2f}x and {vapt:.2f}x with {count}" in README
    spans = [[line[name] for line in steps.values()] for name in ("memory_ratio", "ratio_to_float32")]
    assert f"in {min(spans[0]):.2f} to {max(spans[0]):.2f} times less memory" in README
    assert f"another {min(spans[1]):.2f}x to {max(spans[1]):.2f}x" in README
    assert f"at {lines[-1]['share_of_matrix_rate']:.0%} of".replace("%", " %") in README


# ------------------------------------------------------------------------------------------------ code


@pytest.fixture(scope="module")
def names():
    """Everything that the blocks define, run one after another in one namespace."""
    found = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), found)
    return found


def test_expert_takes_ten_lines():
    classes = [node for block in BLOCKS for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["ScaledPrompt"]
    assert classes[0].end_lineno - classes[0].lineno + 1 <= 10


def test_expert_is_its_formula(names):
    torch = names["torch"]
    prompt, tokens = names["ScaledPrompt"](5, 3), torch.randn(7, 3)
    shown = prompt(tokens)
    p, w, x = (t.detach().numpy() for t in (prompt.p, prompt.w, tokens))
    mean = sum(x) / len(x)
    by_hand = [p[j] * (1 + sum(w[j][k] * mean[k] for k in range(3))) for j in range(5)]
    for part in shown:
        np.testing.assert_allclose(part.detach().numpy(), by_hand, rtol=1e-5)


def test_comments_state_what_comes_out(names):
    mixture, report = names["mixture"], names["report"]
    shapes = [tuple(part.shape) for part in (mixture.gates, mixture.experts, mixture.output)]
    assert f"gates {shapes[0]}, experts {shapes[1]}, output {shapes[2]}" in README
    assert f"as many prompts as the truth: {report.rate_exact}; more: {report.rate}" in README


def test_blocks_together_are_a_study_file(tmp_path):
    path = tmp_path / "my_study.py"
    path.write_text("\n".join(BLOCKS))
    loaded = studies.load(str(path))
    assert loaded.key == studies.load(str(path)).key  # else `show` would not find what `run` computed
    small = replace(loaded, sizes=(101, 211), replicates=2, window=(101, 211), nodes=512)
    results = Results(tmp_path / "rows.sqlite", small.columns)
    assert runner.run(small, results) == 4
    rows = results.frame(small.key)
    results.close()
    assert np.isfinite(rows.parameter_loss.to_numpy(float)).all()


# ------------------------------------------------------------------------------------------------ commands


def parse(line):
    """The command that a line names, after parsing its options as the command line would; SystemExit if it cannot."""
    command, words = typer.main.get_command(main.app), shlex.split(line)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no such command: moe-prompt {line}"
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words)


def test_all_jobs_are_shown():
    shown = {parse(line).command.name for line in COMMANDS if line != "identifiability"}
    studies_and_theory = {"view", "identifiability", "run", "show", "export", "list", "figures", "plan", "theory"}
    assert shown == studies_and_theory | {"train", "tune", "report"}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    name = parse(line).params.get("name")
    assert name is None or name in studies.NAMES or name == "my_study.py"


@pytest.mark.parametrize("line", ["study walk vpt-vs-vapt", "study run", "study run vpt-vs-vapt --fast", "view"])
def test_parser_can_refuse(line):
    with pytest.raises(Exception, match=r"(?i)no such command|missing|no such option"):
        parse(line)


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    shown = set(re.findall(r"^    make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M))
    assert {"demo", "test"} <= shown <= targets


def test_links_lead_somewhere():
    for folder, page in ((ROOT, README), (ROOT / "docs", SIMULATIONS)):
        for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", page):
            assert (folder / link).exists(), link
