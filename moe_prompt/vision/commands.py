"""`moe-prompt classify`: real pictures and pre-trained ViTs, from a file on disk to a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from moe_prompt.errors import require

app = typer.Typer(no_args_is_help=True, help="Images: fetch, verify, train, tune, report.")

RUNS = Path("runs")
Data = Annotated[
    Optional[Path], typer.Option("--data", help="A task: VTAB folder, FGVC json, image folder, arrays, ..")
]
Backbone = Annotated[str, typer.Option(help="A name of `classify list`, a name on the hub, or a file.")]
MethodName = Annotated[str, typer.Option("--method", help="A name of `classify list`, or a Python file of your own.")]
Options = Annotated[Optional[list[str]], typer.Option("--set", help="An option of the method, NAME=VALUE; repeatable.")]
Image = Annotated[Optional[int], typer.Option(help="Side of the pictures in pixels; the backbone's own by default.")]
Epochs = Annotated[Optional[int], typer.Option(help="Epochs; the recipe's by default.")]
Batch = Annotated[Optional[int], typer.Option(help="Pictures a step; the recipe's by default.")]
Accumulate = Annotated[Optional[int], typer.Option(help="Pieces that a step is computed in.")]
Precision = Annotated[str, typer.Option(help="float32, bf16 or fp16.")]
Weights = Annotated[Optional[str], typer.Option("--class-weights", help="`balanced`, or none.")]
Workers = Annotated[int, typer.Option(help="Processes that decode pictures.")]
Normalisation = Annotated[Optional[str], typer.Option(help="imagenet, half or none; the recipe's by default.")]
Share = Annotated[float, typer.Option(help="Share of the training pictures, stratified by class.")]
TestShare = Annotated[float, typer.Option("--test-share", help="Share of the test pictures, stratified by class.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ..")]
Out = Annotated[Path, typer.Option(help="Folder of runs: rows, logs, tuned prompts. The same command goes on there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DEFAULT_BACKBONE = "dinov2-small-derived"


@app.command("list")
def list_() -> None:
    """Methods, backbones and picture sets that have names."""
    from moe_prompt.vision.backbones import BACKBONES
    from moe_prompt.vision.methods import METHODS
    from moe_prompt.vision.sets import SETS

    for kind, lines in (
        ("methods", {name: (method.__doc__ or "").splitlines()[0] for name, method in METHODS.items()}),
        ("backbones", {name: backbone.about for name, backbone in BACKBONES.items()}),
        ("picture sets", {name: source.title for name, source in SETS.items()}),
    ):
        print(kind, *(f"  {name:22s} {line}" for name, line in lines.items()), sep="\n")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A backbone or a picture set of `classify list`.")],
    out: Annotated[
        Optional[Path], typer.Option(help="Folder for the task folders of a set; the cache by default.")
    ] = None,
    file: Annotated[Optional[list[Path]], typer.Option(help="A file that you have already; repeatable.")] = None,
    test_size: Annotated[Optional[int], typer.Option(help="At most so many test pictures.")] = None,
) -> None:
    """Bring a backbone or a picture set, check its hash, and keep it."""
    from moe_prompt.vision.backbones import BACKBONES, fetch_backbone
    from moe_prompt.vision.sets import SETS, fetch_set

    if name in SETS:
        for folder in fetch_set(name, out, test_size=test_size, files=file or (), progress=_say):
            print(folder)
        return
    require(
        out is None and test_size is None and len(file or ()) <= 1,
        f"--out, --test-size and several --file belong to picture sets ({', '.join(SETS)}): got {name!r}.",
    )
    require(
        name in BACKBONES or "/" in name,
        f"nothing is named {name!r}: choose a backbone ({', '.join(BACKBONES)}) or a picture set ({', '.join(SETS)}).",
    )
    print(fetch_backbone(name, _say, file[0] if file else None))


@app.command()
def verify(
    data: Annotated[Path, typer.Option(help="A task in any layout.")],
    most: Annotated[
        int, typer.Option(help="Pictures decoded in each split; where there are more, a drawn sample.")
    ] = 2000,
    json_: Json = False,
) -> None:
    """Counts, classes, overlap of splits, unreadable and re-encoded files, against what is published."""
    from moe_prompt.vision.verification import verify as verified

    report = verified(data, most=most)
    print(json.dumps(report.to_dict(), indent=1) if json_ else report.render())
    if not report.ok:
        raise typer.Exit(2)


@app.command()
def train(
    data: Data = None,
    method: MethodName = "vapt",
    set_: Options = None,
    backbone: Backbone = DEFAULT_BACKBONE,
    image: Image = None,
    pooling: Annotated[str, typer.Option(help="cls or avg.")] = "cls",
    lr: Annotated[float, typer.Option(help="Base learning rate, for a batch of 256.")] = 5.0,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0001,
    optimizer: Annotated[Optional[str], typer.Option(help="sgd or adamw; the method's by default.")] = None,
    epochs: Epochs = None,
    warmup: Annotated[Optional[int], typer.Option(help="Epochs of warm-up.")] = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    precision: Precision = "float32",
    class_weights: Weights = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and dropout.")] = 42,
    workers: Workers = 0,
    normalisation: Normalisation = None,
    share: Share = 1.0,
    test_share: TestShare = 1.0,
    device: Device = "auto",
    out: Out = RUNS,
    quick: Annotated[
        bool, typer.Option("--quick", help="The whole path on real digits, two minutes, no download.")
    ] = False,
    json_: Json = False,
) -> None:
    """One training on all training pictures, tested at its last epoch; started again, it goes on."""
    if quick:
        from moe_prompt.vision.quick import demonstrate

        require(data is None, "--quick brings its own pictures: leave out --data.")
        print(demonstrate(out / "quick", _say).text())
        return
    require(data is not None, "train needs --data, a folder of pictures; or --quick, which brings its own.")
    assert data is not None
    from moe_prompt.vision import assembly
    from moe_prompt.vision.runs import run
    from moe_prompt.vision.training_progress import TrainingProgress

    problem, report = assembly.open_problem(data, backbone, image, normalisation, share, test_share, device, pooling)
    chosen = assembly.chosen_method(problem.task_name, method, set_ or [])
    changes = {
        "base_lr": lr,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "epochs": epochs,
        "warmup": warmup,
        "batch": batch,
        "accumulate": accumulate,
        "precision": precision,
        "class_weights": class_weights,
        "seed": seed,
        "workers": workers,
    }
    recipe = assembly.chosen_recipe(problem.task_name, chosen.name, changes)
    _say(report.sentence())
    spec = problem.final(chosen, recipe, Path(method).stem)
    with _stoppable(), TrainingProgress(f"{problem.task_name}, {spec.label}") as progress:
        row = run(spec, out, problem, progress)
    require(not row.failed, f"the training failed: {row.message}")
    if json_:
        print(json.dumps({**row.__dict__, "spec": json.loads(row.spec), "method": json.loads(row.method)}, indent=1))
        return
    print(
        f"{problem.task_name}: {row.accuracy:.2f} % of {row.evaluation_images} test pictures after the last of "
        f"{row.epochs} epochs; {row.tuned_parameters:,} parameters and a head of {row.head_parameters:,} learned on "
        f"{row.training_images} pictures in {row.seconds:.0f} s.",
        f"tuned  {out / 'runs' / spec.key / 'tuned.safetensors'}",
        f"rows   {out / 'runs.sqlite'}",
        sep="\n",
    )


@app.command()
def tune(
    data: Data = None,
    method: Annotated[Optional[list[str]], typer.Option("--method", help="A method; repeatable.")] = None,
    set_: Options = None,
    backbone: Backbone = DEFAULT_BACKBONE,
    search: Annotated[str, typer.Option(help="paper, coordinates, small, random or tpe.")] = "coordinates",
    trials: Annotated[Optional[int], typer.Option(help="Trials, for random and tpe.")] = None,
    seeds: Annotated[int, typer.Option(help="How many of the five seeds are trained and tested.")] = 5,
    image: Image = None,
    pooling: Annotated[str, typer.Option(help="cls or avg.")] = "cls",
    epochs: Epochs = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    precision: Precision = "float32",
    class_weights: Weights = None,
    workers: Workers = 0,
    normalisation: Normalisation = None,
    share: Share = 1.0,
    test_share: TestShare = 1.0,
    device: Device = "auto",
    out: Out = RUNS,
) -> None:
    """Search on validation pictures, then train the best with five seeds and test each once; prints the report.

    Several processes with the same command share the work, and a killed one goes on.
    """
    require(data is not None, "tune needs --data, a folder of pictures.")
    assert data is not None
    from moe_prompt.vision import assembly
    from moe_prompt.vision.recipes import SEEDS
    from moe_prompt.vision.reporting import report
    from moe_prompt.vision.searches import search_named
    from moe_prompt.vision.training_progress import TrainingProgress
    from moe_prompt.vision.tuning import tune as tuned

    require(1 <= seeds <= len(SEEDS), f"--seeds is how many of the {len(SEEDS)} seeds are run: got {seeds}.")
    problem, loaded = assembly.open_problem(data, backbone, image, normalisation, share, test_share, device, pooling)
    changes = {
        "epochs": epochs,
        "batch": batch,
        "accumulate": accumulate,
        "precision": precision,
        "class_weights": class_weights,
        "workers": workers,
    }
    names = method or ["linear", "vpt-deep", "vapt"]
    planned = []
    for name in names:  # all options are checked before anything is trained
        chosen = assembly.chosen_method(problem.task_name, name, set_ or [] if len(names) == 1 else [])
        recipe = assembly.chosen_recipe(problem.task_name, chosen.name, changes)
        planned.append((Path(name).stem, chosen, recipe, search_named(search, recipe.optimizer, trials)))
    require(len(names) == 1 or not set_, "--set belongs to one method: tune one at a time, or leave it out.")
    _say(loaded.sentence())
    rows = []
    for label, chosen, recipe, planned_search in planned:
        with _stoppable(), TrainingProgress(f"{problem.task_name}, {label}") as progress:
            found = tuned(problem, chosen, recipe, planned_search, out, label, SEEDS[:seeds], progress, _say)
        rows += [*found.trials, *found.finals]
    print(report(rows).text())
    print(f"rows   {out / 'runs.sqlite'}")


@app.command()
def report(
    runs: Annotated[Path, typer.Option("--out", help="Folder of runs, or a file of exported rows.")] = RUNS,
    format: Annotated[str, typer.Option(help="text, markdown or csv.")] = "text",
    against: Annotated[Optional[str], typer.Option(help="The method that others are compared with.")] = None,
    export: Annotated[Optional[Path], typer.Option(help="Also write the rows to this CSV file.")] = None,
) -> None:
    """Mean and standard deviation per task, group means, cost, and the published numbers beside."""
    from moe_prompt.errors import choose
    from moe_prompt.vision.reporting import report as reported
    from moe_prompt.vision.run_table import read_rows, write_rows

    rows = read_rows(runs)
    found = reported(rows, against)
    write = choose("format", format, {"text": found.text, "markdown": found.markdown, "csv": found.csv})
    print(write(), end="")
    if export is not None:
        _say(f"{len(rows)} rows written to {write_rows(export, rows)}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A checkpoint of the released VAPT code.")],
    data: Annotated[Path, typer.Option(help="The task it was trained on, for the names of its classes.")],
    backbone: Annotated[str, typer.Option(help="The backbone it was trained on.")] = "vit-b16-in21k",
    image: Image = None,
    out: Annotated[Path, typer.Option(help="The tuned file to write.")] = Path("released.safetensors"),
) -> None:
    """Put released VAPT prompts onto a backbone and save them as a tuned file."""
    from moe_prompt.vision.checkpoints import load_backbone
    from moe_prompt.vision.formats_files import read_checkpoint
    from moe_prompt.vision.layouts import open_task
    from moe_prompt.vision.released import released_vapt
    from moe_prompt.vision.tuned_files import save_tuned

    vit, report_ = load_backbone(backbone, image)
    _say(report_.sentence())
    classifier = released_vapt(read_checkpoint(file).tensors, str(file), vit)
    print(save_tuned(out, classifier, open_task(data).classes, {"imported": file.name}))


class _stoppable:
    """Control-C is a sentence: what was computed is on disk."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            print("moe-prompt: stopped; what was computed is saved, run again to go on.", file=sys.stderr)
            raise typer.Exit(130) from None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
