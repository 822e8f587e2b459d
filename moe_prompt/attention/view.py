r"""An attention block on a picture, seen as mixtures of experts: the numbers of `moe-prompt view`.

For each head and each query (a patch of the picture, or the class token) the report holds the gate over N pre-trained
and N_p prompt experts, and of it

    mass on prompts        m_i = sum_j' gate_i(N + j')                       (uniform gate: N_p / (N + N_p))
    effective experts      exp(-sum_j gate_ij log gate_ij)                   (between 1 and N + N_p)
    input-adaptivity       E |P_j' - E P_j'|^2 / E |P_j'|^2                  (0: blind to its input; at most 1)

the last over shifted views of the picture, for any prompt expert: 0 for VPT (arXiv 2203.12119), more for VAPT (arXiv
2501.18936). :func:`moe_prompt.vision.diagnosis.view.view_picture` makes the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor


@dataclass(frozen=True)
class ViewReport:
    """What the heads of one block do with one picture.

    `special` tokens (class token, registers) come first, then the patches row by row. `prompt` is the name of the
    prompts as the user wrote it, and `trained` says whether they were trained or just drawn.
    """

    image: str
    picture: UInt8[ndarray, "height width 3"]
    grid: tuple[int, int]
    prompt: str
    trained: bool
    block: str
    special: int
    gates: Float[Tensor, "heads tokens experts"]
    experts: Float[Tensor, "heads experts value_dim"]
    adaptivity: Float[Tensor, " prompts"]
    notes: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """N: queries, and pre-trained experts."""
        return self.gates.shape[1]

    @property
    def num_prompts(self) -> int:
        """N_p."""
        return self.gates.shape[2] - self.num_tokens

    @property
    def uniform_mass(self) -> float:
        """The prompts' share of a gate that ignores its scores."""
        return self.num_prompts / (self.num_tokens + self.num_prompts)

    @property
    def prompt_mass(self) -> Float[Tensor, "heads tokens"]:
        """The prompts' share of every gate."""
        return self.gates[..., self.num_tokens :].sum(dim=-1)

    @property
    def effective_experts(self) -> Float[Tensor, "heads tokens"]:
        """exp(entropy) of every gate: how many experts it listens to."""
        return torch.special.entr(self.gates).sum(dim=-1).exp()

    def sentence(self) -> str:
        """The report in words."""
        mass, experts = float(self.prompt_mass.mean()), float(self.effective_experts.mean())
        return (
            f"{self.image}: {len(self.gates)} heads of {self.block}, {self.num_tokens} queries each. Every query is a "
            f"mixture of {self.num_tokens} pre-trained and {self.num_prompts} prompt experts ({self.prompt}, "
            f"{'trained' if self.trained else 'untrained'}). On average the prompts hold {mass:.3f} of the gate, where "
            f"a uniform gate would give them {self.uniform_mass:.3f}; a query listens to {experts:.1f} experts; and "
            f"{float(self.adaptivity.mean()):.3g} of a prompt's second moment varies when the picture is shifted."
        )

    def to_dict(self) -> dict[str, Any]:
        """The report's numbers as plain lists, for JSON; per head, means over queries."""
        return {
            "image": self.image,
            "block": self.block,
            "prompt": self.prompt,
            "trained": self.trained,
            "grid": list(self.grid),
            "tokens": self.num_tokens,
            "prompts": self.num_prompts,
            "heads": len(self.gates),
            "uniform_mass": self.uniform_mass,
            "prompt_mass": self.prompt_mass.mean(dim=-1).tolist(),
            "effective_experts": self.effective_experts.mean(dim=-1).tolist(),
            "adaptivity": self.adaptivity.tolist(),
            "notes": list(self.notes),
        }
