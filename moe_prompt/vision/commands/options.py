"""Options that several commands of `moe-prompt classify` share, and how the commands print.

Results go to standard output, messages to standard error. Under `torchrun` only the first process prints.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from moe_prompt.vision.training.evaluation import TrainingProgress

DEFAULT_BACKBONE = "dinov2-small-derived"
RUNS = Path("runs")

Data = Annotated[
    Optional[Path],
    typer.Option("--data", help="A task: a VTAB folder, FGVC's json, an image folder, Parquet, idx or NumPy arrays."),
]
MethodName = Annotated[str, typer.Option("--method", help="A name of `classify list`, or a Python file of your own.")]
Options = Annotated[
    Optional[list[str]], typer.Option("--set", help="An option of the method, as in num_prompts=50; repeatable.")
]
Backbone = Annotated[
    str, typer.Option("--backbone", help="A name of `classify list`, another name on the hub, or a file.")
]
Image = Annotated[
    Optional[int], typer.Option("--image", help="Side of the pictures in pixels; the backbone's own by default.")
]
Pooling = Annotated[str, typer.Option("--pooling", help="cls, or avg: the mean of the patch tokens.")]
Epochs = Annotated[Optional[int], typer.Option("--epochs", help="Epochs; the recipe's by default, as a rule 100.")]
BatchSize = Annotated[Optional[int], typer.Option("--batch", help="Pictures a step; the recipe's by default.")]
Accumulate = Annotated[
    Optional[int], typer.Option("--accumulate", help="In how many pieces a step is computed, to save memory.")
]
Precision = Annotated[str, typer.Option("--precision", help="float32, bf16 or fp16.")]
ClassWeights = Annotated[
    Optional[str],
    typer.Option("--class-weights", help="balanced: rare classes weigh more; by default all pictures weigh alike."),
]
Workers = Annotated[int, typer.Option("--workers", help="Processes that decode pictures.")]
Normalisation = Annotated[
    Optional[str], typer.Option("--normalisation", help="imagenet, half or none; the recipe's by default.")
]
Share = Annotated[float, typer.Option("--share", help="Share of the training pictures, stratified by class.")]
TestShare = Annotated[float, typer.Option("--test-share", help="Share of the test pictures, stratified by class.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
RunsFolder = Annotated[
    Path, typer.Option("--out", help="Folder of runs: rows, logs, tuned files. The same command continues there.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def speaks() -> bool:
    """Whether this process prints: it is the only one, or the first that `torchrun` started."""
    return int(os.environ.get("RANK", "0")) == 0


def say(sentence: str) -> None:
    """Print a message to standard error."""
    if speaks():
        print(sentence, file=sys.stderr)


def show(*lines: str) -> None:
    """Print results, a line each."""
    if speaks():
        print(*lines, sep="\n")


def show_json(thing: Any) -> None:
    """Print plain data as JSON; a number that JSON has no word for is null."""
    show(json.dumps(_finite(thing), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {name: _finite(value) for name, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_finite(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing


def watched(name: str) -> AbstractContextManager[TrainingProgress]:
    """The progress of trainings, with the time left, where somebody may be watching."""
    from moe_prompt.basics.progress import ProgressBar
    from moe_prompt.vision.training.evaluation import silent

    return ProgressBar(name) if speaks() else nullcontext(silent)


@contextmanager
def stoppable(advice: str = "what was computed is saved; run the command again to continue") -> Iterator[None]:
    """Turn Control-C during a command into a sentence and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:  # here and not in `main`, as Typer makes a silent exit of it on the way
        say(f"moe-prompt: stopped; {advice}.")
        raise typer.Exit(130) from None
