"""Options that several commands share, and how a figure and its caption become files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_prompt.errors import InputError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS, FIGURES = Path("experiments/results"), Path("figures")
Out = Annotated[Path, typer.Option(help="Folder of databases, exports and figures.")]
Rows = Annotated[Path, typer.Option(help="Folder of exported rows.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure without dates or version strings, so that equal figures are equal files."""
    path = path if path.suffix else path.with_suffix(".png")
    unstamped: dict[str, Any] = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        ".svg": {"Date": None, "Creator": None},
    }
    require(path.suffix in unstamped, f"figures are written as {', '.join(unstamped)}: got {path.name}.")
    from moe_prompt.plotting.style import write_figure

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_figure(figure, path, unstamped[path.suffix])
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}): name a folder you may write to with --out.") from None
    return path


def save_captioned(figure: Figure, stem: Path, caption: str, note: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Write a figure in several formats and beside it its caption as Markdown, with a small line under it."""
    paths = [save_figure(figure, stem.with_name(stem.name + suffix)) for suffix in suffixes]
    about = stem.with_name(f"{stem.name}.md")
    try:
        about.write_text(f"{caption}\n\n<sub>{note}</sub>\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {about} ({error}): name a folder you may write to with --out.") from None
    return [*paths, about]
