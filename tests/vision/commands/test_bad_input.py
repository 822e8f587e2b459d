"""Bad input by the command line: one sentence that names the file, code 2, no traceback, and rows stay."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_prompt.vision.tuning.run_table import read_rows
from tests.builders.planted_tasks import pixels, relabel, save
from tests.builders.small_files import CONFIG, bars, vit_file

TRAIN = ("train", "--data", "bars", "--backbone", "vit.safetensors", "--epochs", 1, "--method", "vpt-deep")
TUNE = ("tune", *TRAIN[1:], "--search", "small", "--seeds", 1)
PICTURE = "bars/images/train800/000004.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a task, and runs with a row."""
    place = tmp_path_factory.mktemp("sound")
    vit_file(place / "vit.safetensors")
    bars(place / "bars")
    return place


@pytest.fixture
def place(folder, tmp_path):
    """A copy of it to spoil."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


def is_refused(found: tuple[int, str, str], says: str, sentences: int = 1) -> None:
    """Code 2, nothing on standard output, and the sentence last; nothing else but what a checkpoint held."""
    code, shown, errors = found
    own = [line for line in errors.splitlines() if line.startswith("moe-prompt: ")]
    assert code == 2 and shown == "" and "Traceback" not in errors
    assert len(own) == sentences and errors.endswith(own[-1] + "\n") and len(own[-1]) < 600, errors
    assert re.search(says, own[-1]), own[-1]


# --------------------------------------------------------------------------------------------- words


def without(name: str, *words: object) -> tuple[object, ...]:
    """The words of a training without an option."""
    place = TRAIN.index(name)
    return (*TRAIN[:place], *TRAIN[place + 2 :], *words)


WORDS = {
    "no data": (without("--data"), "train needs --data, a folder of pictures; or --quick"),
    "no data to tune": (("tune",), "tune needs --data"),
    "absent data": (without("--data", "--data", "none"), "none does not exist: give the folder or file of a task"),
    "data of no layout": (without("--data", "--data", "vit.safetensors"), "vit.safetensors is laid out in no way"),
    "unknown method": ((*TRAIN, "--method", "vpat"), "unknown method 'vpat'.*did you mean 'vapt'"),
    "unknown method to tune": ((*TUNE, "--method", "linaer"), "unknown method 'linaer'.*did you mean 'linear'"),
    "no such file": ((*TRAIN, "--method", "own.py"), "no file own.py"),
    "unknown option": ((*TRAIN, "--set", "prompts=3"), "unknown option of vpt-deep 'prompts'"),
    "option of another kind": ((*TRAIN, "--set", "num_prompts=few"), "num_prompts is a whole number: got 'few'"),
    "option of many": ((*TUNE, "--method", "linear", "--set", "rank=3"), "--set belongs to one method"),
    "the same method twice": ((*TUNE, "--method", "vpt-deep"), "every --method needs another name"),
    "unknown backbone": (without("--backbone", "--backbone", "vit"), "'vit' is neither a file nor a backbone known"),
    "absent file": (without("--backbone", "--backbone", "a/b.npz"), "a/b.npz does not exist"),
    "a picture as backbone": (without("--backbone", "--backbone", PICTURE), "000004.png is none of the checkpoints"),
    "unknown device": ((*TRAIN, "--device", "gpu"), "--device gpu cannot be used"),
    "absent device": ((*TRAIN, "--device", "cuda:97"), "--device cuda:97 cannot be used"),
    "unknown precision": ((*TRAIN, "--precision", "fp8"), "unknown precision 'fp8': choose one of float32, bf16, fp16"),
    "unknown pooling": ((*TRAIN, "--pooling", "max"), "pooling"),
    "unknown normalisation": ((*TRAIN, "--normalisation", "image"), "unknown normalisation 'image'"),
    "unknown optimizer": ((*TRAIN, "--optimizer", "adam"), "unknown optimizer 'adam'.*did you mean 'adamw'"),
    "unknown class weights": (
        (*TRAIN, "--class-weights", "none"),
        "unknown class_weights 'none': choose one of balanced",
    ),
    "no multiple of the patch": ((*TRAIN, "--image", 18), "patches of 4 pixels needs pictures.*got 18 x 18"),
    "no pixels": ((*TRAIN, "--image", 0), "--image is a number of pixels: got 0"),
    "no epochs": ((*TRAIN, "--epochs", 0), "epochs needs a whole number of at least 1: got 0"),
    "too much warm-up": ((*TRAIN, "--warmup", 2), "2 epochs of warm-up in 1"),
    "no learning rate": ((*TRAIN, "--lr", "nan"), "base_lr needs a finite number"),
    "negative seed": ((*TRAIN, "--seed", -1), "seed needs a whole number of at least 0: got -1"),
    "no share": ((*TRAIN, "--share", 0), r"--share is a share in \(0, 1\]: got 0"),
    "too large a share": ((*TRAIN, "--test-share", 2), r"--test-share is a share in \(0, 1\]: got 2"),
    "unknown search": ((*TUNE, "--search", "grid"), "unknown search 'grid'"),
    "trials of a grid": ((*TUNE, "--trials", 3), "has 6 trials of its own: got 3"),
    "no trials": ((*TUNE, "--search", "random", "--trials", 0), "at least one trial: got 0"),
    "no seeds": ((*TUNE, "--seeds", 0), "--seeds is how many of the 5 seeds are run: got 0"),
    "six seeds": ((*TUNE, "--seeds", 6), "--seeds is how many of the 5 seeds are run: got 6"),
    "unknown name": (("fetch", "dsprite"), "nothing is named 'dsprite'"),
    "--out of a backbone": (("fetch", "vit-b16-in21k", "--out", "a"), "belong to picture sets"),
    "report of nothing": (("report",), "runs has no runs"),
    "report of no rows": (("report", "--out", "vit.safetensors"), "vit.safetensors is not a usable database"),
    "predict by nothing": (("predict", "--tuned", "none", PICTURE), "none is not a file"),
    "predict by a backbone": (("predict", "--tuned", "vit.safetensors", PICTURE), "is not a tuned prompt set"),
    "import of nothing": (("import", "none.pth", *TRAIN[1:5]), "none.pth is not a file"),
    "import of something else": (("import", "vit.safetensors", *TRAIN[1:5]), "vit.safetensors lacks enc.transformer"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words(command, place, case):
    words, says = WORDS[case]
    is_refused(command(*words), says)
    assert not (place / "runs" / "runs").exists()  # nothing was begun


# --------------------------------------------------------------------------------------------- tasks


def truncate(place):
    whole = (place / PICTURE).read_bytes()
    (place / PICTURE).write_bytes(whole[: len(whole) // 2])


def empty(place):
    (place / "bars" / "val200.txt").write_text("")


def gap(place):
    """The test split alone has a picture of a fourth class, which has a name."""
    with (place / "bars" / "classes.txt").open("a") as stream:
        stream.write("beside\n")
    relabel(place / "bars" / "test.txt", 5, 3)


SPOILT = {
    "a truncated picture": (truncate, r"000004.png cannot be read as a picture \(image file is truncated"),
    "no picture": (lambda place: (place / PICTURE).write_text("text"), r"000004.png cannot .* \(it is no picture\)"),
    "a missing file": (lambda place: (place / PICTURE).unlink(), "000004.png, listed in .*train800.*, does not exist"),
    "a label out of range": (
        lambda place: relabel(place / "bars" / "train800.txt", 4, 3),
        "train800.txt gives .*000004.png the label 3, out of range as there are 3 classes",
    ),
    "no label": (
        lambda place: relabel(place / "bars" / "train800.txt", 4, "x"),
        "line 5 of bars/train800.txt needs a path and a whole number",
    ),
    "an empty split": (empty, "val200.txt holds no pictures"),
    "a class gap": (gap, r"test.txt holds pictures of 1 class that no training split has \(beside; .*000005.png"),
    "no validation": (
        lambda place: [(place / "bars" / f"{name}.txt").unlink() for name in ("val200", "train800val200")],
        "bars needs train800, val200, train800val200 and test",
    ),
}


@pytest.mark.parametrize("words", [TRAIN, TUNE], ids=["train", "tune"])
@pytest.mark.parametrize("case", SPOILT)
def test_tasks(command, place, words, case):
    """Rows that are there already stay, and the same command goes on once the task is mended."""
    assert command(*TRAIN, "--method", "linear")[0] == 0
    rows = read_rows(place / "runs")
    spoil, says = SPOILT[case]
    spoil(place)
    is_refused(command(*words), says)
    assert read_rows(place / "runs") == rows and len(rows) == 1
    shutil.rmtree(place / "bars")
    bars(place / "bars")
    assert command(*TRAIN)[0] == 0 and len(read_rows(place / "runs")) == 2


@pytest.mark.parametrize("case", [case for case in SPOILT if case != "no validation"])
def test_verify_tells_them(command, place, case):
    spoil, says = SPOILT[case]
    spoil(place)
    code, shown, errors = command("verify", "--data", "bars", "--json")
    assert code == 2 and errors == "" and any(re.search(says, problem) for problem in json.loads(shown)["problems"])


def cmyk(place):
    inks = np.dstack([pixels(5, 16, 12), np.full((16, 12), 40, np.uint8)])
    save(place / PICTURE, Image.fromarray(inks, "CMYK"), format="TIFF")
    paper = 255.0 - inks
    return np.rint(paper[..., :3] * paper[..., 3:] / 255)


def deep_grey(place):
    grey = np.random.default_rng(3).integers(0, 65_536, (16, 12), dtype=np.uint16)
    save(place / PICTURE, Image.fromarray(grey))
    return np.repeat(np.rint(grey / 257)[..., None], 3, axis=2)


def palette(place):
    colours = pixels(7, 5, 1).reshape(5, 3)
    indices = np.random.default_rng(3).integers(0, 5, (16, 12), dtype=np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colours.flatten().tolist())
    save(place / PICTURE, picture)
    return colours[indices]


CONVERTED = {"CMYK": (cmyk, "CMYK"), "16-bit grey": (deep_grey, "16-bit grey"), "palette": (palette, "palette")}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", CONVERTED)
def test_pictures_of_other_kinds_are_converted_and_told(command, place, case):
    """Trained on as they are defined to look, and told by verify; the numbers are computed here from the file's."""
    from moe_prompt.vision.data.layouts.open_task import open_task

    make, note = CONVERTED[case]
    expected = make(place)
    code, shown, _ = command("verify", "--data", "bars")
    assert code == 0 and re.search(f"warning: .*000004.png in .*train800.txt is .*{note}", shown), shown
    picture = np.asarray(open_task(place / "bars").split("train800").pictures[4]).astype(int)
    assert np.abs(picture - expected).max() <= 1
    assert command(*TRAIN)[0] == 0


# --------------------------------------------------------------------------------------------- checkpoints and folders


def test_the_checkpoint_of_another_model(command, place):
    """By the name of a published file, by a tuned file, by a file cut short."""
    vit_file(place / "wide.safetensors", replace(CONFIG, dim=48))
    tuned = json.loads(command(*TRAIN, "--json")[1])["tuned"]
    wide = ("--backbone", "wide.safetensors")
    is_refused(command("predict", "--tuned", tuned, *wide, PICTURE), f"{tuned} was tuned on another backbone")
    whole = (place / "vit.safetensors").read_bytes()
    (place / "vit.safetensors").write_bytes(whole[: len(whole) // 2])
    is_refused(command(*TRAIN), "vit.safetensors")
    assert len(read_rows(place / "runs")) == 1


def test_the_file_of_a_named_backbone_is_the_one_it_should_be(command, place):
    is_refused(
        command("fetch", "vit-b16-in21k", "--file", "vit.safetensors"),
        "vit.safetensors is not ViT-B_16.npz: its md5 is .* begins with d9715d was required",
    )


def test_a_picture_that_cannot_be_read_is_told_after_those_that_can(command, place):
    tuned = json.loads(command(*TRAIN, "--json")[1])["tuned"]
    words = ("predict", "--tuned", tuned, *TRAIN[3:5])
    truncate(place)
    is_refused(command(*words, PICTURE), "000004.png cannot be read as a picture")
    is_refused(command(*words, "absent.png"), "absent.png does not exist")


@pytest.mark.parametrize("words", [TRAIN, TUNE], ids=["train", "tune"])
def test_a_folder_that_cannot_be_written(command, place, words):
    (place / "file").write_text("")
    is_refused(command(*words, "--out", "file/runs"), "cannot write file/runs/.*name a folder you may write to")


@pytest.mark.parametrize("damage", ["garbage", "half", "columns"])
@pytest.mark.parametrize("words", [TRAIN, TUNE, ("report",)], ids=["train", "tune", "report"])
def test_a_damaged_table_of_runs_stays_as_it_is(command, place, words, damage):
    command(*TRAIN, "--method", "linear")
    path = place / "runs" / "runs.sqlite"
    if damage == "columns":
        import sqlite3

        connection = sqlite3.connect(path)
        connection.execute("ALTER TABLE runs RENAME COLUMN seed TO sead")
        connection.commit()
        connection.close()
    else:
        path.write_bytes(os.urandom(4096) if damage == "garbage" else path.read_bytes()[:5000])
    before = path.read_bytes()
    is_refused(command(*words), "runs/runs.sqlite (has other columns|is not a usable database)")
    assert path.read_bytes() == before
