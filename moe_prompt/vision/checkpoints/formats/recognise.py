"""Any ViT checkpoint's tensors under timm's names; the family of names is recognised from the file itself.

A family of your own is one subclass of :class:`~moe_prompt.vision.checkpoints.formats.base.Format` added to
`CHECKPOINT_FORMATS`.
"""

from __future__ import annotations

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.formats.base import Encoder, Format, StoredTensors
from moe_prompt.vision.checkpoints.formats.google import GoogleNames
from moe_prompt.vision.checkpoints.formats.timm import TimmNames
from moe_prompt.vision.checkpoints.formats.transformers import TransformersNames

__all__ = ["CHECKPOINT_FORMATS", "Encoder", "Format", "StoredTensors", "encoder_of"]

CHECKPOINT_FORMATS: tuple[Format, ...] = (GoogleNames(), TransformersNames(), TimmNames())


def encoder_of(stored: StoredTensors) -> Encoder:
    """The encoder in a checkpoint.

    Raises:
        InputError: naming the file: the names are of no known family, or the encoder is not a plain ViT.
    """
    for family in CHECKPOINT_FORMATS:
        if family.recognises(stored):
            return family.encoder(stored)
    held = ", ".join(list(stored.tensors)[:3]) or "no tensor"
    raise InputError(
        f"{stored.source} is not the checkpoint of a ViT: it holds {held}; "
        "known are the names of timm, MAE, MoCo v3, DINOv2, transformers and Google's npz."
    )
