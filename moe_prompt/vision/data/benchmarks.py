"""What is published of the 19 tasks of VTAB-1K and the five of FGVC: classes, pictures in each split, picture sizes.

References:
    arXiv 1910.04867 (VTAB: tasks, classes, test sets; 800 + 200 pictures to train on); 2203.12119 (VPT: the splits of
    the five fine-grained sets); picture sizes and encodings as in the sets' own releases (TensorFlow Datasets).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VTAB_SOURCE = "arXiv 1910.04867"
FGVC_SOURCE = "arXiv 2203.12119"


@dataclass(frozen=True)
class KnownTask:
    """What is published of a task. `counts` is pictures per split; `side` is (width, height) if all have one size.

    `lossless`: the original pictures are not JPEG. `twins`: the original set contains equal pictures, so that some
    training pictures occur in the test as well. `gaps`: the 1,000 training pictures do not contain every class.
    """

    name: str
    title: str
    layout: str
    classes: int
    counts: Mapping[str, int]
    source: str
    side: tuple[int, int] | None = None
    lossless: bool = False
    twins: bool = False
    gaps: bool = False
    aliases: tuple[str, ...] = ()


def _vtab(
    name: str,
    title: str,
    classes: int,
    test: int,
    side: tuple[int, int] | None = None,
    lossless: bool = False,
    twins: bool = False,
    gaps: bool = False,
    aliases: tuple[str, ...] = (),
) -> KnownTask:
    counts = {"train800": 800, "val200": 200, "train800val200": 1000, "test": test}
    return KnownTask(name, title, "vtab", classes, counts, VTAB_SOURCE, side, lossless, twins, gaps, aliases)


def _fgvc(name: str, title: str, classes: int, train: int, val: int, test: int, aliases: tuple[str, ...]) -> KnownTask:
    counts = {"train": train, "val": val, "test": test}
    return KnownTask(name, title, "fgvc", classes, counts, FGVC_SOURCE, aliases=aliases)


KNOWN_TASKS: Mapping[str, KnownTask] = {
    task.name: task
    for task in (
        _vtab("cifar", "CIFAR-100", 100, 10_000, (32, 32), lossless=True),
        _vtab("caltech101", "Caltech101", 102, 6_084, aliases=("caltech",)),
        _vtab("dtd", "DTD", 47, 1_880, aliases=("describabletextures",)),
        _vtab("oxford_flowers102", "Flowers102", 102, 6_149, aliases=("oxfordflowers", "flowers")),
        _vtab("oxford_iiit_pet", "Pets", 37, 3_669, aliases=("oxfordpet", "oxfordpets")),
        _vtab("svhn", "SVHN", 10, 26_032, (32, 32), lossless=True, aliases=("svhncropped",)),
        _vtab("sun397", "Sun397", 397, 21_750, gaps=True, aliases=("sun",)),
        _vtab("patch_camelyon", "Camelyon", 2, 32_768, (96, 96), lossless=True, aliases=("pcam",)),
        _vtab("eurosat", "EuroSAT", 10, 5_400, (64, 64)),
        _vtab("resisc45", "Resisc45", 45, 6_300, (256, 256), aliases=("resisc",)),
        _vtab("diabetic_retinopathy", "Retinopathy", 5, 42_670),
        _vtab("clevr_count", "Clevr-count", 8, 15_000, (480, 320), lossless=True, aliases=("clevrcountall",)),
        _vtab(
            "clevr_dist",
            "Clevr-dist",
            6,
            15_000,
            (480, 320),
            lossless=True,
            aliases=("clevrdistance", "clevrclosestobjectdistance"),
        ),
        _vtab("dmlab", "DMLab", 6, 22_735, (480, 360)),
        _vtab("kitti", "KITTI", 4, 711, lossless=True, aliases=("kittidistance", "kittidist")),
        _vtab(
            "dsprites_loc",
            "dSpr-loc",
            16,
            73_728,
            (64, 64),
            lossless=True,
            twins=True,
            aliases=("dspriteslocation", "dspriteslabelxposition"),
        ),
        _vtab(
            "dsprites_ori",
            "dSpr-ori",
            16,
            73_728,
            (64, 64),
            lossless=True,
            twins=True,
            aliases=("dspritesorientation", "dspriteslabelorientation"),
        ),
        _vtab("smallnorb_azi", "sNORB-azi", 18, 12_150, (96, 96), lossless=True, aliases=("smallnorbazimuth",)),
        _vtab("smallnorb_ele", "sNORB-ele", 9, 12_150, (96, 96), lossless=True, aliases=("smallnorbelevation",)),
        _fgvc("cub", "CUB-200-2011", 200, 5_394, 600, 5_794, ("cub200",)),
        _fgvc("nabirds", "NABirds", 555, 21_536, 2_393, 24_633, ()),
        _fgvc("flowers", "Oxford Flowers", 102, 1_020, 1_020, 6_149, ("oxfordflowers102", "flowers102")),
        _fgvc("dogs", "Stanford Dogs", 120, 10_800, 1_200, 8_580, ()),
        _fgvc("cars", "Stanford Cars", 196, 7_329, 815, 8_041, ()),
    )
}


def plain(name: str) -> str:
    """A folder's name without case and punctuation: `CUB_200_2011` -> `cub2002011`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def known_task(name: str, layout: str) -> KnownTask | None:
    """The published task that a folder of this name holds, or None.

    >>> known_task("CIFAR-100", "vtab").name, known_task("OxfordFlowers", "fgvc").classes
    ('cifar', 102)
    """
    for task in KNOWN_TASKS.values():
        if task.layout == layout and plain(name) in map(plain, (task.name, task.title, *task.aliases)):
            return task
    return None


GROUPS: Mapping[str, tuple[str, ...]] = {
    "Natural": ("cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    "Specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "Structured": (
        "clevr_count",
        "clevr_dist",
        "dmlab",
        "kitti",
        "dsprites_loc",
        "dsprites_ori",
        "smallnorb_azi",
        "smallnorb_ele",
    ),
    "FGVC": ("cub", "nabirds", "flowers", "dogs", "cars"),
}
VTAB_GROUPS = ("Natural", "Specialized", "Structured")
VTAB_TASKS = tuple(task for group in VTAB_GROUPS for task in GROUPS[group])
FGVC_TASKS = GROUPS["FGVC"]
GROUP_OF: Mapping[str, str] = {task: group for group, tasks in GROUPS.items() for task in tasks}
