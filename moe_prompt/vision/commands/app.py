"""The commands of `moe-prompt classify`: real pictures and pre-trained ViTs, from files on disk to a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from moe_prompt.basics.tables import aligned
from moe_prompt.errors import choose, require
from moe_prompt.vision.commands import options as given
from moe_prompt.vision.commands.options import DEFAULT_BACKBONE, RUNS, say, show, show_json, stoppable
from moe_prompt.vision.commands.training import train_command, tune_command

classify_app = typer.Typer(
    no_args_is_help=True,
    help="Classify pictures: fetch and verify sets, train, tune, report, predict. Exit codes: 1 if a training failed, "
    "2 for wrong input, 130 if stopped.",
)


@classify_app.command("list")
def list_command() -> None:
    """Methods, backbones and picture sets that have names."""
    from moe_prompt.vision.checkpoints.backbones import BACKBONES
    from moe_prompt.vision.data.sets.fetch import SETS
    from moe_prompt.vision.methods.by_name import METHODS

    methods = {name: (method.__doc__ or "").splitlines()[0] for name, method in METHODS.items()}
    methods["vapt-paper"] = "VAPT as the paper writes it, where `vapt` is as it was released."
    for kind, lines in (
        ("methods", methods),
        ("backbones", {name: backbone.about for name, backbone in BACKBONES.items()}),
        ("picture sets", {name: source.title for name, source in SETS.items()}),
    ):
        show(kind, aligned([("", *line) for line in lines.items()]))


@classify_app.command("fetch")
@stoppable("no half-made file is left; run the command again")
def fetch_command(
    name: Annotated[str, typer.Argument(help="A backbone or picture set of `classify list`, or a name on the hub.")],
    out: Annotated[
        Optional[Path], typer.Option("--out", help="Folder for the task folders of a set; the cache by default.")
    ] = None,
    file: Annotated[
        Optional[list[Path]], typer.Option("--file", help="A file that you have already; repeatable.")
    ] = None,
    test_size: Annotated[
        Optional[int], typer.Option("--test-size", help="At most so many test pictures; all of the set's by default.")
    ] = None,
) -> None:
    """Download a backbone or a picture set, check its hash, keep it, and print where it is."""
    from moe_prompt.vision.checkpoints.backbones import BACKBONES, fetch_backbone, locate
    from moe_prompt.vision.data.sets.fetch import SETS, fetch_set

    if name in SETS:
        show(*map(str, fetch_set(name, out, test_size=test_size, files=file or (), progress=say)))
        return
    require(
        out is None and test_size is None and len(file or ()) <= 1,
        f"--out, --test-size and several --file belong to picture sets ({', '.join(SETS)}): got {name!r}.",
    )
    known = name in BACKBONES or ("/" in name and not Path(name).exists())
    require(
        known,
        f"nothing is named {name!r}: choose a backbone ({', '.join(BACKBONES)}) or a picture set ({', '.join(SETS)}).",
    )
    show(str(fetch_backbone(name, say, file[0] if file else None) if name in BACKBONES or file else locate(name, say)))


@classify_app.command("verify")
@stoppable("run the command again")
def verify_command(
    data: Annotated[Path, typer.Option("--data", help="A task in any layout.")],
    most: Annotated[
        int, typer.Option("--most", help="Pictures decoded in each split; where there are more, a drawn sample.")
    ] = 2000,
    json_: given.AsJson = False,
) -> None:
    """Check a task: counts, classes, overlap of splits, unreadable and re-encoded files, against published values.

    The exit code is 2 if the task has a problem.
    """
    from moe_prompt.vision.data.verification.verify import verify

    found = verify(data, most=most)
    if json_:
        show_json(found.to_dict())
    else:
        show(found.render())
    if not found.ok:
        raise typer.Exit(2)


classify_app.command("train")(train_command)
classify_app.command("tune")(tune_command)


@classify_app.command("report")
def report_command(
    runs: Annotated[Path, typer.Option("--out", help="Folder of runs, or a file of exported rows.")] = RUNS,
    format: Annotated[str, typer.Option("--format", help="text, markdown or csv.")] = "text",
    against: Annotated[
        Optional[str], typer.Option("--against", help="The method that others are compared with; vpt-deep by default.")
    ] = None,
    export: Annotated[Optional[Path], typer.Option("--export", help="Also write the rows to this CSV file.")] = None,
) -> None:
    """Print means and standard deviations per task, group means and costs, beside the published numbers."""
    from moe_prompt.vision.report.report import tuning_report
    from moe_prompt.vision.tuning.run_table import read_rows, write_rows

    rows = read_rows(runs)
    found = tuning_report(rows, against)
    write = choose("format", format, {"text": found.text, "markdown": found.markdown, "csv": found.csv})
    if export is not None:
        say(f"{len(rows)} rows written to {write_rows(export, rows)}")
    print(write(), end="")


@classify_app.command("predict")
@stoppable("run the command again")
def predict_command(
    pictures: Annotated[list[str], typer.Argument(help="Files of pictures.")],
    tuned: Annotated[Path, typer.Option("--tuned", help="A file tuned.safetensors of a training.")],
    backbone: Annotated[str, typer.Option("--backbone", help="The backbone it was tuned on.")] = DEFAULT_BACKBONE,
    method: Annotated[
        Optional[str], typer.Option("--method", help="The Python file of the method, where it is your own.")
    ] = None,
    device: given.Device = "auto",
    json_: given.AsJson = False,
) -> None:
    """Print the class of each picture and its probability, by a tuned file."""
    from moe_prompt.vision.commands.assembly import usable_device
    from moe_prompt.vision.data.pictures import FilePictures
    from moe_prompt.vision.methods.user_file import method_from_file
    from moe_prompt.vision.tuning.prediction import open_predictor

    own = None if method is None else method_from_file(method)
    predictor, loaded = open_predictor(tuned, backbone, own, usable_device(device), say)
    say(loaded.sentence())
    found = predictor(FilePictures("", pictures))
    if json_:
        show_json({"tuned": str(tuned), "classes": predictor.classes, "pictures": [p.to_dict() for p in found]})
        return
    widths = max(map(len, pictures)), max(map(len, predictor.classes))
    for p in found:
        show(f"{p.picture:{widths[0]}s}  {p.name:{widths[1]}s}  {p.probability:7.2%}")


@classify_app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="A checkpoint of the released VAPT code.")],
    data: Annotated[Path, typer.Option("--data", help="The task it was trained on, for the names of its classes.")],
    backbone: Annotated[str, typer.Option("--backbone", help="The backbone it was trained on.")] = "vit-b16-in21k",
    image: given.Image = None,
    out: Annotated[Path, typer.Option("--out", help="The tuned file to write.")] = Path("released.safetensors"),
) -> None:
    """Put released VAPT prompts onto a backbone, save them as a tuned file, and print where it is."""
    from moe_prompt.vision.checkpoints.files import read_checkpoint
    from moe_prompt.vision.checkpoints.loading import load_backbone
    from moe_prompt.vision.commands.assembly import preprocessing_of
    from moe_prompt.vision.data.layouts.open_task import open_task
    from moe_prompt.vision.methods.released_vapt import released_vapt
    from moe_prompt.vision.methods.tuned_file import save_tuned

    task, tensors = open_task(data), read_checkpoint(file).tensors
    vit, loaded = load_backbone(backbone, image, progress=say)
    say(loaded.sentence())
    classifier = released_vapt(tensors, str(file), vit)
    require(
        classifier.num_classes == len(task.classes),
        f"{file} has a head of {classifier.num_classes} classes: {data} has {len(task.classes)}; give the task that "
        "it was trained on.",
    )
    preprocessing = preprocessing_of(task, vit.config.image)
    notes = {"imported": file.name, "preprocessing": json.dumps(preprocessing.to_dict())}
    show(str(save_tuned(out, classifier, task.classes, notes)))
