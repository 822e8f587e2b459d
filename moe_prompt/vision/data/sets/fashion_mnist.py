"""Fashion-MNIST (arXiv:1708.07747): idx files inside a Debian package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from moe_prompt.vision.data.idx import read_idx
from moe_prompt.vision.data.sets.base import SPLIT_SIZES, TEST, ImageSetSource, ImageTask, capped
from moe_prompt.vision.data.sets.splits import stratified_split
from moe_prompt.vision.downloads.archives import member, read_members
from moe_prompt.vision.downloads.registries import DebianFile, RegistryFile

FOLDER = "usr/share/datasets/fashion-mnist/"
CLASSES = ("T-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@final
@dataclass(frozen=True)
class FashionMNIST(ImageSetSource):
    """Clothes in grey, 28 x 28, ten classes."""

    name: ClassVar[str] = "fashion-mnist"
    title: ClassVar[str] = "Fashion-MNIST: clothes, 28 x 28 grey, 10 classes"
    task_names: ClassVar[tuple[str, ...]] = ("fashion_mnist",)
    licence: ClassVar[str] = "MIT (Zalando SE 2017; Debian calls it Expat); may be passed on with its notice"
    files: tuple[RegistryFile, ...] = (
        DebianFile(
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            "pool/main/d/dataset-fashion-mnist",
        ),
    )

    def tasks(self, archives: Sequence[Path], seed: int, test_size: int | None) -> Iterator[ImageTask]:
        """The set's test split; training and validation from its training split, without pictures of the test."""
        files = read_members(archives[0], lambda name: name.startswith(FOLDER))

        def read(part: str, kind: str) -> NDArray[np.uint8]:
            name = f"{FOLDER}{part}-{kind}-ubyte.gz"
            return read_idx(member(files, name, archives[0]), name)

        pictures = {part: read(part, "images-idx3") for part in ("train", "t10k")}
        labels = {part: read(part, "labels-idx1").astype(np.int64) for part in ("train", "t10k")}
        tested = {picture.tobytes() for picture in pictures["t10k"]}
        contents = [picture.tobytes() for picture in pictures["train"]]
        pool = np.array([i for i, content in enumerate(contents) if content not in tested])
        drawn = stratified_split(labels["train"][pool], SPLIT_SIZES, seed, [contents[i] for i in pool])
        test = capped(np.arange(len(labels["t10k"])), labels["t10k"], test_size, seed)
        chosen = {name: pool[drawn[name]] for name in SPLIT_SIZES}
        splits = {name: (pictures["train"][at], labels["train"][at]) for name, at in chosen.items()}
        left_out = len(contents) - len(pool)
        yield ImageTask(
            "fashion_mnist",
            CLASSES,
            splits | {TEST: (pictures["t10k"][test], labels["t10k"][test])},
            ("the test split is the set's", f"{left_out} training pictures that are also in it were left out"),
        )
