"""The methods, each by its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from moe_prompt.errors import choose
from moe_prompt.vision.methods.base import Method
from moe_prompt.vision.methods.baselines import Adapter, Bias, Full, LayerNormTuning, Linear, LoRA, PartialK
from moe_prompt.vision.methods.prompts import VAPT, NoRGa, Prefix, VPTDeep, VPTShallow

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        *(Linear, Full, PartialK, Bias, LayerNormTuning, Adapter, LoRA),
        *(VPTShallow, VPTDeep, VAPT, Prefix, NoRGa),
    )
}
"""The method of each name on the command line."""


def method_named(name: str, **options: Any) -> Method:
    """A method with some of its options set; "vapt-paper" is VAPT as the paper writes it.

    Raises:
        InputError: an unknown name or option, or a value that the method refuses.

    >>> method_named("vpt-deep", num_prompts=50).to_dict()
    {'name': 'vpt-deep', 'num_prompts': 50, 'dropout': 0.1}
    """
    if name == "vapt-paper":
        paper = VAPT.paper()
        return method_named("vapt", **{**{f.name: getattr(paper, f.name) for f in fields(paper)}, **options})
    kind = cast(Any, choose("method", name, {**METHODS, "vapt-paper": VAPT}))
    known = {field.name: field for field in fields(kind)}
    for option in options:
        choose(f"option of {name}", option, known)
    return cast(Method, kind(**options))
