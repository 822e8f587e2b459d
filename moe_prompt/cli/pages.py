"""What is made from exported rows: `moe-prompt figures` and `moe-prompt theory`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moe_prompt.cli.app import app
from moe_prompt.cli.output import FIGURES, RESULTS, Rows, save_figure
from moe_prompt.errors import require


@app.command()
def figures(
    rows: Rows = RESULTS,
    out: Annotated[Path, typer.Option(help="Folder to draw into.")] = FIGURES,
) -> None:
    """Redraw every figure from exported rows: the same rows give the same bytes."""
    from moe_prompt.plotting.bad_sequences import draw_sequences
    from moe_prompt.plotting.fit_windows import draw_windows
    from moe_prompt.plotting.study_figure import draw_study
    from moe_prompt.studies.analysis.cells import cells_of
    from moe_prompt.studies.loading import NAMES, load
    from moe_prompt.studies.running import archive

    drawn = 0
    suffixes = (".png", ".pdf")
    for name in NAMES:
        if not (rows / f"{name}.csv").exists():
            continue
        study = load(name)
        found = archive.load_rows(study, rows, exported=True)
        figure = draw_study(study, cells_of(study, found.rows, found.notes))
        drawn += 1
        for suffix in suffixes:
            print(save_figure(figure, (out / name).with_suffix(suffix)))
    require(drawn > 0, f"no exported rows in {rows}: run `moe-prompt study export NAME`, or name a folder with --rows.")
    others = {"bad-sequences": draw_sequences()}
    published = [rows / f"{name}.csv" for name in ("softmax-gaussian", "softmax-gaussian-published")]
    if all(path.exists() for path in published):
        frames = [archive.load_rows(load(path.stem), rows, exported=True).rows for path in published]
        others["softmax-gaussian-windows"] = draw_windows(*frames)
    for name, figure in others.items():
        for suffix in suffixes:
            print(save_figure(figure, (out / name).with_suffix(suffix)))


@app.command()
def theory(
    rows: Rows = RESULTS,
    out: Annotated[Path, typer.Option(help="The Markdown page to write.")] = Path("docs/theory.md"),
) -> None:
    """Write the page of what theory predicts beside what was measured, from exported rows: half a minute."""
    from moe_prompt.studies.analysis import predictions_page
    from moe_prompt.studies.loading import NAMES, load
    from moe_prompt.theory import families

    require(rows.is_dir(), f"no folder {rows} of exported rows: name one with --rows.")
    measured = [predictions_page.measured(load(name), rows) for name in NAMES]
    pictures = Path(os.path.relpath(FIGURES, out.parent)).as_posix()
    predictions_page.write(predictions_page.document(families.table(), measured, rows.as_posix(), pictures), out)
    print(out)
