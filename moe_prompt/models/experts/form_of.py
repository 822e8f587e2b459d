"""Which form a prompt expert has: every closed form is registered here."""

from __future__ import annotations

import moe_prompt.models.experts.constant
import moe_prompt.models.experts.flat_adaptive
import moe_prompt.models.experts.linear_gate
import moe_prompt.models.experts.reparameterized  # noqa: F401 - each registers its experts
from moe_prompt.attention.prompts import PromptExpert
from moe_prompt.models.experts.autograd import AutogradForm
from moe_prompt.models.experts.base import CLOSED_FORMS, ExpertForm


def form_of(expert: PromptExpert) -> type[ExpertForm]:
    """The form of an expert: closed where it has one, else by automatic differentiation."""
    return CLOSED_FORMS.get(type(expert), AutogradForm)
