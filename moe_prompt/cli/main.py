"""The command line: a sentence and exit code 2 for bad input, never a traceback, and nothing computed is lost."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: idle threads sleep instead of spinning

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from moe_prompt.errors import InputError, require
from moe_prompt.vision.commands.app import app as classify_app

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_prompt.studies.base import Study

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
study_app = typer.Typer(no_args_is_help=True, help="Rate studies: error against sample size.")
app.add_typer(study_app, name="study")
app.add_typer(classify_app, name="classify")

RESULTS, FIGURES = Path("experiments/results"), Path("figures")
Name = Annotated[str, typer.Argument(help="A study of `study list`, or a Python file that defines `study`.")]
Quick = Annotated[bool, typer.Option("--quick", help="A few sizes and replicates: a picture in a minute.")]
Seed = Annotated[Optional[int], typer.Option(help="Another seed than the study's own: other data, other rows.")]
Out = Annotated[Path, typer.Option(help="Folder of databases, exports and figures.")]
Jobs = Annotated[Optional[int], typer.Option(help="Worker processes; all cores by default.")]
Rows = Annotated[Path, typer.Option(help="Folder of exported rows.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def main() -> None:
    """Entry point of `moe-prompt`."""
    try:
        app()
    except InputError as error:
        print(f"moe-prompt: {error}", file=sys.stderr)
        sys.exit(2)


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
    from moe_prompt.cli.progress import Progress
    from moe_prompt.studies.running import archive, runner
    from moe_prompt.studies.running.database import Results

    study, workers = _study(name, quick, seed), _workers(jobs)
    study = study if replicates is None else replace(study, replicates=min(replicates, study.replicates))
    results = Results(archive.database(out, study.name), study.columns)
    restored = archive.restore(study, out, results)
    if restored:
        print(f"{study.name}: {restored} rows taken over from {out / study.name}.csv")
    results.note(study.key, "environment", archive.environment())
    try:
        with Progress(study.name) as progress:
            fits = runner.run(study, results, workers, dask, progress)
    except KeyboardInterrupt:  # here and not in `main`, as Typer makes a silent exit of it on the way
        print("moe-prompt: stopped; finished batches are in the database, run again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        results.close()
    found = f"{fits} new fits" if fits else "every fit was there already"
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
    from moe_prompt.cli.progress import Progress
    from moe_prompt.studies.analysis import planning
    from moe_prompt.studies.running import pilot

    study, workers = _study(name, quick, seed), _workers(jobs)
    planning.check_width(width)
    basis = pilot.known_basis(study, out)
    if basis is None:
        with Progress(f"{study.name}, pilot") as progress:
            basis = pilot.pilot_basis(study, out, progress)
    forecast = planning.plan(study, basis.rows, basis.done, workers, width)
    told = {**forecast.to_dict(), "source": basis.source}
    print(json.dumps(told, indent=1) if json_ else planning.render(forecast, study, basis.source))


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
    from moe_prompt.studies.analysis import sample_complexity, summaries
    from moe_prompt.studies.analysis.captions import caption
    from moe_prompt.studies.running import archive

    require(target is not None or loss is None, "--loss belongs to a target: give the error you want with --target.")
    study = _study(name, quick, seed)
    rows, notes, source = archive.load_evidence(study, out)
    if target is not None:
        sizes = sample_complexity.needed_sizes(study, rows, notes, target, loss)
        told = {"study": study.name, "key": study.key, "target": target, "cells": [s.to_dict() for s in sizes]}
        print(json.dumps(told, indent=1) if json_ else f"{sample_complexity.table(sizes)}\nrows   {source}")
        return
    cells = summaries.summarize(study, rows, notes)
    if json_:
        print(json.dumps({"study": study.name, "key": study.key, "cells": [c.to_dict() for c in cells]}, indent=1))
        return
    from moe_prompt.plotting.study_figure import draw

    print(summaries.table(cells), caption(study, cells), sep="\n\n")
    figure = _save(draw(study, rows, notes), out / f"{study.name}{'-quick' if quick else ''}.png")
    print(f"\nrows   {source}\nfigure {figure}")


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


@app.command()
def identifiability(
    expert: Annotated[
        Optional[str], typer.Option(help="vpt, prefix, vapt, ...: an unknown name lists them all.")
    ] = None,
    activation: Annotated[Optional[str], typer.Option(help="tanh, gelu, sigmoid, relu, linear, square.")] = None,
    rank: Annotated[Optional[int], typer.Option(help="Hidden units of an adaptive prompt.")] = None,
    json_: Json = False,
) -> None:
    """Jacobian rank, Cramer-Rao bound, sigma_2 and the rate they predict; without options, for every family."""
    from moe_prompt.theory import families, report

    require(
        expert is not None or (activation is None and rank is None),
        f"--activation and --rank belong to an expert: name one of {', '.join(families.EXPERTS)} with --expert.",
    )
    reports = families.table() if expert is None else [families.report(expert, activation, rank)]
    if json_:
        print(json.dumps({"families": [report.to_dict() for report in reports]}, indent=1))
    else:
        print(report.render(reports))


@app.command()
def view(
    image: Annotated[Path, typer.Option(help="Any picture that Pillow reads.")],
    random_head: Annotated[
        bool, typer.Option("--random-head", help="A randomly initialised block (the default).")
    ] = False,
    weights: Annotated[Optional[Path], typer.Option(help="A safetensors file with a block's tensors.")] = None,
    prompt: Annotated[str, typer.Option(help="vapt or vpt.")] = "vapt",
    num_prompts: Annotated[int, typer.Option(help="Prompt experts.")] = 10,
    block: Annotated[int, typer.Option(help="Which block of the file.")] = 0,
    heads: Annotated[Optional[int], typer.Option(help="Heads of the block.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is random.")] = 0,
    out: Annotated[Path, typer.Option(help="The figure to write.")] = Path("view.png"),
    json_: Json = False,
) -> None:
    """A picture through a multi-head block: gates, experts, and how much the prompts listen to the input."""
    from moe_prompt.attention.view import view_picture

    require(not (random_head and weights), "--random-head and --weights exclude each other: give one of them.")
    report = view_picture(
        image, weights=weights, prompt=prompt, num_prompts=num_prompts, heads=heads, block=block, seed=seed
    )
    if json_:
        print(json.dumps(report.to_dict(), indent=1))
        return
    from moe_prompt.plotting.head_view import draw_view

    print(report.sentence(), *report.notes, f"figure {_save(draw_view(report), out)}", sep="\n")


@app.command()
def figures(
    rows: Rows = RESULTS,
    out: Annotated[Path, typer.Option(help="Folder to draw into.")] = FIGURES,
) -> None:
    """Redraw every figure from exported rows: the same rows give the same bytes."""
    from moe_prompt.plotting.bad_sequences import draw_sequences
    from moe_prompt.plotting.fit_windows import draw_windows
    from moe_prompt.plotting.study_figure import draw
    from moe_prompt.studies.loading import NAMES, load
    from moe_prompt.studies.running import archive

    drawn = 0
    suffixes = (".png", ".pdf")
    for name in NAMES:
        if not (rows / f"{name}.csv").exists():
            continue
        study = load(name)
        evidence = archive.load_evidence(study, rows, exported=True)
        figure = draw(study, evidence.rows, evidence.notes)
        drawn += 1
        for suffix in suffixes:
            print(_save(figure, (out / name).with_suffix(suffix)))
    require(drawn > 0, f"no exported rows in {rows}: run `moe-prompt study export NAME`, or name a folder with --rows.")
    others = {"bad-sequences": draw_sequences()}
    published = [rows / f"{name}.csv" for name in ("softmax-gaussian", "softmax-gaussian-published")]
    if all(path.exists() for path in published):
        frames = [archive.load_evidence(load(path.stem), rows, exported=True).rows for path in published]
        others["softmax-gaussian-windows"] = draw_windows(*frames)
    for name, figure in others.items():
        for suffix in suffixes:
            print(_save(figure, (out / name).with_suffix(suffix)))


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


def _study(name: str, quick: bool, seed: int | None) -> Study:
    from moe_prompt.studies.loading import load

    study = load(name)
    study = study if seed is None else replace(study, seed=seed)
    return study.quick() if quick else study


def _workers(jobs: int | None) -> int:
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    require(jobs >= 1, f"--jobs needs at least one worker: got {jobs}.")
    return jobs


def _save(figure: Figure, path: Path) -> Path:
    """Write a figure without dates or version strings, so that equal figures are equal files."""
    path = path if path.suffix else path.with_suffix(".png")
    unstamped: dict[str, Any] = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        ".svg": {"Date": None, "Creator": None},
    }
    require(path.suffix in unstamped, f"figures are written as {', '.join(unstamped)}: got {path.name}.")
    from moe_prompt.plotting.rates import write

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(figure, path, unstamped[path.suffix])
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}): name a folder you may write to with --out.") from None
    return path
