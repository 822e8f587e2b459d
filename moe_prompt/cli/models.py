"""The commands that look at one prompt expert: `moe-prompt identifiability` and `moe-prompt view`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from moe_prompt.basics.user_files import defined_in, told
from moe_prompt.cli.app import app
from moe_prompt.cli.output import Json, save_figure
from moe_prompt.errors import require

if TYPE_CHECKING:
    from moe_prompt.theory.report import FamilyReport


@app.command()
def identifiability(
    expert: Annotated[
        Optional[str],
        typer.Option(help="vpt, prefix, vapt, ... (an unknown name lists them all), or a Python file of your own."),
    ] = None,
    activation: Annotated[Optional[str], typer.Option(help="tanh, gelu, sigmoid, relu, linear, square.")] = None,
    rank: Annotated[Optional[int], typer.Option(help="Hidden units of an adaptive prompt.")] = None,
    json_: Json = False,
) -> None:
    """Jacobian rank, Cramer-Rao bound, sigma_2 and the rate they predict; without options, for every family."""
    from moe_prompt.theory import families, report

    given = activation is not None or rank is not None
    require(
        not given or expert is not None,
        f"--activation and --rank belong to an expert: name one of {', '.join(families.EXPERTS)} with --expert.",
    )
    if expert is None:
        reports = families.table()
    elif expert.endswith(".py"):
        require(not given, f"{expert} sets its own activation and rank: change them in the file.")
        reports = [_own_expert(expert)]
    else:
        reports = [report.identifiability_report(families.select(expert, activation, rank).build())]
    if json_:
        print(json.dumps({"families": [report.to_dict() for report in reports]}, indent=1))
    else:
        print(report.report_table(reports))


def _own_expert(path: str) -> FamilyReport:
    """The limits of the prompt expert in a user's file."""
    from moe_prompt.theory import families, report

    _, make = defined_in(path, "`prompt(config)`, which makes a prompt expert", prompt=Callable)
    with told(path, "does not fit a regression model on one token of 4 numbers"):
        return report.identifiability_report(families.own_expert(make, path))


@app.command()
def view(
    image: Annotated[Path, typer.Option(help="Any picture that Pillow reads.")],
    random_head: Annotated[bool, typer.Option("--random-head", help="A random network (the default).")] = False,
    backbone: Annotated[
        Optional[str],
        typer.Option("--backbone", "--weights", help="A name of `classify list`, another on the hub, or a file."),
    ] = None,
    prompt: Annotated[
        Optional[str],
        typer.Option(help="vapt (the default), vpt, prefix, ...: an unknown name lists them all; or your Python file."),
    ] = None,
    num_prompts: Annotated[Optional[int], typer.Option(help="Prompts in a block; 10 by default.")] = None,
    tuned: Annotated[
        Optional[Path], typer.Option(help="A file tuned.safetensors of `classify`: its trained prompts.")
    ] = None,
    block: Annotated[int, typer.Option(help="Which block, from 0.")] = 0,
    heads: Annotated[Optional[int], typer.Option(help="Heads of a block, where the file does not say.")] = None,
    size: Annotated[
        Optional[int], typer.Option(help="Side of the picture in pixels; the backbone's by default.")
    ] = None,
    normalisation: Annotated[Optional[str], typer.Option(help="imagenet, half or none.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is random.")] = 0,
    out: Annotated[Path, typer.Option(help="The figure to write.")] = Path("view.png"),
    json_: Json = False,
) -> None:
    """A picture through a block of a ViT: gates, experts, and how much the prompts listen to the input."""
    from moe_prompt.vision.commands.options import DEFAULT_BACKBONE, say
    from moe_prompt.vision.diagnosis.view import view_picture

    require(not (random_head and backbone), "--random-head and --backbone exclude each other: give one of them.")
    report = view_picture(
        image,
        backbone=DEFAULT_BACKBONE if backbone is None and tuned is not None else backbone,
        prompt=prompt,
        num_prompts=num_prompts,
        tuned=tuned,
        block=block,
        heads=heads,
        size=size,
        normalisation=normalisation,
        seed=seed,
        progress=say,
    )
    if json_:
        print(json.dumps(report.to_dict(), indent=1))
        return
    from moe_prompt.plotting.head_view import draw_view

    print(report.sentence(), *report.notes, f"figure {save_figure(draw_view(report), out)}", sep="\n")
