"""Emoji by category, drawn by two foundries: one task in two domains, from npm packages.

Both domains have the same emoji in the same splits, so that one learned on the first can be tested on the second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from moe_prompt.errors import InputError, require
from moe_prompt.vision.data.sets.base import SPLIT_SIZES, TEST, Encoded, ImageSetSource, ImageTask, capped, decoded
from moe_prompt.vision.data.sets.splits import Indices, linked, stratified_split
from moe_prompt.vision.downloads.archives import member, read_members
from moe_prompt.vision.downloads.registries import NpmFile, RegistryFile

TABLE = "package/emoji.json"
DOMAINS = ("google", "twitter")
FEWEST = 50  # members of a category that becomes a class

_TONES = {f"1F3F{digit}" for digit in "BCDEF"}
_SIGNS = {"2640", "2642", "27A1"}  # female, male, facing right: after a joiner
_PERSON = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}  # man, woman; boy, girl


def figure(unified: str) -> str:
    """What an emoji shows apart from skin tone, sex and direction, as code points.

    >>> figure("1F3C3-1F3FD-200D-2640-FE0F-200D-27A1-FE0F"), figure("1F469-200D-1F680"), figure("2640-FE0F")
    ('1F3C3', '1F9D1-200D-1F680', '2640')
    """
    parts = [part for part in unified.split("-") if part not in _TONES and part != "FE0F"]
    kept: list[str] = []
    for part in parts:
        if part in _SIGNS and kept and kept[-1] == "200D":
            kept.pop()
        else:
            kept.append(_PERSON.get(part, part))
    return "-".join(kept) or unified


@final
@dataclass(frozen=True)
class Emoji(ImageSetSource):
    """Emoji of Google (Noto) and of Twitter (Twemoji), 64 x 64 on white, by Unicode's category."""

    name: ClassVar[str] = "emoji"
    title: ClassVar[str] = "emoji by category, 64 x 64 colour: one task in two domains"
    task_names: ClassVar[tuple[str, ...]] = tuple(f"emoji_{domain}" for domain in DOMAINS)
    licence: ClassVar[str] = (
        "Google's pictures Apache-2.0, Twitter's CC BY 4.0 (copyright Twitter, Inc. and other contributors: name them "
        "when passing on), the table MIT (Cal Henderson 2013)"
    )
    files: tuple[RegistryFile, ...] = (
        NpmFile(
            "emoji-datasource-google",
            "16.0.0",
            "emoji-datasource-google-16.0.0.tgz",
            "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        ),
        NpmFile(
            "emoji-datasource-twitter",
            "16.0.0",
            "emoji-datasource-twitter-16.0.0.tgz",
            "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        ),
    )

    def tasks(self, archives: Sequence[Path], seed: int, test_size: int | None) -> Iterator[ImageTask]:
        """Emoji without skin tone; 800 and 200 for training and validation, the rest to test."""
        table = _table(archives[0])
        classes = _classes(table)
        table = [row for row in table if row["category"] in classes]
        pictures = [_pictures(*of, table) for of in zip(archives, DOMAINS, strict=True)]
        labels = np.array([classes.index(row["category"]) for row in table], dtype=np.int64)
        groups = linked([figure(row["unified"]) for row in table], *map(_looks, pictures))
        chosen = stratified_split(labels, SPLIT_SIZES, seed, groups, rest=TEST)
        chosen[TEST] = capped(chosen[TEST], labels, test_size, seed)
        for domain, drawn in zip(DOMAINS, pictures, strict=True):
            yield ImageTask(f"emoji_{domain}", classes, _splits(drawn, labels, chosen), _DONE)


_DONE = (
    "transparent became white",
    "one picture an emoji, in its default skin tone: with the tones three in five pictures would be of people",
    f"classes are Unicode's categories with at least {FEWEST} such emoji",
    "emoji that differ by sex or direction alone, or whose pictures are identical in one of the domains, are never in "
    "two splits",
    "both domains have the same emoji in the same splits; the test split is what training and validation left",
)


def _table(archive: Path) -> list[dict[str, Any]]:
    """The emoji that both domains draw, in Unicode's order."""
    content = member(read_members(archive, lambda name: name == TABLE), TABLE, archive)
    try:
        rows = json.loads(content)
        drawn = [row for row in rows if all(row[f"has_img_{domain}"] for domain in DOMAINS)]
        return sorted(drawn, key=lambda row: (row["sort_order"], row["unified"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{TABLE} in {archive} is not the table of emoji it should be ({error!r}).") from error


def _classes(table: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    categories = [row["category"] for row in table]
    classes = tuple(sorted(c for c in set(categories) if categories.count(c) >= FEWEST))
    require(bool(classes), f"no category of emoji has {FEWEST} members: get the version that is asked for.")
    return classes


def _pictures(archive: Path, domain: str, table: Sequence[dict[str, Any]]) -> Encoded:
    folder = f"package/img/{domain}/64/"
    found = read_members(archive, lambda name: name.startswith(folder))
    names = tuple(folder + row["image"] for row in table)
    return Encoded(names, tuple(member(found, name, archive) for name in names))


def _looks(pictures: Encoded) -> list[bytes]:
    """A digest of each picture as it is written, not of its file: files may differ in what does not show."""
    pairs = zip(pictures.contents, pictures.names, strict=True)
    return [hashlib.sha256(decoded(*pair).tobytes()).digest() for pair in pairs]


def _splits(pictures: Encoded, labels: Indices, chosen: dict[str, Indices]) -> dict[str, tuple[Encoded, Indices]]:
    return {name: (pictures.at(indices), labels[indices]) for name, indices in chosen.items()}
