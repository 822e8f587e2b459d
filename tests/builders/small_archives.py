"""Small archives of the formats that registries hand out, built by hand."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Pixels as a picture file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_bytes(members: dict[str, bytes], compression: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as archive:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return stream.getvalue()


def npm_of(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(tar_bytes(members, "gz"))
    return path


def deb_of(path: Path, members: dict[str, bytes], compression: str = "xz") -> Path:
    """An ar archive of debian-binary, control and data; the control tar has an odd length and is padded."""
    control = tar_bytes({"./control": b"Package: small\n"}, "gz")
    control += b"\0" * (1 - len(control) % 2)
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": control,
        f"data.tar.{compression}": tar_bytes({f"./{name}": content for name, content in members.items()}, compression),
    }
    with path.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in parts.items():
            stream.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode("ascii"))
            stream.write(content + b"\n" * (len(content) % 2))
    return path


def idx_of(array: np.ndarray) -> bytes:
    """A gzipped idx file of bytes."""
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def npz_of(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def json_of(value: object) -> bytes:
    return json.dumps(value).encode()
