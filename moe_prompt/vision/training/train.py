"""Train a classifier by a recipe. A training that was interrupted continues to the same weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from moe_prompt.errors import require
from moe_prompt.vision.runtime.distributed import joined
from moe_prompt.vision.runtime.precision import device_of, without_denormals
from moe_prompt.vision.runtime.randomness import own_randomness
from moe_prompt.vision.training.batches import size_of
from moe_prompt.vision.training.evaluation import TrainingProgress, silent
from moe_prompt.vision.training.features import FeatureDataset
from moe_prompt.vision.training.recipe import TrainingRecipe
from moe_prompt.vision.training.result import TrainingResult
from moe_prompt.vision.training.run import TrainingPlan, TrainingRun

__all__ = ["FeatureDataset", "TrainingRecipe", "TrainingResult", "train"]


@without_denormals()
def train(
    model: nn.Module,
    training: Dataset,
    test: Dataset | None,
    recipe: TrainingRecipe,
    folder: str | Path | None = None,
    progress: TrainingProgress | None = None,
    *,
    test_every: int = 0,
    save_seconds: float = 60.0,
    save_steps: int | None = None,
    tensorboard: bool = False,
) -> TrainingResult:
    """Train the parameters of `model` (images to logits) that require a gradient; the model ends with the last weights.

    With a `folder`, the state is saved there every `save_seconds`, every `save_steps` steps and after each epoch. The
    same call then continues from that state, on a CPU to the same weights bit for bit; a finished training is read and
    not repeated. The folder also gets `steps.csv`, `epochs.csv` and, with `tensorboard`, TensorBoard's events.

    The model is tested after the last epoch, and with `test_every` also every so many epochs. Where only the head
    learns (`model.features_are_fixed`) and no picture is changed at random, features are computed once. A
    :class:`FeatureDataset` in place of pictures brings its features along.

    A loss that is not finite ends the training; the result is then marked as failed, with the reason. Under `torchrun`
    the same call divides each batch among the processes.

    Raises:
        InputError: nothing to learn or to learn from, a label without a class, a picture that cannot be read, or a
            folder with the state of another training.
    """
    require(size_of(training) > 0, "the training set has no pictures: give a split that has some.")
    require(
        any(p.requires_grad for p in model.parameters()),
        "the model has nothing to learn: no parameter requires a gradient.",
    )
    device = device_of(model)
    ranks = joined(device)
    with own_randomness(recipe.seed, ranks.rank, device):
        require(
            ranks.world <= recipe.batch,
            f"{ranks.world} processes share batches of {recipe.batch}: start fewer processes or raise batch.",
        )
        place = None if folder is None else Path(folder)
        plan = TrainingPlan(recipe, place, test_every, save_seconds, save_steps, tensorboard)
        return TrainingRun(model, training, test, plan, ranks, progress or silent).result()
