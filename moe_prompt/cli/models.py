"""The commands that look at one prompt expert: `moe-prompt identifiability` and `moe-prompt view`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from moe_prompt.cli.app import app
from moe_prompt.cli.output import Json, save_figure
from moe_prompt.errors import require


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
    reports = (
        families.table()
        if expert is None
        else [report.identifiability_report(families.select(expert, activation, rank).build())]
    )
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

    print(report.sentence(), *report.notes, f"figure {save_figure(draw_view(report), out)}", sep="\n")
