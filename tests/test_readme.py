"""What the README and docs/simulations.md show is so: code runs, and every number is in the committed rows."""

import ast
import json
import re
from dataclasses import replace
from functools import cache

import matplotlib
import numpy as np
import pandas as pd
import pytest

import moe_prompt as mp
from moe_prompt.studies import loading as studies
from moe_prompt.studies.analysis.blocks import study_block
from moe_prompt.studies.analysis.cells import cells_of
from moe_prompt.studies.running.archive import load_rows
from tests.builders.pages import ROOT, blocks, code, commands, parse, section, tables, value

README, SIMULATIONS = ((ROOT / name).read_text() for name in ("README.md", "docs/simulations.md"))
RESULTS = ROOT / "experiments" / "results"
CODE = code(README)
TABLES = [("README", README, "vpt-vs-vapt"), *(("simulations", SIMULATIONS, name) for name in studies.NAMES)]


@cache
def exported(name):
    """The cells and the notes of a study's committed rows."""
    study = studies.load(name)
    rows, notes, _ = load_rows(study, RESULTS, exported=True)
    return cells_of(study, rows, notes), notes


def summaries(name, quantity):
    return [cell[quantity] for cell in exported(name)[0]]


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("where, page, name", TABLES, ids=lambda word: word if len(word) < 30 else "")
def test_tables_between_markers_are_those_of_the_committed_rows(where, page, name):
    """A stale table is made again by `moe-prompt theory`."""
    assert blocks(page)[name] == study_block(exported(name)[0])
    assert where == "README" or f"(../figures/{name}.png)" in section(page, f"{name}\n")


def test_every_figure_of_a_study_is_shown():
    assert set(blocks(SIMULATIONS)) == set(studies.NAMES) and "(figures/vpt-vs-vapt.png)" in README


def test_vapt_is_hard_to_fit_to_data_from_vpt():
    cells, notes = exported("vpt-vs-vapt")
    (foreign,) = [cell for cell in cells if (cell.truth, cell.estimator) == ("vpt", "vapt")]
    last = foreign.rows[foreign.rows.n == 100_000]
    text = section(README, "What the figure's study found")
    near = value(text, "fits at n = 100,000 that end near the best approximation")
    assert near == f"{(last.projection_risk < 0.01).sum()} of {len(last)}"
    worst = last.excess_risk.max() / notes["limits vpt vapt"]["floor"]
    assert value(text, "excess risk of the worst of these 100 fits over the floor") == f"{worst:.3f}"
    box = f"{foreign.rows.at_boundary.sum():,} of {len(foreign.rows):,}"
    assert value(text, "fits at all sizes that end on the boundary of the parameter box [-3, 3]") == box
    assert f"{last.replicate.nunique()} samples were drawn at each of {foreign.rows.n.nunique()} sizes" in text


def test_small_samples_of_pictures_are_not_asymptotic():
    (own,) = [cell for cell in exported("vpt-vs-vapt-patches")[0] if cell.truth == cell.estimator == "vapt"]
    rows = own.rows[own.rows.n >= 1000]
    mean = rows.groupby("n").parameter_loss.mean()
    slope = np.polyfit(np.log(mean.index), np.log(mean), 1)[0]
    text = section(SIMULATIONS, "vpt-vs-vapt-patches\n")
    assert value(text, "slope of the parameter loss on n = 1,000 to 100,000") == f"{slope:.3f}"
    assert value(text, "leverage") == f"{own.limits['leverage']:.0f}"


def test_the_law_of_the_split_is_met_but_for_one_family():
    """Which cells and slopes the sentences name as exceptions."""
    odd = "reparameterised prefix, maps known, L = 1"
    for name in ("over-specified", "over-specified-by-two"):
        far = [s.cell.truth for s in summaries(name, "split") if not 0.8 < s.over_prediction < 1.25]
        assert far == [odd]
    low = summaries("over-specified-low-noise", "split")
    assert all(0.8 < s.over_prediction < 1.25 for s in low)
    steep = {name: [s for s in summaries(name, "split") if s.slope < -0.25 - 3 * s.stderr] for name in OVER}
    assert len(steep["over-specified"]) == 3 and "Three slopes of splits are steeper" in SIMULATIONS
    (one,) = steep["over-specified-low-noise"]
    text = section(SIMULATIONS, "over-specified-low-noise\n")
    assert one.cell.truth == odd and value(text, "mean") == f"{one.slope:.3f} ± {one.stderr:.3f}"
    assert value(text, "median") == f"{one.median_fit.slope:.3f} ± {one.median_fit.stderr:.3f}"
    sigma = next(s for s in summaries("over-specified", "split") if s.cell.truth == odd).cell.limits["sigma_2"]
    assert f"sigma_2 is {sigma:.3f}," in SIMULATIONS


OVER = ("over-specified", "over-specified-low-noise")


def test_slopes_of_medians_under_both_gates():
    text = section(SIMULATIONS, "norga\n")
    found = {
        s.cell.truth.split(" + ")[0]: f"{s.median_fit.slope:.3f} ± {s.median_fit.stderr:.3f}"
        for s in summaries("norga", "D")
        if "tanh" in s.cell.truth
    }
    assert found == {gate: value(text, gate) for gate in ("linear gate", "NoRGa")}


def test_invisible_splits_do_not_fall():
    rows = pd.read_csv(RESULTS / "non-identifiable.csv")
    ends, rng = rows[rows.n.isin((1000, 100_000))], np.random.default_rng(0)
    spans = []
    for truth, cell in ends.groupby("truth"):
        first, last = (cell[cell.n == n].split_error.to_numpy() for n in (1000, 100_000))
        drawn = [np.quantile(rng.choice(a, (4000, len(a))), 0.9, axis=1) for a in (last, first)]
        ratio = np.quantile(last, 0.9) / np.quantile(first, 0.9)
        spans.append((ratio, *np.quantile(drawn[0] / drawn[1], [0.025, 0.975]), truth))
    least, text = min(spans), section(SIMULATIONS, "non-identifiable\n")
    assert value(text, "cells where it is above 0.5") == f"{sum(span[0] > 0.5 for span in spans)} of {len(spans)}"
    assert value(text, "in the sixth cell, prefixes with one true prompt") == f"{least[0]:.2f}"
    assert least[3] == "prefix, non-shared, L = 1"
    said = [float(end) for end in value(text, "its 95 % bootstrap interval").split(" to ")]
    np.testing.assert_allclose(said, least[1:3], rtol=0.1)
    assert value(text, "cells whose interval is above 0.5") == f"{sum(span[1] > 0.5 for span in spans)} of 6"


def test_windows_and_starts_make_a_slope():
    from moe_prompt.plotting.fit_windows import window_slopes

    frames = [pd.read_csv(RESULTS / f"softmax-gaussian{end}.csv") for end in ("", "-published")]
    slopes = [s for frame in frames for s, _ in window_slopes(frame[frame.estimator == "three"]).values()]
    text = section(SIMULATIONS, "softmax-gaussian-published\n")
    assert [value(text, end) for end in ("flattest", "steepest")] == [f"{max(slopes):.2f}", f"{min(slopes):.2f}"]


def test_printed_cells_are_near_the_bound():
    ratios = [
        s.over_prediction for cell in exported("contaminated")[0] for s in cell.summaries if "flat" not in cell.truth
    ]
    assert max(abs(ratio - 1) for ratio in ratios) < 0.2 and "within 20 % of the bound" in SIMULATIONS


# ------------------------------------------------------------------------------------------------ speed and cost


def lines(name):
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def test_speed_with_one_prompt_too_many_is_that_of_the_committed_lines():
    found = lines("benchmark-over-specified")
    ratios = {(line["truth"].upper(), f"{line['n']:,}", line["stage"]): line["ratio"] for line in found}
    shown = [row for body in tables(section(README, "How fast it is")) for row in body if row[0] in ("VPT", "VAPT")]
    assert len(shown) == 4
    for data, n, _, *said in shown:
        assert said == [f"{ratios[data, n, stage]:.1f}x" for stage in ("polish", "whole")]
    small = [line for line in found if line["n"] == 1000]
    missed = [line[method]["missed"] / (line["fits"] / 3) for line in small for method in ("lm", "trf")]
    assert f"{100 * min(missed):.0f} to {100 * max(missed):.0f} % of SciPy's runs" in README


def test_speed_of_a_training_step_is_that_of_the_committed_lines():
    found = lines("benchmark-vision")
    steps = {(str(line["num_prompts"]), line["method"]): line for line in found if "method" in line}
    text = section(README, "How fast it is")
    shown = [row for body in tables(text) for row in body if row[0] in ("10", "50", "100")]
    assert len(shown) == 3
    for count, *said in shown:
        assert said == [f"{steps[count, method]['ratio']:.2f}x" for method in ("vpt-deep", "vapt")]
    memory, bf16 = ([line[name] for line in steps.values()] for name in ("memory_ratio", "ratio_to_float32"))
    assert value(text, "memory of the other network over ours") == f"{min(memory):.2f} to {max(memory):.2f}"
    assert value(text, "bf16 autocast over float32, ours") == f"{min(bf16):.2f}x to {max(bf16):.2f}x"
    share = value(text, "frozen forward pass, share of the machine's matrix speed")
    assert share == f"{found[-1]['share_of_matrix_rate']:.0%}".replace("%", " %")


def test_cost_of_all_studies_is_that_of_the_committed_rows():
    seconds = sum(pd.read_csv(RESULTS / f"{name}.csv").cpu_seconds.sum() for name in studies.NAMES)
    page = (ROOT / "experiments" / "README.md").read_text()
    assert f"{seconds / 60:.0f} CPU minutes" in page
    fits = {name: len(pd.read_csv(RESULTS / f"{name}.csv")) for name in studies.NAMES}
    told = {row[1].split()[-1].strip("`"): int(row[2].replace(",", "")) for row in tables(page)[0]}
    assert told == fits


# ------------------------------------------------------------------------------------------------ code


@pytest.fixture(scope="module")
def names():
    """Everything that the blocks define; the study is a small one of the same kind."""
    found = {"__name__": "readme"}
    *before, after = "\n".join(CODE).partition("result = ")
    exec(compile(before[0], "README.md", "exec"), found)
    found["after"] = "".join((before[1], after))
    return found


def test_code_is_short():
    """One import of the package, an expert of ten lines, and twelve lines from the head to the plot."""
    expert, rest, _ = CODE
    (node,) = [node for node in ast.parse(expert).body if isinstance(node, ast.ClassDef)]
    assert node.end_lineno - node.lineno + 1 <= 10
    assert len(rest.splitlines()) <= 12 and "import" not in rest
    assert re.findall(r"^(?:import|from) (\w+)", expert, flags=re.M) == ["torch", "moe_prompt"]


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
    report = names["report"]
    assert f"as many prompts as the truth: {report.rate_exact}; more: {report.rate}" in README


def test_code_runs_to_the_plot(names, tmp_path, monkeypatch, capsys):
    """With fewer and smaller samples than the page shows; a test of the door runs what is common."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    small = replace(names["study"], sizes=(101, 211), window=(101, 211), replicates=2, nodes=512)
    made = names | {"study": small}
    exec(names["after"], made)
    assert (tmp_path / "scaled.png").read_bytes().startswith(b"\x89PNG")
    assert "scaled" in capsys.readouterr().out
    truth, fit, target = made["truth"], made["fit"], made["truth"].noiseless(512)
    off = target.y[0] - truth.model.mean(fit.theta[0], target.x[0])
    assert bool(fit.converged) and float((off.square().sum(1) @ target.weights).detach()) < 3 * 18 * 0.02**2 / 2000


def test_code_is_a_study_file(tmp_path):
    path = tmp_path / "my_study.py"
    path.write_text("\n".join(CODE).partition("result = ")[0])
    loaded = studies.load(str(path))
    assert loaded.key == studies.load(str(path)).key  # else `show` would not find what `run` computed
    small = replace(loaded, sizes=(101, 211), replicates=2, window=(101, 211), nodes=512)
    assert np.isfinite(mp.run_study(small).rows.parameter_loss.to_numpy(float)).all()


# ------------------------------------------------------------------------------------------------ commands


def test_all_jobs_are_shown():
    shown = {parse(line).command.name for line in commands(README) if not line.startswith(("--", "figures"))}
    studies_and_theory = {"view", "identifiability", "run", "show", "export", "list", "plan", "theory"}
    assert shown == studies_and_theory | {"train", "tune", "report"}
    assert "`moe-prompt figures`" in README
