"""Each layout as real files, read back by picture and label; bad files are refused in a sentence that names them."""

import gzip
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image

from moe_prompt.attention.decoding import SIXTEEN_BITS
from moe_prompt.errors import InputError
from moe_prompt.vision.data.layouts.open_task import LAYOUTS, open_task, read_task, task_folders
from tests.builders.planted_tasks import COUNTS, labels, pixels, relabel, save, vtab


def refused(path, says: str, layout: str | None = None) -> None:
    """One sentence, which begins with the file at fault or names it."""
    with pytest.raises(InputError) as caught:
        open_task(path, layout)
    assert re.search(says, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_vtab_lists(tmp_path):
    task = open_task(vtab(tmp_path / "mine"))
    assert (task.name, task.layout, task.classes) == ("mine", "vtab", ("0", "1", "2"))
    assert {name: len(split) for name, split in task.splits.items()} == {**COUNTS, "train800val200": 18}
    assert task.split("test").labels.tolist() == labels(17) and task.split("test").labels.dtype == np.int64
    assert (np.asarray(task.split("test").pictures[4]) == pixels(2004)).all()
    union = task.split("train800val200")
    assert union.labels.tolist() == labels(13) + labels(5)
    assert union.pictures.named(13) == str(tmp_path / "mine/images/val200/000000.png")


def test_vtab_names(tmp_path):
    """A known task has the published number of classes, a classes.txt its own; aliases of a folder are understood."""
    assert len(open_task(vtab(tmp_path / "CIFAR-100")).classes) == 100
    assert open_task(tmp_path / "CIFAR-100").name == "cifar"
    assert open_task(tmp_path / "cifar").name == open_task(tmp_path / "cifar100").name == "cifar"
    (vtab(tmp_path / "named") / "classes.txt").write_text("ant\nbee hive\ncat\ndog\n")
    assert open_task(tmp_path / "named").classes == ("ant", "bee hive", "cat", "dog")
    (tmp_path / "named" / "classes.txt").write_text("ant\nbee\nbee\n")
    refused(tmp_path / "named", "named/classes.txt needs one name a line")
    refused(tmp_path, "holds tasks and is none: .*CIFAR-100")
    assert task_folders(tmp_path) == (tmp_path / "CIFAR-100", tmp_path / "named")
    assert task_folders(tmp_path / "absent") == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("images/test/000003.png", "line 4 of .*test.txt needs a path and a whole number"),
        ("images/test/000003.png two", "line 4 of .*test.txt"),
        ("images/test/000003.png 1.5", "line 4 of .*test.txt"),
        ("images/test/000003.png 99", "test.txt gives .*000003.png the label 99, out of range as there are 3 classes"),
        ("images/test/000003.png -1", "test.txt gives .*000003.png the label -1, out of range"),
        ("images/test/000003.png 3", "test.txt holds pictures of 1 class that no training split has .*000003.png"),
        ("images/test/000033.png 1", "images/test/000033.png, listed in .*test.txt, does not exist"),
    ],
)
def test_bad_lines_of_a_list(tmp_path, line, says):
    listing = vtab(tmp_path / "mine") / "test.txt"
    lines = listing.read_text().splitlines()
    lines[3] = line
    listing.write_text("\n".join(lines))
    refused(tmp_path / "mine", says)


def test_lists_as_people_write_them(tmp_path):
    """Tabs, spaces in names, blank lines, Windows line ends."""
    folder = vtab(tmp_path / "mine")
    save(folder / "images/test/a b.png", pixels(5))
    (folder / "test.txt").write_bytes(b"images/test/a b.png\t2\r\n\r\n  images/test/000000.png   0 \r\n")
    split = open_task(folder).split("test")
    assert split.labels.tolist() == [2, 0] and (np.asarray(split.pictures[0]) == pixels(5)).all()
    (folder / "test.txt").write_bytes(b"images/\xff.png 1")
    refused(folder, "test.txt cannot be read as text")
    (folder / "test.txt").write_text("\n")
    refused(folder, "test.txt holds no pictures")


def fgvc(folder, ids: dict[str, list], inside: str = "") -> object:
    for place, (split, values) in enumerate(ids.items()):
        listed = {f"{split}/{index}.png": value for index, value in enumerate(values)}
        for index in range(len(values)):
            save(folder / inside / f"{split}/{index}.png", pixels(100 * place + index))
        (folder / f"{split}.json").write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize("inside", ["", "images", "Images"])
def test_fgvc_has_one_class_map(tmp_path, inside):
    """Fault of released pipelines: ids numbered per split. Here the validation lacks ids that training has."""
    ids = {"train": [1010, 295, 300, 999], "val": [999, 300], "test": [295, 1010, 999]}
    task = open_task(fgvc(tmp_path / "birds", ids, inside))
    assert task.classes == ("295", "300", "999", "1010")
    for name, values in ids.items():
        split = task.split(name)
        assert [task.classes[label] for label in split.labels] == [str(value) for value in values]
    assert (np.asarray(task.split("val").pictures[1]) == pixels(101)).all()


def test_fgvc_ids_that_are_strings(tmp_path):
    task = open_task(fgvc(tmp_path / "cub", {"train": ["010", "002", "001"], "val": ["010"], "test": ["002"]}))
    assert task.name == "cub" and task.classes == ("001", "002", "010") and task.split("val").labels.tolist() == [2]
    mixed = open_task(fgvc(tmp_path / "mixed", {"train": [7, "b", "10"], "test": ["7", 10]}))
    assert mixed.classes == ("10", "7", "b") and mixed.split("test").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"test/0.png": 1', "test.json cannot be read as JSON"),
        ('["test/0.png"]', "test.json needs one object"),
        ('{"test/0.png": 1.5}', "test.json gives test/0.png the class id 1.5"),
        ('{"test/0.png": null}', "test.json gives test/0.png the class id None"),
        ('{"test/0.png": true}', "test.json gives test/0.png the class id True"),
        ('{"test/0.png": 77}', "test.json holds pictures of 1 class that no training split has .77"),
        ("{}", "test.json holds no pictures"),
        ('{"test/9.png": 1}', "test/9.png, listed in .*test.json, does not exist"),
    ],
)
def test_bad_json(tmp_path, content, says):
    folder = fgvc(tmp_path / "birds", {"train": [1, 2], "val": [1], "test": [1]})
    (folder / "test.json").write_text(content)
    refused(folder, says)


def test_image_folder(tmp_path):
    for split, called in (("train", "Training"), ("val", "valid"), ("test", "test")):
        for name, count in (("bee", 3), ("ant", 2)):
            for index in range(count):
                save(tmp_path / "mine" / called / name / "deep" / f"{index}.JPG", pixels(index), format="JPEG")
        (tmp_path / "mine" / called / "bee" / "Thumbs.db").touch()
        (tmp_path / "mine" / called / ".hidden").mkdir()
        assert split in open_task(tmp_path / "mine").splits
    task = open_task(tmp_path / "mine")
    assert list(task.splits) == ["train", "val", "test"] and task.classes == ("ant", "bee")
    assert task.split("test").labels.tolist() == [0, 0, 1, 1, 1]
    assert task.split("test").pictures.named(2) == str(tmp_path / "mine/test/bee/deep/0.JPG")
    save(tmp_path / "mine/test/cat/0.png", pixels(0))
    refused(tmp_path / "mine", r"mine/test holds pictures of 1 class that no training split has \(cat")


def test_image_folder_without_splits(tmp_path):
    for name in ("ant", "bee"):
        save(tmp_path / "mine" / name / "0.png", pixels(0))
    task = open_task(tmp_path / "mine")
    assert list(task.splits) == ["train"] and task.split("train").labels.tolist() == [0, 1]
    (tmp_path / "mine" / "test" / "ant").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "ant").mkdir(parents=True)
    save(tmp_path / "mine" / "train" / "ant" / "0.png", pixels(0))
    refused(tmp_path / "mine", "mine/test holds no pictures")


def test_numpy_archives(tmp_path):
    images = np.stack([pixels(index) for index in range(7)])
    whole = {
        "train_images": images[:4],
        "train_labels": [[0], [1], [2], [0]],
        "x_test": images[4:],
        "y_test": [2, 1, 0],
    }
    np.savez_compressed(tmp_path / "mine.npz", **whole)
    task = open_task(tmp_path / "mine.npz")
    assert task.name == "mine" and task.classes == ("0", "1", "2") and list(task.splits) == ["train", "test"]
    assert task.split("test").labels.tolist() == [2, 1, 0] and task.split("train").labels.tolist() == [0, 1, 2, 0]
    assert (np.asarray(task.split("test").pictures[2]) == images[6]).all()
    assert task.split("test").pictures.named(1) == f"picture 1 of x_test in {tmp_path / 'mine.npz'}"
    np.savez(tmp_path / "alone.npz", images=images[..., 0], labels=np.arange(7, dtype=np.uint8))
    assert len(open_task(tmp_path / "alone.npz").split("train")) == 7


def test_numpy_folders(tmp_path):
    images = np.stack([pixels(index)[..., 0] for index in range(7)])
    for split, part in (("train", slice(0, 4)), ("validation", slice(4, 7))):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        np.save(tmp_path / "pairs" / f"{split}_images.npy", images[part])
        np.save(tmp_path / "pairs" / f"{split}_labels.npy", np.arange(7)[part] % 3)
        (tmp_path / "archives").mkdir(exist_ok=True)
        np.savez(tmp_path / "archives" / f"{split}.npz", images=images[part], labels=np.arange(7)[part] % 3)
    for name in ("pairs", "archives"):
        task = open_task(tmp_path / name)
        assert list(task.splits) == ["train", "val"] and task.split("val").labels.tolist() == [1, 2, 0]
        assert (np.asarray(task.split("val").pictures[0])[..., 1] == images[4]).all()
    assert isinstance(read_task(tmp_path / "pairs").split("val").pictures.array, np.memmap)
    (tmp_path / "pairs" / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    assert open_task(tmp_path / "pairs").classes == ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((2, 5, 7), np.float32), "labels": [0, 1]}, "images in .* needs pictures as uint8"),
        ({"images": np.zeros((2, 5, 7), np.uint8)}, "split train of .* found its images alone"),
        ({"images": np.zeros((2, 5, 7), np.uint8), "labels": [0]}, "labels in .* has 1 labels for the 2 pictures"),
        ({"images": np.zeros((2, 5, 7), np.uint8), "labels": [0.0, 1.0]}, "labels in .* whole number .* float64"),
        ({"images": np.zeros((2, 5, 7), np.uint8), "labels": [[0, 1], [1, 0]]}, r"labels in .* shape \(2, 2\)"),
        ({"images": np.zeros((2, 5, 7), np.uint8), "labels": [0, 2]}, "labels in .* the label 2, out of range"),
        (
            {"images": np.array([{}], dtype=object), "labels": [0]},
            "cannot be read as arrays .* without pickled objects",
        ),
        ({"pixels": np.zeros((2, 5, 7), np.uint8)}, "holds no split"),
    ],
)
def test_bad_arrays(tmp_path, arrays, says):
    np.savez(tmp_path / "mine.npz", **arrays)
    refused(tmp_path / "mine.npz", says)


def test_a_cut_archive(tmp_path):
    np.savez(tmp_path / "mine.npz", images=np.zeros((9, 5, 7), np.uint8), labels=np.zeros(9, np.int64))
    whole = (tmp_path / "mine.npz").read_bytes()
    (tmp_path / "mine.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "mine.npz", r"mine\.npz cannot be read as arrays")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_folder(folder, packed: bool):
    folder.mkdir()
    for name, place, count in (("train", 0, 11), ("t10k", 50, 5)):
        images = np.stack([pixels(place + index)[..., 0] for index in range(count)])
        for kind, data in (("images-idx3", images), ("labels-idx1", np.array(labels(count)))):
            content = gzip.compress(idx(data)) if packed else idx(data)
            (folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}").write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    task = open_task(idx_folder(tmp_path / "fashion", packed))
    assert task.layout == "idx" and list(task.splits) == ["train", "test"] and task.classes == ("0", "1", "2")
    assert task.split("test").labels.tolist() == labels(5)
    assert (np.asarray(task.split("test").pictures[3])[..., 2] == pixels(53)[..., 0]).all()
    assert isinstance(task.split("test").pictures.array, np.memmap) != packed


@pytest.mark.parametrize("packed", [False, True])
def test_bad_idx_files(tmp_path, packed):
    folder = idx_folder(tmp_path / "fashion", packed)
    images = next(folder.glob("t10k-images*"))
    images.write_bytes(images.read_bytes()[:-3])
    refused(folder, r"t10k-images-idx3-ubyte\S* (cannot be read as an idx file|needs [0-9]+ bytes)")
    images.write_bytes(b"\x1f\x8bnonsense" if packed else b"\0\0\x0d\x03")
    refused(folder, r"t10k-images-idx3-ubyte\S* (cannot be read|is not an idx file)")
    images.unlink()
    refused(folder, r"split test of .* found its labels alone")


def parquet(path, rows: list[dict], names: list[str] | None = None, group: int = 3, label: str = "label") -> None:
    import pyarrow as arrow
    import pyarrow.parquet

    table = arrow.Table.from_pylist(rows)
    if names is not None:
        features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def rows(tmp_path, first: int, count: int, label=lambda index: index % 3, column: str = "label") -> list[dict]:
    found = []
    for index in range(first, first + count):
        data = save(tmp_path / "one.png", pixels(index)).read_bytes()
        found.append({"image": {"bytes": data, "path": f"{index}.png"}, column: label(index)})
    return found


@pytest.mark.parametrize("data", ["", "data"])
def test_parquet_exports(tmp_path, data):
    folder = tmp_path / "mine"
    for shard in range(2):
        name = f"train-{shard:05d}-of-00002.parquet"
        parquet(folder / data / name, rows(tmp_path, 7 * shard, 7), ["ant", "bee", "cat"])
    parquet(folder / data / "validation-00000-of-00001.parquet", rows(tmp_path, 20, 5), ["ant", "bee", "cat"])
    task = open_task(folder)
    assert task.classes == ("ant", "bee", "cat") and list(task.splits) == ["train", "val"]
    train = task.split("train")
    assert train.labels.tolist() == [index % 3 for index in range(14)]
    for index in (0, 13, 6, 7, 2):  # across shards and row groups, not in order
        assert (np.asarray(train.pictures[index]) == pixels(index)).all()
    assert train.pictures.named(9) == f"row 2 of {folder / data / 'train-00001-of-00002.parquet'}"
    assert len(list(train.pictures)) == 14
    (folder / data / "train-00000-of-00002.parquet").unlink()
    refused(folder, "train-00000-of-00002.parquet does not exist beside train-00001-of-00002.parquet")


def test_parquet_keeps_a_bounded_cache(tmp_path, monkeypatch):
    import pickle

    from moe_prompt.vision.data.layouts import parquet as layout

    parquet(tmp_path / "train.parquet", rows(tmp_path, 0, 11))
    pictures = open_task(tmp_path / "train.parquet").split("train").pictures
    list(pictures)
    assert len(pictures._kept) == 4
    assert (
        len(pickle.dumps(pictures)) < 2000
        and (np.asarray(pickle.loads(pickle.dumps(pictures))[10]) == pixels(10)).all()
    )
    monkeypatch.setattr(layout, "KEPT_BYTES", 1)
    assert (np.asarray(pictures[5]) == pixels(5)).all()
    pictures._kept.clear()
    assert (np.asarray(pictures[9]) == pixels(9)).all() and len(pictures._kept) == 1


def test_parquet_labels_by_name_and_the_fine_ones(tmp_path):
    """CIFAR-100's export has `fine_label` and `coarse_label`, others strings; the hub's own conversion has folders."""
    for split, first in (("train", 0), ("test", 30)):
        table = [{**row, "coarse_label": 0} for row in rows(tmp_path, first, 6, column="fine_label")]
        parquet(tmp_path / f"cifar/{split}/0000.parquet", table)
        named = rows(tmp_path, first, 6, label=lambda index: "bca"[index % 3])
        parquet(tmp_path / f"named/{split}-00000-of-00001.parquet", named)
    assert open_task(tmp_path / "cifar").split("test").labels.tolist() == [0, 1, 2, 0, 1, 2]
    task = open_task(tmp_path / "named")
    assert task.classes == ("a", "b", "c") and task.split("test").labels.tolist() == [1, 2, 0, 1, 2, 0]


def test_bad_parquet(tmp_path):
    parquet(tmp_path / "train.parquet", rows(tmp_path, 0, 5, label=lambda index: None if index == 3 else 0))
    refused(tmp_path / "train.parquet", "column label of .*train.parquet needs .* got None")
    parquet(tmp_path / "train.parquet", rows(tmp_path, 0, 5, column="age"))
    refused(tmp_path / "train.parquet", "train.parquet needs a column of kind ClassLabel, .* it has image, age")
    parquet(tmp_path / "train.parquet", rows(tmp_path, 0, 5, label=lambda index: -1), ["ant"])
    refused(tmp_path / "train.parquet", "train.parquet gives row 0 of .* the label -1, out of range")
    whole = rows(tmp_path, 0, 5, label=lambda index: 0)
    whole[4]["image"]["bytes"] = whole[4]["image"]["bytes"][:90]
    parquet(tmp_path / "train.parquet", whole)
    with pytest.raises(InputError, match=r"row 4 of \S*train.parquet cannot be read as a picture"):
        open_task(tmp_path / "train.parquet").split("train").pictures[4]
    (tmp_path / "train.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-9])
    refused(tmp_path / "train.parquet", "train.parquet cannot be read as Parquet")


def test_unknown_places_and_layouts(tmp_path):
    refused(tmp_path / "absent", "absent does not exist")
    refused(tmp_path, "is laid out in no way that is known here .*vtab: train800.txt")
    assert not any(layout.describes(tmp_path) for layout in LAYOUTS.values())
    refused(vtab(tmp_path / "mine"), "not laid out as fgvc: that needs train.json", "fgvc")
    refused(tmp_path / "mine", "unknown layout 'vtabs'.*did you mean 'vtab'", "vtabs")


def test_a_picture_is_decoded_only_when_asked_for(tmp_path):
    """A broken picture does not keep a task from being opened, and is told of by name when its turn comes."""
    folder = vtab(tmp_path / "mine")
    broken = folder / "images/test/000002.png"
    broken.write_bytes(broken.read_bytes()[:60])
    relabel(folder / "test.txt", 3, 2)
    split = open_task(folder).split("test")
    assert split.labels[3] == 2 and len(split) == 17
    with pytest.raises(InputError, match=f"^{re.escape(str(broken))} cannot be read"):
        split.pictures[2]
    save(broken, Image.fromarray(np.full((3, 5), 65535, np.uint16)))
    assert split.pictures.decoded(2).notes == (SIXTEEN_BITS,) and split.pictures[2].getpixel((0, 0)) == (255, 255, 255)
