"""Lines with the time left where there is no terminal, a bar where there is one."""

import time

import pytest

from moe_prompt.basics.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds(clock, capsys):
    with ProgressBar("pets, vapt") as progress:
        for step in range(1, 9):
            clock[0] += 4.0
            progress("train", step, 8, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pets, vapt: training, loss 3, 38%, 20 s left",
        "pets, vapt: training, loss 6, 75%, 8 s left",
        "pets, vapt: training, loss 8, 100%, 0 s left",
    ]


def test_time_left_of_a_resumed_training(clock, capsys):
    """Steps that were taken before are not taken for fast ones."""
    progress = ProgressBar("pets")
    for step in (91, 92, 93):
        clock[0] += 6.0
        progress("train", step, 100, "")
    assert capsys.readouterr().err.splitlines() == ["pets: training, 92%, 48 s left"]


def test_each_test_begins_anew(clock, capsys):
    progress = ProgressBar("pets")
    for done in (10, 30, 10, 20):
        clock[0] += 7.0
        progress("test", done, 40, "")
    assert capsys.readouterr().err.splitlines() == ["pets: testing, 75%, 4 s left", "pets: testing, 50%, 14 s left"]


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    with ProgressBar("pets") as progress:
        progress("train", 1, 4, "loss 0.5")
        progress("test", 1, 4, "")
    assert "pets: training, loss 0.5" in capsys.readouterr().err


def test_a_study_is_told_by_the_cost_of_its_fits(clock, capsys):
    """The time that is left counts from the end of the limits, which may take minutes."""
    progress = ProgressBar("gates").of_fits
    progress(0, 0.0, 8.0)
    clock[0] += 5.0
    progress(0, 0.0, 8.0)
    for fits, cost in ((3, 2.0), (6, 5.0), (7, 8.0)):
        clock[0] += 300.0
        progress(fits, cost, 8.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[1:] for line in lines] == [
        ["25%", "15 min left"],
        ["62%", "6 min left"],
        ["100%", "0 s left"],
    ]
    assert [line.split(", ")[0] for line in lines] == [f"gates: {fits} fits" for fits in (3, 6, 7)]
