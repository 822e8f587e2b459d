"""The command line: killed, interrupted and resumed; bad input as one sentence and code 2; JSON; equal figures."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from moe_prompt.plotting import bad_sequences
from moe_prompt.studies import loading as studies
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.running import archive
from moe_prompt.studies.running.database import KEY, Results
from moe_prompt.studies.running.runner import run as run_study
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study
from tests.studies.running.test_runner import assert_same_rows

SMALL = Path(__file__).parents[1] / "builders" / "small_study.py"
PHOTO = Path(str(files("sklearn.datasets") / "images" / "china.jpg"))
PROGRAM = [sys.executable, "-c", "from moe_prompt.cli.main import main; main()"]
LISTENS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # whatever started these tests


def stored(folder: Path, rows=None) -> Path:
    """A folder with planted rows of the small study."""
    rows = planted_rows(study) if rows is None else rows
    results = Results(archive.database(folder, "small"), RateStudy.columns)
    results.add(rows.astype(object).where(rows.notna(), None).to_dict("records"))
    for name, value in NOTES.items():
        results.note(study.key, name, value)
    results.close()
    return folder


# ------------------------------------------------------------------------------------------ killed and resumed


def rows_of(path: Path) -> list[tuple]:
    """Everything in the table of fits by rowid; nothing while there is none."""
    if not path.exists():
        return []
    connection = sqlite3.connect(path, timeout=60)
    try:
        return connection.execute("SELECT rowid, * FROM fits ORDER BY rowid").fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def disturb(arguments: list[str], path: Path, how: signal.Signals, there: int, folder: Path) -> tuple[int, str]:
    """Start a run, send a signal as soon as new rows are there, and wait for its end."""
    with open(folder / "errors", "w+") as errors:
        program = [*PROGRAM[:2], LISTENS + PROGRAM[2]]
        process = subprocess.Popen(program + arguments, stdout=subprocess.DEVNULL, stderr=errors)
        deadline = time.monotonic() + 60
        while len(rows_of(path)) <= there and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(how)
        code = process.wait(timeout=60)
        errors.seek(0)
        return code, errors.read()


def test_a_killed_and_an_interrupted_run_lose_and_repeat_nothing(tmp_path):
    """A batch is a cell at a size: a kill after the first rows leaves most to do. Sizes are NumPy's, as users'."""
    text = SMALL.read_text().replace("sizes=(23, 61, 157)", "sizes=tuple(np.array([23, 61, 157]))")
    (tmp_path / "own.py").write_text(text.replace("replicates=5,", "replicates=53,"))
    assert "np.array([23" in (tmp_path / "own.py").read_text() and "replicates=53" in (tmp_path / "own.py").read_text()
    out, total = tmp_path / "out", 4 * 3 * 53
    path, arguments = out / "small.sqlite", ["study", "run", str(tmp_path / "own.py"), "--jobs", "1", "--out", str(out)]

    code, _ = disturb(arguments, path, signal.SIGKILL, 0, tmp_path)
    killed = rows_of(path)
    assert code == -signal.SIGKILL and 0 < len(killed) < total and len(killed) % 53 == 0

    code, errors = disturb(arguments, path, signal.SIGINT, len(killed), tmp_path)
    stopped = rows_of(path)
    assert code == 130 and "run again to go on" in errors and "Traceback" not in errors
    assert len(killed) < len(stopped) < total and stopped[: len(killed)] == killed

    done = subprocess.run(PROGRAM + arguments, capture_output=True, text=True)
    assert done.returncode == 0 and f"{total - len(stopped)} new fits" in done.stdout
    whole = rows_of(path)
    assert whole[: len(stopped)] == stopped and len(whole) == total
    places = {row[2:6] for row in whole}
    assert places == {
        (t, e, n, r) for t in study.truths for e in study.contenders for n in (23, 61, 157) for r in range(53)
    }

    more = replace(study, replicates=53)
    undisturbed, resumed = Results(tmp_path / "other.sqlite", RateStudy.columns), Results(path, RateStudy.columns)
    run_study(more, undisturbed)
    assert more.key == whole[0][1] and KEY[0] == "study"
    assert_same_rows(resumed.frame(more.key), undisturbed.frame(more.key))
    undisturbed.close()
    resumed.close()


def test_run_then_show_then_run_again(command, tmp_path):
    code, shown, _ = command("study", "run", SMALL, "--quick", "--jobs", 1, "--out", "a")
    assert code == 0 and "small: 24 new fits; rows in a/small.sqlite" in shown
    code, shown, _ = command("study", "run", SMALL, "--quick", "--jobs", 1, "--out", "a")
    assert code == 0 and "every fit was there already" in shown
    code, shown, _ = command("study", "show", SMALL, "--quick", "--out", "a")
    assert code == 0 and "24 fits" in shown and "rows   a/small.sqlite\nfigure a/small-quick.png" in shown
    assert (tmp_path / "a" / "small-quick.png").read_bytes().startswith(b"\x89PNG")
    notes = archive.load_rows(study, tmp_path / "a").notes
    assert notes["environment"]["packages"]["torch"] and notes["limits vpt vapt"]["floor"] > 0


# --------------------------------------------------------------------------------------------- bad input


def with_file(name: str, text: str):
    """Arguments of a run of a study file with this text."""

    def prepare(folder: Path) -> list[str]:
        (folder / name).write_text(text)
        return ["study", "run", str(folder / name), "--out", str(folder / "out")]

    return prepare


def on_file(*words: str):
    """Arguments that name a file where a folder is needed."""

    def prepare(folder: Path) -> list[str]:
        (folder / "file").write_text("")
        return [*words, "--out", str(folder / "file" / "sub")]

    return prepare


def on_text(*words: str):
    """Arguments that name a text file where something else is needed."""

    def prepare(folder: Path) -> list[str]:
        (folder / "text").write_text("no picture and no tensors")
        return [*words, str(folder / "text")]

    return prepare


def on_planted(*words: str):
    """Arguments of `study show` of planted rows."""
    return lambda folder: [*SHOW, "--out", str(stored(folder / "rows")), *words]


RUN, SHOW = ["study", "run", str(SMALL)], ["study", "show", str(SMALL)]
VIEW = ["view", "--image"]
BAD = {
    "unknown study": (["study", "run", "vpt-vs-vap"], "unknown study 'vpt-vs-vap'.*did you mean 'vpt-vs-vapt'"),
    "unknown study to show": (["study", "show", "x"], "unknown study 'x': choose one of vpt-vs-vapt"),
    "no replicates": ([*RUN, "--replicates", "0"], "needs at least one replicate: got 0"),
    "no jobs": ([*RUN, "--jobs", "0"], "--jobs needs at least one worker: got 0"),
    "negative jobs": ([*RUN, "--jobs", "-1"], "--jobs needs at least one worker: got -1"),
    "negative seed": ([*RUN, "--seed", "-1"], "a seed is an integer of at least 0: got -1"),
    "no file": (["study", "run", "none.py"], r"no file none\.py"),
    "broken file": (with_file("a.py", "1 / 0"), "does not run: ZeroDivisionError"),
    "unfinished file": (with_file("a.py", "study = ("), "does not run: SyntaxError"),
    "file that exits": (with_file("a.py", "import sys; sys.exit(0)"), "does not run: SystemExit"),
    "file without a study": (with_file("a.py", "x = 1"), "needs to define `study = RateStudy"),
    "too small n": (
        with_file("a.py", SMALL.read_text().replace("sizes=(23,", "sizes=(1, 23,")),
        "estimator vpt has 3 parameters and needs n >= 3; got n = 1",
    ),
    "starts without content": (
        with_file("a.py", SMALL.read_text() + "\nobject.__setattr__(study, 'starts', lambda: 0)\n"),
        "known by its content",
    ),
    "no scheduler": ([*RUN, "--dask", "nowhere:x"], "no Dask scheduler at 'nowhere:x'"),
    "run into a file": (on_file(*RUN), "cannot write .*name a folder you may write to with --out"),
    "show of nothing": ([*SHOW, "--out", "nothing"], "no rows of study small .* run it first"),
    "show in a file": (on_file(*SHOW), "no rows of study small"),
    "plan of an unknown study": (["study", "plan", "x"], "unknown study 'x'"),
    "no width": (["study", "plan", str(SMALL), "--width", "0", "--out", "nothing"], "positive and finite: got 0"),
    "plan without workers": (["study", "plan", str(SMALL), "--jobs", "0", "--out", "nothing"], "one worker: got 0"),
    "plan in a file": (on_file("study", "plan", str(SMALL)), "cannot write .*name a folder"),
    "no error at all": (on_planted("--target", "0"), "a target is .* positive and finite: got 0"),
    "less than no error": (on_planted("--target", "-0.1"), "positive and finite: got -0.1"),
    "unknown loss": (
        on_planted("--target", "0.1", "--loss", "risk"),
        "unknown loss 'risk': choose one of parameter, excess_risk",
    ),
    "loss without a target": ([*SHOW, "--loss", "parameter"], "--loss belongs to a target"),
    "export of nothing": (["study", "export", str(SMALL), "--out", "nothing"], "no rows of study small"),
    "unknown format": (["study", "export", str(SMALL), "--format", "xlsx"], "unknown format 'xlsx'"),
    "figures of nothing": (["figures", "--rows", "nothing"], "no exported rows in nothing"),
    "unknown expert": (["identifiability", "--expert", "vap"], "unknown expert 'vap'.*did you mean 'vapt'"),
    "unknown activation": (["identifiability", "--expert", "vapt", "--activation", "thanh"], "did you mean 'tanh'"),
    "no rank": (["identifiability", "--expert", "vapt", "--rank", "0"], "hidden layers of 1 to 12 units: got 0"),
    "rank of nothing": (["identifiability", "--rank", "2"], "belong to an expert"),
    "no picture": ([*VIEW, "none.png"], "none.png does not exist"),
    "corrupt picture": (on_text(*VIEW), "cannot be read as a picture"),
    "two heads": ([*VIEW, str(PHOTO), "--random-head", "--weights", "a"], "exclude each other"),
    "no weights": ([*VIEW, str(PHOTO), "--weights", "none.safetensors"], "does not exist"),
    "corrupt weights": (on_text(*VIEW, str(PHOTO), "--weights"), "none of the checkpoints known here"),
    "unknown prompt": ([*VIEW, str(PHOTO), "--prompt", "vat"], "unknown prompt"),
    "unknown picture format": ([*VIEW, str(PHOTO), "--out", "a.xyz"], r"figures are written as \.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_code_2(command, tmp_path, case):
    arguments, words = BAD[case]
    code, shown, errors = command(*(arguments(tmp_path) if callable(arguments) else arguments))
    assert code == 2 and shown == ""
    assert errors.startswith("moe-prompt: ") and errors.count("\n") == 1 and len(errors) < 400
    assert re.search(words, errors), errors


@pytest.mark.parametrize("arguments", [["study", "run"], ["study", "fly"], [*RUN, "--jobs", "two"], [*RUN, "--quik"]])
def test_usage_errors_are_code_2(command, arguments):
    code, _, errors = command(*arguments)
    assert code == 2 and "Error" in errors and "Traceback" not in errors


def test_no_traceback_from_outside(tmp_path):
    """The process itself, not its function."""
    (tmp_path / "a.py").write_text("from moe_prompt.errors import nothing")
    run = subprocess.run([*PROGRAM, "study", "run", "a.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == "" and run.stderr.startswith("moe-prompt: a.py does not run: ImportE")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [RUN, SHOW, ["study", "export", str(SMALL)]])
@pytest.mark.parametrize("damage", ["garbage", "truncated", "columns"])
def test_a_damaged_database_is_a_sentence_and_stays_as_it_is(command, tmp_path, words, damage):
    path = archive.database(stored(tmp_path / "a"), "small")
    if damage == "columns":
        connection = sqlite3.connect(path)
        connection.execute("ALTER TABLE fits RENAME COLUMN offset TO onset")
        connection.commit()
        connection.close()
    else:
        raw = path.read_bytes()
        path.write_bytes(os.urandom(4096) if damage == "garbage" else raw[: len(raw) // 2])
    before = path.read_bytes()
    code, shown, errors = command(*words, "--out", "a")
    assert code == 2 and shown == "" and errors.count("\n") == 1
    assert "other columns" in errors if damage == "columns" else "not a usable database" in errors
    assert path.read_bytes() == before


def test_the_first_replicates_alone_and_then_the_rest(command, tmp_path):
    """Two replicates of every cell and size, which the whole run keeps as they are."""
    command(*RUN, "--quick", "--replicates", "2", "--jobs", "1", "--out", "a")
    path = archive.database(tmp_path / "a", "small")
    few = rows_of(path)
    command(*RUN, "--quick", "--jobs", "1", "--out", "a")
    assert len(few) == 16 and len(rows_of(path)) == 24 and rows_of(path)[:16] == few


def test_a_failed_run_leaves_earlier_rows(command, tmp_path):
    path = archive.database(stored(tmp_path / "a"), "small")
    before = rows_of(path)
    assert command(*RUN, "--out", "a", "--dask", "nowhere:x", "--seed", 5)[0] == 2
    assert rows_of(path) == before and len(before) == 60


# --------------------------------------------------------------------------------------------- what it prints


def strict(text: str):
    """JSON without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


CELL = {"truth", "estimator", "loss", "slope", "stderr", "predicted_slope", "efficiency", "floor", "failed", "missed"}


def test_show_json(command, tmp_path):
    stored(tmp_path / "a")
    code, shown, errors = command(*SHOW, "--json", "--out", "a")
    told = strict(shown)
    assert code == 0 and errors == "" and told["study"] == "small" and told["key"] == study.key
    assert all(set(cell) >= CELL for cell in told["cells"]) and len(told["cells"]) == 6
    assert {cell["loss"] for cell in told["cells"]} == {"parameter", "excess_risk"}
    for cell in told["cells"]:
        matched = cell["truth"] == cell["estimator"]
        assert (cell["efficiency"] is not None) == matched == (cell["floor"] is None)
        assert cell["fits"] == 15 and cell["failed"] == 0 and isinstance(cell["slope"], float)
        assert [entry["n"] for entry in cell["by_size"]] == [23, 61, 157]
    assert not list((tmp_path / "a").glob("*.png"))


def test_show_tells_the_n_that_a_target_takes(command, tmp_path):
    stored(tmp_path / "a")
    words = ("--target", 0.3, "--loss", "parameter", "--out", "a")
    told = strict(command(*SHOW, *words, "--json")[1])
    assert (told["study"], told["key"], told["target"]) == ("small", study.key, 0.3)
    assert [(cell["truth"], cell["loss"]) for cell in told["cells"]] == [("vpt", "parameter"), ("vapt", "parameter")]
    assert all(80 < cell["n"] < 125 and cell["low"] < cell["n"] < cell["high"] for cell in told["cells"])
    code, shown, errors = command(*SHOW, *words)
    assert code == 0 and errors == "" and "rows   a/small.sqlite" in shown
    assert all(f"  {cell['n']:,.0f}  " in shown for cell in told["cells"])
    assert not list((tmp_path / "a").glob("*.png"))


def test_plan_by_rows_that_are_there(command, tmp_path):
    """And none of them is written."""
    path = archive.database(stored(tmp_path / "a"), "small")
    before = rows_of(path)
    code, shown, errors = command("study", "plan", SMALL, "--out", "a", "--jobs", 2, "--width", 0.05)
    assert code == 0 and errors == "" and "small: 60 fits, 0 of them" in shown
    assert "60 rows of a/small.sqlite" in shown and "95 % intervals at most 0.0" in shown
    told = strict(command("study", "plan", SMALL, "--out", "a", "--json")[1])
    assert (
        told["left"] == 0 and len(told["slopes"]) == 6 and told["wanted"] == [] and "a/small.sqlite" in told["source"]
    )
    assert rows_of(path) == before


def test_plan_by_a_pilot_whose_rows_stay(command, tmp_path):
    code, shown, errors = command("study", "plan", SMALL, "--out", "a", "--jobs", 1)
    assert code == 0 and "Traceback" not in errors and "pilot at n = 23, 61" in shown
    assert "small: 60 fits, 20 of them" in shown
    code, shown, _ = command("study", "run", SMALL, "--out", "a", "--jobs", 1)
    assert code == 0 and "small: 20 new fits" in shown


def test_show_json_of_failed_fits(command, tmp_path):
    rows = planted_rows(study)
    gone = (rows.truth == "vpt") & (rows.n == 157)
    rows.loc[gone, ["excess_risk", "parameter_loss", "efficiency", "squared_error", "projection_risk"]] = None
    rows.loc[gone, "objective"] = float("inf")
    rows.loc[gone, "converged"] = 0
    stored(tmp_path / "a", rows)
    cells = strict(command(*SHOW, "--json", "--out", "a")[1])["cells"]
    assert [cell["failed"] for cell in cells] == [5 if cell["truth"] == "vpt" else 0 for cell in cells]
    assert all((cell["by_size"][-1]["mean"] is None) == (cell["truth"] == "vpt") for cell in cells)
    assert command(*SHOW, "--out", "a")[0] == 0


def test_other_json(command):
    told = strict(command("identifiability", "--expert", "vapt", "--json")[1])
    assert len(told["families"]) == 1
    assert strict(command(*VIEW, PHOTO, "--num-prompts", 3, "--json")[1])


def test_export_prints_what_it_wrote(command, tmp_path):
    stored(tmp_path / "a")
    code, shown, _ = command("study", "export", SMALL, "--out", "a")
    assert code == 0 and shown.split() == ["a/small.csv", "a/small.json"]
    assert all((tmp_path / line).exists() for line in shown.split())
    strict((tmp_path / "a" / "small.json").read_text())


def test_list_names_every_study(command):
    code, shown, _ = command("study", "list")
    told = [line.split(maxsplit=3) for line in shown.splitlines()]
    assert code == 0 and [name for name, *_ in told] == list(studies.NAMES)
    for name, fits, word, claim in told:
        text = (Path(studies.__file__).parent / "named" / f"{studies.NAMES[name]}.py").read_text()
        assert re.search(r"Cost: +(\d+) fits", text)[1] == fits and word == "fits"
        assert claim == studies.load(name).claim


def three_points() -> Figure:
    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    return figure


def test_figures_are_equal_bytes_and_of_the_export_alone(command, monkeypatch, tmp_path):
    monkeypatch.setattr(studies, "NAMES", {"small": "small", "absent": "absent"})
    monkeypatch.setattr(studies, "load", lambda name: study)
    monkeypatch.setattr(bad_sequences, "draw_sequences", three_points)  # test_plotting_sequences draws the whole
    command("study", "export", "small", "--out", stored(tmp_path / "a"))
    results = Results(archive.database(tmp_path / "a", "small"), RateStudy.columns)
    with results.connection as database:
        database.execute("UPDATE fits SET excess_risk = 2 * excess_risk")
    results.close()
    code, shown, _ = command("figures", "--rows", "a", "--out", "one")
    assert code == 0
    assert shown.split() == [
        f"one/{name}{suffix}" for name in ("small", "bad-sequences") for suffix in (".png", ".pdf", ".md")
    ]
    assert "60 fits" in (tmp_path / "one" / "small.md").read_text()
    (tmp_path / "a" / "small.sqlite").unlink()
    assert command("figures", "--rows", "a", "--out", "two")[0] == 0
    for name in ("small", "bad-sequences"):
        for suffix in (".png", ".pdf"):
            one, two = ((tmp_path / folder / f"{name}{suffix}").read_bytes() for folder in ("one", "two"))
            assert one == two and len(one) > (10_000 if name == "small" else 1000)
            assert b"Date" not in one and b"matplotlib" not in one.lower()


def test_view_writes_its_figure(command, tmp_path):
    code, shown, _ = command(*VIEW, PHOTO, "--num-prompts", 3, "--out", "seen/view.png")
    assert code == 0 and "figure seen/view.png" in shown and (tmp_path / "seen" / "view.png").stat().st_size > 10_000


def test_version_and_completion(command):
    import moe_prompt as mp

    assert command("--version") == (0, f"moe-prompt {mp.__version__}\n", "")
    assert "--install-completion" in command("--help")[1]
