"""idx files of bytes, the format of MNIST (http://yann.lecun.com/exdb/mnist), plain or compressed by gzip.

0, 0, 8 (the type uint8), number of axes, their lengths as big-endian 32-bit integers, then the bytes
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from io import BufferedIOBase, BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_prompt.errors import InputError, require

_GZIP = b"\x1f\x8b"


def read_idx(file: Path | bytes, name: str) -> NDArray[np.uint8]:
    """The array of an idx file, or of its content. A plain file on disk is mapped and not read.

    Raises:
        InputError: naming the file by `name`: it is broken, of another kind, or not as long as it says.
    """
    try:
        with file.open("rb") if isinstance(file, Path) else BytesIO(file) as stream:
            packed = stream.read(2) == _GZIP
            stream.seek(0)
            opened: BufferedIOBase = gzip.GzipFile(fileobj=stream) if packed else stream
            shape, offset = _header(opened, name)
            mapped = isinstance(file, Path) and not packed and 0 not in shape
            content = np.memmap(file, np.uint8, "r", offset) if mapped else np.frombuffer(opened.read(), np.uint8)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{name} cannot be read as an idx file ({error}): bring a whole one.") from error
    needed = math.prod(shape)
    require(
        len(content) == needed,
        f"{name} needs {needed} bytes for an array of shape {shape}: it has {len(content)}; bring a whole file.",
    )
    return content.reshape(shape)


def _header(stream: BufferedIOBase, name: str) -> tuple[tuple[int, ...], int]:
    """Shape of the array, and where its bytes begin."""
    start = stream.read(4)
    require(
        len(start) == 4 and start[:3] == b"\0\0\x08",
        f"{name} is not an idx file of bytes: its first four bytes are {start!r}.",
    )
    axes = start[3]
    return struct.unpack(f">{axes}I", stream.read(4 * axes)), 4 + 4 * axes
