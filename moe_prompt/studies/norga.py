"""DOC"""

from __future__ import annotations

from moe_prompt.over_specified import OverSpecifiedStudy
from moe_prompt.studies.over_specified_settings import study

EXPERTS = ("linear expert", "constant expert", "tanh ridge")
FAMILIES = tuple(f"{gate} + {expert}" for gate in ("linear gate", "NoRGa") for expert in EXPERTS)


def build() -> OverSpecifiedStudy:
    return study(
        "norga",
        "the expert, not the gate, makes splits visible: tanh experts under both gates, no other under either",
        FAMILIES,
        atoms=(1,),
    )
