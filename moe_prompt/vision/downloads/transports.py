"""Ways to bring a file into a folder: a registry's own client, run as a process, or a download of an address."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from abc import ABC, abstractmethod
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import final

TIMEOUT = 60.0  # seconds without a byte


class Failed(Exception):
    """One way to bring a file did not work; its text is the last thing the tool said."""


class Way(ABC):
    """How a file may be brought into a folder."""

    @abstractmethod
    def bring(self, folder: Path) -> None:
        """Put the file into `folder`, or raise :class:`Failed`."""


@final
@dataclass(frozen=True)
class Client(Way):
    """A registry's own client, run in the folder that is to receive the file."""

    arguments: tuple[str, ...]

    def bring(self, folder: Path) -> None:
        try:
            done = subprocess.run(self.arguments, cwd=folder, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise Failed(str(error)) from error
        if done.returncode:
            raise Failed(last_words(done.stderr or done.stdout) or f"{self.arguments[0]} failed without a word")


@final
@dataclass(frozen=True)
class Download(Way):
    """A file behind an address."""

    url: str
    filename: str

    def bring(self, folder: Path) -> None:
        try:
            with (
                urllib.request.urlopen(self.url, timeout=TIMEOUT) as answer,
                (folder / self.filename).open("wb") as stream,
            ):
                shutil.copyfileobj(answer, stream, 1 << 20)
        except (OSError, ValueError, HTTPException) as error:  # no connection, no address, an answer broken off
            raise Failed(f"{self.url}: {error}") from error


def last_words(said: str) -> str:
    """The last line in which a tool names an error, else its last line.

    >>> last_words("ERROR: no such version\\nnotice: a new pip\\n")
    'ERROR: no such version'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip() and "complete log of this run" not in line]
    errors = [line for line in lines if line.lower().startswith(("error", "e:", "npm err", "fatal"))]
    return (errors or lines or [""])[-1].rstrip(".")
