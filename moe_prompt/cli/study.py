"""The commands of `moe-prompt study`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from moe_prompt.cli.app import study_app
from moe_prompt.cli.output import RESULTS, Json, Out, save_captioned
from moe_prompt.errors import require

if TYPE_CHECKING:
    from pathlib import Path

    from moe_prompt.studies.analysis.cells import Cell, CellSummary
    from moe_prompt.studies.analysis.sample_complexity import NeededSize
    from moe_prompt.studies.base import Study

Name = Annotated[str, typer.Argument(help="A study of `study list`, or a Python file that defines `study`.")]
Quick = Annotated[bool, typer.Option("--quick", help="A few sizes and replicates: a picture in a minute.")]
Seed = Annotated[Optional[int], typer.Option(help="Another seed than the study's own: other data, other rows.")]
Jobs = Annotated[Optional[int], typer.Option(help="Worker processes; all cores by default.")]


@study_app.command("list")
def study_list() -> None:
    """Name and claim of every study."""
    from moe_prompt.studies.loading import NAMES, load

    for name in NAMES:
        study = load(name)
        fits = len(study.cells) * len(study.sizes) * study.replicates
        print(f"{name:22s} {fits:6d} fits   {study.claim}")


@study_app.command("run")
def study_run(
    name: Name,
    quick: Quick = False,
    jobs: Jobs = None,
    seed: Seed = None,
    out: Out = RESULTS,
    dask: Annotated[Optional[str], typer.Option(help="A Dask scheduler's address, or `local`.")] = None,
    replicates: Annotated[Optional[int], typer.Option(help="The first so many only; the rest can follow.")] = None,
) -> None:
    """Compute the rows of a study that are not there yet."""
    from moe_prompt.basics.progress import ProgressBar
    from moe_prompt.studies.running import archive
    from moe_prompt.studies.running.result import run_study

    study, workers = _study(name, quick, seed), _workers(jobs)
    study = study if replicates is None else replace(study, replicates=min(replicates, study.replicates))
    try:
        with ProgressBar(study.name) as progress:
            result = run_study(study, out, workers, dask, progress.of_fits)
    except KeyboardInterrupt:  # here and not in `main`, as Typer makes a silent exit of it on the way
        print("moe-prompt: stopped; finished batches are in the database, run again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None
    if result.restored:
        print(f"{study.name}: {result.restored} rows taken over from {out / study.name}.csv")
    found = f"{result.computed} new fits" if result.computed else "every fit was there already"
    print(f"{study.name}: {found}; rows in {archive.database(out, study.name)}")


@study_app.command("plan")
def study_plan(
    name: Name,
    quick: Quick = False,
    seed: Seed = None,
    out: Out = RESULTS,
    jobs: Jobs = None,
    width: Annotated[Optional[float], typer.Option(help="Wanted width of the slopes' 95 % intervals.")] = None,
    json_: Json = False,
) -> None:
    """Before paying: what a study costs and how sharp its slopes will be, by its rows or a pilot of a minute."""
    from moe_prompt.basics.progress import ProgressBar
    from moe_prompt.studies.analysis import planning
    from moe_prompt.studies.analysis.cells import cells_of
    from moe_prompt.studies.running import pilot

    study, workers = _study(name, quick, seed), _workers(jobs)
    planning.check_width(width)
    basis = pilot.known_basis(study, out)
    if basis is None:
        with ProgressBar(f"{study.name}, pilot") as progress:
            basis = pilot.pilot_basis(study, out, progress.of_fits)
    forecast = planning.plan_study(study, cells_of(study, basis.rows, {}), basis.done, workers, width)
    told = {**forecast.to_dict(), "source": basis.source}
    print(json.dumps(told, indent=1) if json_ else planning.plan_text(forecast, study, basis.source))


@study_app.command("show")
def study_show(
    name: Name,
    quick: Quick = False,
    seed: Seed = None,
    out: Out = RESULTS,
    target: Annotated[Optional[float], typer.Option(help="Instead: the n at which errors fall to this.")] = None,
    loss: Annotated[Optional[str], typer.Option(help="The loss that the target is meant for; all by default.")] = None,
    json_: Json = False,
) -> None:
    """Slopes, efficiencies and floors of a study, and its figure."""
    from moe_prompt.studies.analysis.cells import all_summaries, cells_of
    from moe_prompt.studies.running import archive

    require(target is not None or loss is None, "--loss belongs to a target: give the error you want with --target.")
    study = _study(name, quick, seed)
    rows, notes, source = archive.load_rows(study, out)
    cells = cells_of(study, rows, notes)
    if target is not None:
        _show_sizes(study, cells, target, loss, f"rows   {source}", json_)
    elif json_:
        _print_json(study, all_summaries(cells))
    else:
        _show_cells(study, cells, out / f"{study.name}{'-quick' if quick else ''}", f"rows   {source}")


def _show_sizes(study: Study, cells: Sequence[Cell], target: float, loss: str | None, source: str, json_: bool) -> None:
    from moe_prompt.studies.analysis.sample_complexity import needed_sizes, needed_sizes_table

    sizes = needed_sizes(study, cells, target, loss)
    if json_:
        _print_json(study, sizes, target=target)
    else:
        print(needed_sizes_table(sizes), source, sep="\n\n")


def _show_cells(study: Study, cells: Sequence[Cell], stem: Path, source: str) -> None:
    from moe_prompt.plotting.study_figure import draw_study
    from moe_prompt.studies.analysis.captions import caption, counts, figure_note
    from moe_prompt.studies.analysis.tables import cells_table

    words = caption(study, cells)
    figure, *_ = save_captioned(draw_study(study, cells), stem, words, figure_note(cells), (".png",))
    print(cells_table(cells), words, counts(cells), f"{source}\nfigure {figure}", sep="\n\n")


def _print_json(study: Study, found: Sequence[CellSummary | NeededSize], **told: float) -> None:
    """The study, its key and one entry for each thing found."""
    about = {"study": study.name, "key": study.key, **told}
    print(json.dumps({**about, "cells": [one.to_dict() for one in found]}, indent=1))


@study_app.command("export")
def study_export(
    name: Name,
    seed: Seed = None,
    out: Out = RESULTS,
    format: Annotated[str, typer.Option(help="csv or parquet.")] = "csv",
) -> None:
    """Write the rows of a study as CSV or Parquet, with their provenance as JSON."""
    from moe_prompt.studies.running import archive

    for path in archive.export(_study(name, False, seed), out, format):
        print(path)


def _study(name: str, quick: bool, seed: int | None) -> Study:
    from moe_prompt.studies.loading import load

    study = load(name)
    study = study if seed is None else replace(study, seed=seed)
    return study.quick() if quick else study


def _workers(jobs: int | None) -> int:
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    require(jobs >= 1, f"--jobs needs at least one worker: got {jobs}.")
    return jobs
