"""What is made from exported rows: `moe-prompt figures` and `moe-prompt theory`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from moe_prompt.cli.app import app
from moe_prompt.cli.output import FIGURES, RESULTS, Rows, save_captioned
from moe_prompt.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGES = Path("README.md"), Path("docs/simulations.md")  # with tables of studies between markers


@app.command()
def figures(
    rows: Rows = RESULTS,
    out: Annotated[Path, typer.Option(help="Folder to draw into.")] = FIGURES,
) -> None:
    """Redraw every figure from exported rows, with its caption beside it: the same rows give the same bytes."""
    from moe_prompt.plotting import bad_sequences, fit_windows
    from moe_prompt.plotting.study_figure import draw_study
    from moe_prompt.studies.analysis.captions import caption, figure_note
    from moe_prompt.studies.analysis.cells import cells_of
    from moe_prompt.studies.loading import NAMES, load
    from moe_prompt.studies.running.archive import StudyRows, load_rows

    def save(name: str, figure: Figure, words: str, note: str) -> None:
        print(*save_captioned(figure, out / name, words, note, (".png", ".pdf")), sep="\n")

    found: dict[str, StudyRows] = {}
    for name in NAMES:
        if (rows / f"{name}.csv").exists():
            study = load(name)
            found[name] = load_rows(study, rows, exported=True)
            cells = cells_of(study, found[name].rows, found[name].notes)
            save(name, draw_study(study, cells), caption(study, cells), figure_note(cells))
    require(
        bool(found), f"no exported rows in {rows}: run `moe-prompt study export NAME`, or name a folder with --rows."
    )
    if {"softmax-gaussian", "softmax-gaussian-published"} <= set(found):
        frames = found["softmax-gaussian"].rows, found["softmax-gaussian-published"].rows
        words, note = fit_windows.windows_caption(*frames), fit_windows.windows_note(*frames)
        save("softmax-gaussian-windows", fit_windows.draw_windows(*frames), words, note)
    figure = bad_sequences.draw_sequences()
    save("bad-sequences", figure, bad_sequences.sequences_caption(), bad_sequences.sequences_note())


@app.command()
def theory(
    rows: Rows = RESULTS,
    out: Annotated[Path, typer.Option(help="The Markdown page to write.")] = Path("docs/theory.md"),
    page: Annotated[
        Optional[list[Path]],
        typer.Option(help="A page whose tables between markers are made again; by default the README and docs."),
    ] = None,
) -> None:
    """Write the page of what theory predicts beside what was measured, from exported rows: half a minute.

    The tables of studies in other pages, between markers, are made again from the same rows.
    """
    from moe_prompt.studies.analysis import predictions_page
    from moe_prompt.studies.loading import NAMES, load
    from moe_prompt.theory import families

    require(rows.is_dir(), f"no folder {rows} of exported rows: name one with --rows.")
    measured = [predictions_page.measured(load(name), rows) for name in NAMES]
    pictures = Path(os.path.relpath(FIGURES, out.parent)).as_posix()
    predictions_page.write(predictions_page.document(families.table(), measured, rows.as_posix(), pictures), out)
    others = page if page is not None else [path for path in PAGES if path.exists()]
    for path in others:
        require(path.exists(), f"no page {path} to make tables in: name one with --page.")
        predictions_page.refresh(path, measured)
    print(out, *others, sep="\n")
