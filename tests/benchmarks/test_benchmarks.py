"""Benchmarks against peers: what they say where a peer is missing, and what goes to R and comes back."""

import os
import stat

import numpy as np
import pytest

from experiments.benchmarks.__main__ import BENCHMARKS, main
from experiments.benchmarks.em import CELLS, Timing, agreement, draw, population, ratios, reaches
from experiments.benchmarks.flexmix import Flexmix, parse, versions
from experiments.benchmarks.machine import THREADS
from moe_prompt.likelihood.expectation_maximization import ExpectationMaximization


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    """The command limits threads through the environment, for good: put back what the tests had."""
    for name in THREADS:
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def fake_r(folder, monkeypatch, script):
    """A PATH on which Rscript is a shell script."""
    path = folder / "Rscript"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_without_r_one_sentence_names_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["em"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "no Rscript is on the PATH" in err and "apt-get install --no-install-recommends r-base-core" in err


def test_an_r_without_flexmix_is_told_apart(tmp_path, monkeypatch, capsys):
    fake_r(tmp_path, monkeypatch, "echo 'there is no package called flexmix' >&2; exit 1")
    assert main(["em", "--quick"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "which this R does not have" in err and "r-cran-flexmix" in err


def test_versions_are_what_r_says(tmp_path, monkeypatch):
    fake_r(tmp_path, monkeypatch, "printf '4.2.2 2.3.18'")
    assert versions() == {"r": "4.2.2", "flexmix": "2.3.18"}


def test_without_a_name_the_benchmarks_are_listed_and_an_unknown_one_is_refused(capsys):
    assert main([]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(BENCHMARKS)
    assert main(["none-such"]) == 2
    assert "unknown benchmark 'none-such'" in capsys.readouterr().err


def test_data_are_written_column_by_column(tmp_path):
    rng = np.random.default_rng(0)
    x, y, posterior = rng.random((2, 7, 5)), rng.random((2, 7)), rng.random((2, 7, 3))
    flexmix = Flexmix.write(tmp_path, x, y, posterior)
    assert (flexmix.n, flexmix.d, flexmix.k, flexmix.replicates) == (7, 5, 3, 2)
    read = np.fromfile(tmp_path / "x_2.bin", "<f8")
    assert read[3 * 7 + 4] == x[1, 4, 3]
    assert np.fromfile(tmp_path / "posterior_1.bin", "<f8")[2 * 7 + 6] == posterior[0, 6, 2]
    assert np.array_equal(np.fromfile(tmp_path / "y_2.bin", "<f8"), y[1])


def test_what_r_is_asked_and_what_it_answers(tmp_path, monkeypatch):
    """The peer answers with the sizes it was given: n, d, k, replicates and the iterations of each."""
    answer = 'shift; echo "$1" > "$2/task"; shift 2; echo equal 1.5; echo converged 4.5; echo steps 9 11'
    fake_r(tmp_path, monkeypatch, f"{answer}; echo objective $1 $2 $3 $4 $5 $6 -1e-3")
    timing = Flexmix(tmp_path, 7, 5, 3, 2).timing([13, 17])
    assert (timing.equal, timing.converged, timing.steps) == (0.75, 2.25, [9, 11])  # seconds of two replicates
    assert timing.objective == [7, 5, 3, 2, 13, 17, -1e-3]
    assert (tmp_path / "task").read_text() == "time\n"


def test_lines_are_names_and_numbers():
    text = "trace -4.5 -3.25000000000000001e+00\n\ntrace -7\n"
    assert parse(text) == [("trace", [-4.5, -3.25]), ("trace", [-7.0])]


def test_the_peer_stops_at_the_first_iteration_close_enough_or_at_its_best():
    assert reaches([-200.0, -100.001, -100.0000005, -100.0], -100.0) == 3
    assert reaches([-200.0, -101.0, -101.5, -101.25], -100.0) == 2  # its gate loses ground: never within 1e-8


def test_ratios_are_medians_of_rounds_not_ratios_of_medians():
    theirs = [Timing(equal, 2 * equal, [], []) for equal in (1.0, 8.0, 9.0)]
    found = ratios([1.0, 2.0, 1.0], [4.0, 4.0, 4.0], theirs)
    assert found["ratio"] == 4.0 and found["ratio_converged"] == 8.0 and found["ratio_one_by_one"] == 2.0
    assert (found["ours_s"], found["peer_s"], found["peer_converged_s"]) == (1.0, 8.0, 16.0)


@pytest.mark.parametrize("truth", ["line", "cube"])
def test_fits_start_where_the_peer_does_and_agreement_is_in_units_of_the_likelihood(truth):
    cell = next(cell for cell in CELLS if cell.truth == truth)
    source = population(truth)
    data, starts = draw(source, cell)
    fit = ExpectationMaximization().fit(source.model, data, starts)
    best = -fit.objective.numpy()
    traces = [[2 * value, value - 3e-10 * abs(value)] for value in best]
    traces[0] = [best[0] - 5e-8 * abs(best[0])]
    found = agreement(fit, traces, Timing(1.0, 1.0, [], (best - 2e-6 * abs(best)).tolist()))
    assert found["missed"] == 1 and found["converged"] == cell.replicates
    assert found["gap"] == pytest.approx(3e-10, rel=1e-3)
    assert found["gap_stock"] == pytest.approx(2e-6, rel=1e-6)
