r"""Where prompt experts enter a vision transformer.

A deep prompt is an expert and never a query. The next block replaces the prompts, so whatever this block would compute
in a prompt's own row is discarded; a prompt only needs a key and a value. With X the block's input tokens, P(X) its
prompts and LN its first layer norm,

    h_i = sum_j gate_ij W_V^T [LN(X); LN(P(X))]_j,      i over the tokens, j over tokens and prompts

The logits equal those of the published form, in which prompts are tokens of each block (arXiv 2203.12119, 2501.18936),
but queries, attention rows and MLP of the prompts are not computed. Prefixes (arXiv 2101.00190) enter without LN.

| here             | what enters                                                       | method                      |
|------------------|-------------------------------------------------------------------|-----------------------------|
| `DeepPrompts`    | keys and values of one prompt expert per block                    | VPT-deep, VAPT, prefix, ... |
| `CarriedPrompts` | learned tokens at the input that are queries too, in every block  | VPT-shallow                 |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

from jaxtyping import Float
from torch import Tensor, nn

from moe_prompt.attention.gates import Gate
from moe_prompt.attention.prompts import PromptExpert, PromptTokens
from moe_prompt.errors import require

PictureTokens = Float[Tensor, "_ _ _"]


class BlockPrompts(NamedTuple):
    """The prompts of one block.

    `gate` None is softmax, by fused attention. `normalise`: whether the block's layer norm acts on them as on tokens.
    """

    tokens: PromptTokens
    gate: Gate | None = None
    normalise: bool = True


class Prompting(nn.Module, ABC):
    """The prompts of a ViT: tokens that are carried through all blocks, and the prompts of each block."""

    def carried(self, batch: int) -> PictureTokens | None:
        """Tokens appended to the input, queries in every block, or none."""
        return None

    @abstractmethod
    def prompts(self, block: int, patches: PictureTokens) -> BlockPrompts | None:
        """Prompts of a block, given the patch tokens (batch, H W, dim) at its input; None: the block has none."""


class DeepPrompts(Prompting):
    """One prompt expert per block, the first for block 0.

    Args:
        experts: as many as blocks; None where a block has no prompt. Experts may share modules.
        gates: one per block, written out and not fused; none: softmax, fused.
        normalise: see :class:`BlockPrompts`.
    """

    def __init__(
        self, experts: Sequence[PromptExpert | None], gates: Sequence[Gate] = (), normalise: bool = True
    ) -> None:
        super().__init__()
        require(any(experts), "deep prompts need an expert in at least one block: got none.")
        require(
            len(gates) in (0, len(experts)), f"{len(experts)} blocks need a gate each, or none: got {len(gates)} gates."
        )
        self.experts = nn.ModuleDict({str(i): expert for i, expert in enumerate(experts) if expert is not None})
        self.gates, self.normalise = nn.ModuleList(gates), normalise

    def prompts(self, block: int, patches: PictureTokens) -> BlockPrompts | None:
        if str(block) not in self.experts:
            return None
        expert = self.experts[str(block)]
        tokens: PromptTokens = expert(patches)
        dim = patches.shape[-1]
        require(
            tokens.key.shape[-1] == tokens.value.shape[-1] == dim,
            f"a ViT of width {dim} needs prompt keys and values of that width: {type(expert).__name__} in block "
            f"{block} gave {tokens.key.shape[-1]} and {tokens.value.shape[-1]}.",
        )
        gate = cast(Gate, self.gates[block]) if len(self.gates) else None
        return BlockPrompts(tokens, gate, self.normalise)


class CarriedPrompts(Prompting):
    """VPT-shallow: N_p learned tokens join the input and pass through every block (arXiv 2203.12119)."""

    def __init__(self, expert: PromptExpert, dim: int) -> None:
        super().__init__()
        self.expert, self.dim = expert, dim

    def carried(self, batch: int) -> PictureTokens | None:
        prompts: PromptTokens = self.expert(next(self.expert.parameters()).new_zeros(batch, 1, self.dim))
        return prompts.value

    def prompts(self, block: int, patches: PictureTokens) -> BlockPrompts | None:
        return None


class DropoutPrompt(PromptExpert):
    """A prompt expert whose prompts pass through dropout: one mask for key and value where they are one tensor."""

    def __init__(self, expert: PromptExpert, rate: float) -> None:
        super().__init__()
        self.expert, self.dropout = expert, nn.Dropout(rate)

    def is_shared(self, name: str) -> bool:
        return self.expert.is_shared(name.removeprefix("expert."))

    def forward(self, tokens: Float[Tensor, "*batch tokens dim"]) -> PromptTokens:
        key, value = self.expert(tokens)
        if not self.training or self.dropout.p == 0:
            return PromptTokens(key, value)
        return PromptTokens.both(self.dropout(key)) if key is value else PromptTokens(*map(self.dropout, (key, value)))


def once(prompts: Float[Tensor, "batch prompts dim"]) -> Float[Tensor, "once prompts dim"]:
    """One copy (1, N_p, dim) of prompts that are equal for all pictures (an expanded view); others as they are."""
    return prompts[:1] if prompts.stride(0) == 0 and len(prompts) > 1 else prompts


def mixed(
    gate: Gate,
    queries: Float[Tensor, "batch heads rows key_dim"],
    keys: Float[Tensor, "batch heads experts key_dim"],
    values: Float[Tensor, "batch heads experts value_dim"],
    num_prompts: int,
) -> Float[Tensor, "batch heads rows value_dim"]:
    """sum_j gate_ij value_j, written out; the last `num_prompts` experts are the prompts."""
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    tokens = scores.shape[-1] - num_prompts
    return gate(scores[..., :tokens], scores[..., tokens:]).to(values.dtype) @ values
