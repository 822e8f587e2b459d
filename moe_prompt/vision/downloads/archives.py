"""Members of an archive as bytes: zip (a wheel), tar (an npm package), ar with tars (a Debian package).

Nothing is unpacked to disk, imported or run, and no tool outside the standard library is needed. Debian packages may
hold a tar compressed by zstd, which the standard library reads from Python 3.14 on; the sentence then says so.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from io import BufferedIOBase, BytesIO
from pathlib import Path

from moe_prompt.errors import InputError, require

AR_MAGIC, AR_HEADER = b"!<arch>\n", 60
BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


def read_members(archive: str | Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of the files in `archive` whose name is `wanted`, by name, in the archive's order.

    Raises:
        InputError: the archive is missing, is of another kind or broken.
    """
    try:
        with Path(archive).open("rb") as stream:
            return _reader(stream)(stream, wanted)
    except FileNotFoundError as error:
        raise InputError(f"{archive} does not exist: give the path of an archive.") from error
    except BROKEN as error:
        reason = str(error).partition(":\n")[0]  # tarfile goes on for lines, one for each compression it knows
        raise InputError(f"{archive} cannot be read as an archive ({reason}): get a whole one.") from error


def member(members: dict[str, bytes], name: str, archive: str | Path) -> bytes:
    """``members[name]``, or a sentence that names the archive."""
    require(name in members, f"{archive} lacks {name}: get the version of it that is asked for.")
    return members[name]


def _reader(stream: BufferedIOBase) -> Callable[[BufferedIOBase, Callable[[str], bool]], dict[str, bytes]]:
    start = stream.read(8)
    stream.seek(0)
    if start == AR_MAGIC:
        return _from_debian
    return _from_zip if start.startswith(b"PK") else _from_tar


def _from_zip(stream: BufferedIOBase, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    with zipfile.ZipFile(stream) as archive:
        return {item.filename: archive.read(item) for item in archive.infolist() if wanted(item.filename)}


def _from_tar(stream: BufferedIOBase, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=stream, mode="r:*") as archive:
        for item in archive:
            name = item.name.removeprefix("./")
            content = archive.extractfile(item) if item.isfile() and wanted(name) else None
            if content is not None:
                found[name] = content.read()
    return found


def _from_debian(stream: BufferedIOBase, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Members of the tar ``data.tar.*``, the package's files: ar headers are 60 bytes, contents padded to even."""
    stream.seek(len(AR_MAGIC))
    while header := stream.read(AR_HEADER):
        if len(header) < AR_HEADER or header[58:] != b"`\n":
            raise ValueError("a header of it is broken")
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            content = stream.read(size)
            if len(content) < size:
                raise EOFError(f"{name} is cut off")
            return _from_compressed(name, content, wanted)
        stream.seek(size + size % 2, 1)
    raise ValueError("no data.tar in it")


def _from_compressed(name: str, content: bytes, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    try:
        return _from_tar(BytesIO(content), wanted)
    except tarfile.ReadError as error:
        if name.endswith(".zst"):
            raise ValueError(f"{name} is compressed by zstd, which needs Python 3.14 or newer") from error
        raise
