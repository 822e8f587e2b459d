"""Hugging Face exports: Parquet files with a column of encoded pictures {bytes, path} and a column of labels.

    [data/]<split>-00000-of-0000N.parquet     all N of them; validation is `val`
    <split>/0000.parquet, 0001.parquet, ...   the hub's own conversion

The names of the classes are read from the export's metadata where it has them; labels that are strings are classes in
the order of the letters. Labels are read at once and pictures when asked for, a row group at a time; row groups read
are kept, up to a gibibyte of encoded bytes in each process. Needs pyarrow.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from moe_prompt.attention.decoding import Decoded, decode
from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.layouts.folders import ORDER, split_name
from moe_prompt.vision.data.pictures import Pictures, read_bytes
from moe_prompt.vision.data.tasks import Task, TaskLayout, TaskSplit, numbered_classes

KEPT_BYTES = 2**30
_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})\.parquet$")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
_IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")


class ParquetColumns(NamedTuple):
    """Names of the two columns that matter, and of the classes where the file tells them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


@final
class ParquetLayout(TaskLayout):
    """Parquet exports."""

    name = "parquet"
    looks_like = "<split>-00000-of-00001.parquet, in the folder or in data/"

    def describes(self, path: Path) -> bool:
        return bool(_shards(path))

    def read(self, path: Path) -> Task:
        shards = _shards(path)
        columns = _columns(next(iter(shards.values()))[0])
        labels = {name: _labels(files, columns.label) for name, files in shards.items()}
        classes, numbers = _numbered(labels, columns.classes)
        splits = {}
        for name in sorted(shards, key=lambda name: (*ORDER, name).index(name)):
            source = str(shards[name][0]) + (f" and {len(shards[name]) - 1} more" if len(shards[name]) > 1 else "")
            splits[name] = TaskSplit(name, ParquetPictures(shards[name], columns.image), numbers[name], source)
        return Task(path.resolve().stem, classes, splits, path, self.name)


def _shards(path: Path) -> Mapping[str, list[Path]]:
    """The files of each split, in order."""
    if path.is_file():
        return {"train": [path]} if path.suffix == ".parquet" else {}
    for folder in (path, path / "data"):
        files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
        if files:
            return _by_name(files)
    inner = [f for f in sorted(path.iterdir()) if f.is_dir() and split_name(f.name)]
    found = {split_name(folder.name) or "": sorted(folder.glob("*.parquet")) for folder in inner}
    return {name: files for name, files in found.items() if files}


def _by_name(files: list[Path]) -> Mapping[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        match = _SHARD.match(file.name)
        called = match[1] if match else file.stem
        found.setdefault(split_name(called) or called, []).append(file)
        if match:
            whole = [file.with_name(f"{called}-{k:05d}-of-{match[3]}.parquet") for k in range(int(match[3]))]
            absent = [shard for shard in whole if not shard.exists()]
            require(
                not absent, f"{absent[:1] and absent[0]} does not exist beside {file.name}: bring all {match[3]} files."
            )
    return found


def _open(file: Path) -> Any:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{file} needs pyarrow to be read: pip install 'moe-prompt[vision]'.") from error
    try:
        return parquet.ParquetFile(file)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{file} cannot be read as Parquet ({error}): bring a whole file.") from error


def _columns(file: Path) -> ParquetColumns:
    schema = _open(file).schema_arrow
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = told.get("info", {}).get("features", {})
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    image = _column(file, schema.names, "Image", kinds, _IMAGE_COLUMNS)
    label = _column(file, schema.names, "ClassLabel", kinds, _LABEL_COLUMNS)
    names = features.get(label, {}).get("names")
    return ParquetColumns(image, label, tuple(map(str, names)) if names else None)


def _column(file: Path, names: list[str], kind: str, kinds: Mapping[str, Any], usual: tuple[str, ...]) -> str:
    """The only column of this kind, else the first with a usual name."""
    typed = [name for name in names if kinds.get(name) == kind]
    named = [name for name in usual if name in (typed or names)]
    require(
        len(typed) == 1 or bool(named),
        f"{file} needs a column of kind {kind}, or named {' or '.join(usual)}: it has {', '.join(names)}.",
    )
    return typed[0] if len(typed) == 1 else named[0]


def _labels(files: list[Path], column: str) -> list[Any]:
    labels: list[Any] = []
    for file in files:
        opened = _open(file)
        require(column in opened.schema_arrow.names, f"{file} lacks the column {column} of the other files.")
        values = opened.read([column], use_threads=False).column(column).to_pylist()
        wrong = next((value for value in values if isinstance(value, bool) or not isinstance(value, (int, str))), 0)
        require(
            not any(isinstance(value, bool) or not isinstance(value, (int, str)) for value in values),
            f"column {column} of {file} needs a whole number or a name in every row: got {wrong!r}.",
        )
        labels += values
    return labels


def _numbered(
    labels: Mapping[str, list[Any]], names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Mapping[str, np.ndarray]]:
    """One class map for all splits, and the labels by it."""
    if any(isinstance(value, str) for values in labels.values() for value in values):
        names = tuple(sorted({str(value) for values in labels.values() for value in values}))
        number = {name: index for index, name in enumerate(names)}
        return names, {split: _integers([number[str(v)] for v in values]) for split, values in labels.items()}
    numbers = {split: _integers(values) for split, values in labels.items()}
    return names or numbered_classes(list(numbers.values())), numbers


def _integers(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@final
class ParquetPictures(Pictures):
    """The pictures of Parquet files, one file after the other."""

    def __init__(self, files: list[Path], column: str) -> None:
        self.files, self.column = tuple(files), column
        groups = list(self._groups())
        self._starts = np.cumsum([0, *(rows for _, _, rows in groups)])
        self._places = tuple((file, group) for file, group, _ in groups)
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def _groups(self) -> Iterator[tuple[int, int, int]]:
        """(file, row group in it, rows in that)."""
        for number, file in enumerate(self.files):
            about = _open(file).metadata
            for group in range(about.num_row_groups):
                yield number, group, about.row_group(group).num_rows

    def __len__(self) -> int:
        return int(self._starts[-1])

    def named(self, index: int) -> str:
        place = self._place(index)
        file = self._places[place][0]
        first = next(k for k, (number, _) in enumerate(self._places) if number == file)
        return f"row {index % len(self) - self._starts[first]} of {self.files[file]}"

    def decoded(self, index: int) -> Decoded:
        place = self._place(index)
        row = self._group(place)[index % len(self) - int(self._starts[place])].as_py()
        data, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
        if not data and path:
            return decode(read_bytes(self.files[self._places[place][0]].parent / path), self.named(index))
        return decode(data or b"", self.named(index))

    def _place(self, index: int) -> int:
        """Which row group the picture lies in."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return int(np.searchsorted(self._starts, index % len(self), side="right")) - 1

    def _group(self, place: int) -> Any:
        """The encoded pictures of a row group; the groups used least recently make room."""
        if place not in self._kept:
            file, group = self._places[place]
            table = _open(self.files[file]).read_row_group(group, [self.column], use_threads=False)
            self._kept[place] = table.column(self.column).combine_chunks()
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}
