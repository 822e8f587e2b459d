r"""Prompt experts: the learnable tokens that an attention head sees beside its input.

A prompt expert maps the tokens X of a head to N_p prompt tokens, a key and a value for each,

    forward(tokens (*batch, tokens, dim)) -> PromptTokens(key, value), each (*batch, prompts, dim)

and the head turns prompt j into the expert W_V^T value_j with score x_i^T W_Q W_K^T key_j / sqrt(d_k)
(arXiv 2405.14124, 2501.18936). The same class serves a head, a regression model and a ViT block.

| on paper                    | in code                 | key_j, value_j                                       |
|-----------------------------|-------------------------|------------------------------------------------------|
| VPT                         | `ConstantPrompt`        | p_j, p_j                                             |
| prefix                      | `PrefixPrompt`          | p^K_j, p^V_j                                         |
| reparameterised prefix      | `ReparameterizedPrefix` | act1(W_1 p_j), act2(W_2 p_j)                         |
| VAPT                        | `AdaptivePrompt`        | g(sum_k alpha_jk (F * X)_k), twice                   |
| VAPT, per-prompt W_1        | `FlatAdaptivePrompt`    | W_2 act(W_{1,j} vec X), twice                        |
| linear gate + expert h      | `LinearGateExpert`      | beta_j, act(eta_j x)                                 |

A subclass that keeps two conventions works everywhere. First, the first axis of every parameter is the prompt index,
unless the parameter's name is in the class attribute `shared`. Second, `forward` takes the number of prompts from its
parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from moe_prompt.attention.activations import Activation, activation
from moe_prompt.errors import require

Tokens = Float[Tensor, "*batch tokens dim"]


class PromptTokens(NamedTuple):
    """Keys and values of the prompts, each (*batch, prompts, dim)."""

    key: Float[Tensor, "*batch prompts key_dim"]
    value: Float[Tensor, "*batch prompts value_dim"]

    @classmethod
    def both(cls, prompts: Float[Tensor, "*batch prompts dim"]) -> PromptTokens:
        """Prompts that are their own key and value."""
        return cls(prompts, prompts)


class PromptExpert(nn.Module, ABC):
    """N_p prompts as functions of the tokens (*batch, tokens, dim); a subclass needs to write `forward` only."""

    shared: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters, or of the submodules with parameters, that all prompts share."""
    hidden_units: ClassVar[tuple[str, str] | None] = None
    """Names of the incoming and outgoing weights of a hidden layer whose units can be permuted, if there is one.

    A class that sets it also sets `activation`."""
    activation: Activation

    @abstractmethod
    def forward(self, tokens: Tokens) -> PromptTokens:
        """Keys and values, each (*batch, prompts, dim), for tokens (*batch, tokens, dim)."""

    def is_shared(self, name: str) -> bool:
        """True if all prompts share the parameter `name`."""
        return name in self.shared or name.split(".")[0] in self.shared

    @property
    def num_prompts(self) -> int:
        """Number of prompts: the first axis of the parameters that are not shared.

        Raises:
            InputError: these parameters have different first axes, or there are none.
        """
        lengths = {p.shape[0] if p.ndim else 0 for name, p in self.named_parameters() if not self.is_shared(name)}
        require(
            len(lengths) == 1 and 0 not in lengths,
            f"{type(self).__name__}: every parameter needs the number of prompts as its first axis, or its name in "
            f"`shared`: got first axes {sorted(lengths)}.",
        )
        return lengths.pop()


class ConstantPrompt(PromptExpert):
    """VPT: key_j = value_j = p_j, a learned vector that does not depend on the input (arXiv 2203.12119).

    Parameters `p` (prompts, dim) start uniform on (-bound, bound). The released method has
    bound = sqrt(6 / (3 P^2 + dim)), where P is the side of a patch in pixels.

    >>> ConstantPrompt(5, 8)(torch.zeros(2, 3, 8)).key.shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, num_prompts: int, dim: int, bound: float = 0.1, generator: Generator | None = None) -> None:
        super().__init__()
        self.p = nn.Parameter(_uniform(bound, num_prompts, dim, generator=generator))

    def forward(self, tokens: Tokens) -> PromptTokens:
        return PromptTokens.both(self.p.expand(*tokens.shape[:-2], *self.p.shape))


class PrefixPrompt(PromptExpert):
    """Prefix tuning: key_j = p^K_j and value_j = p^V_j are learned separately (arXiv 2101.00190).

    Parameters: `key` (prompts, dim) and `value` (prompts, value_dim). This is the non-shared structure of arXiv
    2410.02200.
    """

    def __init__(
        self,
        num_prompts: int,
        dim: int,
        bound: float = 0.1,
        value_dim: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.key = nn.Parameter(_uniform(bound, num_prompts, dim, generator=generator))
        self.value = nn.Parameter(_uniform(bound, num_prompts, value_dim or dim, generator=generator))

    def forward(self, tokens: Tokens) -> PromptTokens:
        batch = tokens.shape[:-2]
        return PromptTokens(self.key.expand(*batch, *self.key.shape), self.value.expand(*batch, *self.value.shape))


class ReparameterizedPrefix(PromptExpert):
    r"""Reparameterised prefix: key_j = act1(W_1 p_j), value_j = act2(W_2 p_j) (arXiv 2410.02200).

    The maps W_1 and W_2, (dim, dim) each, are known constants. With `free_maps` they are learned with the prompts.
    """

    shared = ("w1", "w2")
    w1: Tensor
    w2: Tensor

    def __init__(
        self,
        num_prompts: int,
        dim: int,
        activation_name: str | Activation = "tanh",
        free_maps: bool = False,
        bound: float = 0.1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation(activation_name)
        self.p = nn.Parameter(_uniform(bound, num_prompts, dim, generator=generator))
        for name in self.shared:
            weight = _normal(1 / math.sqrt(dim), dim, dim, generator=generator)
            if free_maps:
                self.register_parameter(name, nn.Parameter(weight))
            else:
                self.register_buffer(name, weight)

    def forward(self, tokens: Tokens) -> PromptTokens:
        key, value = self.activation(self.p @ self.w1.mT), self.activation(self.p @ self.w2.mT)
        batch = tokens.shape[:-2]
        return PromptTokens(key.expand(*batch, *key.shape), value.expand(*batch, *value.shape))


class FlatAdaptivePrompt(PromptExpert):
    r"""VAPT as its theory treats it: P_j(X) = W_2 act(W_{1,j} vec X) (arXiv 2501.18936, section 4).

    Each prompt learns its own W_{1,j} (rank, tokens * dim); all prompts share W_2 (dim, rank). :class:`AdaptivePrompt`
    is the special case in which W_{1,j} is the Kronecker product of a row of token weights and one W_1 for all prompts.
    """

    shared = ("w2",)
    hidden_units = ("w1", "w2")

    def __init__(
        self,
        num_prompts: int,
        dim: int,
        rank: int,
        activation_name: str | Activation = "tanh",
        num_tokens: int = 1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation(activation_name)
        width = num_tokens * dim
        self.w1 = nn.Parameter(_normal(1 / math.sqrt(width), num_prompts, rank, width, generator=generator))
        self.w2 = nn.Parameter(_normal(1 / math.sqrt(rank), dim, rank, generator=generator))

    def forward(self, tokens: Tokens) -> PromptTokens:
        hidden = self.activation(torch.einsum("jrx,...x->...jr", self.w1, tokens.flatten(-2)))
        return PromptTokens.both(hidden @ self.w2.mT)


class LinearGateExpert(PromptExpert):
    r"""A linear gate with an expert h: score beta_j^T x, value h(x; eta_j) = act(eta_j x) (arXiv 2402.02952).

    The activation "linear" gives linear experts, "tanh" ridge experts, "square" quadratic experts. Parameters: `beta`
    (prompts, dim) and `eta` (prompts, value_dim, dim). A regression model uses this expert with B and C the identity.
    """

    def __init__(
        self,
        num_prompts: int,
        dim: int,
        value_dim: int,
        activation_name: str | Activation = "tanh",
        bound: float = 0.1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation(activation_name)
        self.beta = nn.Parameter(_uniform(bound, num_prompts, dim, generator=generator))
        self.eta = nn.Parameter(_uniform(bound, num_prompts, value_dim, dim, generator=generator))

    def forward(self, tokens: Tokens) -> PromptTokens:
        value = self.activation(torch.einsum("jox,...x->...jo", self.eta, tokens.flatten(-2)))
        return PromptTokens(self.beta.expand(*tokens.shape[:-2], *self.beta.shape), value)


class FeatureProjector(nn.Module):
    r"""VAPT's feature projector g(z) = [z +] scale * W_2 dropout(act(W_1 z)), without biases (arXiv 2501.18936).

    W_1 is (rank, dim) and W_2 (dim, rank). One projector may serve every prompt and every layer. `residual` adds the z
    in brackets: the released code has it, the paper's formula does not.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        activation_name: str | Activation = "relu",
        residual: bool = False,
        scale: float = 1.0,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.residual, self.scale = activation(activation_name), residual, scale
        self.dropout = nn.Dropout(dropout)
        self.w1 = nn.Parameter(_normal(1 / math.sqrt(dim), rank, dim, generator=generator))
        self.w2 = nn.Parameter(_normal(1 / math.sqrt(rank), dim, rank, generator=generator))

    def forward(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        projected = self.scale * self.dropout(self.activation(z @ self.w1.mT)) @ self.w2.mT
        return z + projected if self.residual else projected


class AdaptivePrompt(PromptExpert):
    r"""VAPT: P_j(X) = g(G_j(X)), G_j(X) = sum_k alpha_jk (F * X)_k (arXiv 2501.18936, section 4).

    1. The tokens are read as an H x W map, `grid`. One K x K kernel F, the same for all channels, slides over the map
       without padding.
    2. The token-wise projector alpha (prompts, (H-K+1)(W-K+1)) averages the result, once per prompt.
    3. The feature projector g maps each average to a prompt, which is key and value at once.

    Steps 1 and 2 are linear in the tokens, so they are applied as one (prompts, H * W) matrix, :meth:`token_weights`.

    | option            | effect                                                               |
    |-------------------|----------------------------------------------------------------------|
    | `layer_norm`      | normalises the tokens before everything else                         |
    | `token_bias`      | adds a learned number per prompt to its average                      |
    | `channel_dropout` | drops whole channels of the averages with this probability           |
    | `zero_init`       | starts alpha at 0: every prompt is g(0) at first, 0 where act(0) = 0 |

    The released method has all four and a feature projector with residual; the paper's formula has the layer norm only.

    Raises:
        InputError: a kernel that does not fit on the grid, or another number of tokens than the grid has.
    """

    shared = ("norm", "kernel", "feature_projector")

    def __init__(
        self,
        num_prompts: int,
        grid: tuple[int, int],
        feature_projector: FeatureProjector,
        kernel_size: int = 2,
        layer_norm: bool = True,
        token_bias: bool = False,
        channel_dropout: float = 0.0,
        zero_init: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        require(
            1 <= kernel_size <= min(grid),
            f"the convolution needs 1 <= kernel size <= grid: got kernel size {kernel_size} on a grid of {grid}.",
        )
        self.grid, self.feature_projector = grid, feature_projector
        dim, positions = feature_projector.w1.shape[1], math.prod(size - kernel_size + 1 for size in grid)
        self.norm = nn.LayerNorm(dim) if layer_norm else nn.Identity()
        self.kernel = nn.Parameter(_normal(1.0, kernel_size, kernel_size, generator=generator))
        alpha_scale = 0.0 if zero_init else 1 / math.sqrt(positions)
        self.alpha = nn.Parameter(_normal(alpha_scale, num_prompts, positions, generator=generator))
        self.bias = nn.Parameter(torch.zeros(num_prompts)) if token_bias else None
        self.channel_dropout = nn.Dropout(channel_dropout)

    def token_weights(self) -> Float[Tensor, "prompts tokens"]:
        """Weight of every token in every prompt's average: token-wise projector and convolution as one matrix."""
        height, width = (size - k + 1 for size, k in zip(self.grid, self.kernel.shape, strict=True))
        alpha = self.alpha.unflatten(-1, (1, height, width))
        return nn.functional.conv_transpose2d(alpha, self.kernel[None, None]).flatten(1)

    def forward(self, tokens: Tokens) -> PromptTokens:
        require(
            tokens.shape[-2] == math.prod(self.grid),
            f"AdaptivePrompt on a grid of {self.grid} needs {math.prod(self.grid)} tokens: got {tokens.shape[-2]}.",
        )
        tokens = self.norm(tokens)
        channels = self.channel_dropout(torch.ones_like(tokens[..., :1, :]))
        averaged = channels * (self.token_weights() @ tokens)
        if self.bias is not None:
            averaged = averaged + self.bias[:, None]
        return PromptTokens.both(self.feature_projector(averaged))

    def flattened(self) -> FlatAdaptivePrompt:
        """The same prompts as a :class:`FlatAdaptivePrompt`: W_{1,j} = (row j of token_weights) (x) W_1.

        Raises:
            InputError: a layer norm, a token bias or a residual, none of which the flat form has.
        """
        g = self.feature_projector
        plain = isinstance(self.norm, nn.Identity) and self.bias is None and not g.residual
        require(plain, "only an AdaptivePrompt without layer norm, token bias and residual has a flat form.")
        weights = self.token_weights()
        flat = FlatAdaptivePrompt(len(weights), g.w1.shape[1], g.w1.shape[0], g.activation, weights.shape[1])
        with torch.no_grad():
            flat = flat.to(weights.dtype)
            flat.w1.copy_(torch.einsum("jt,rx->jrtx", weights, g.w1).flatten(-2))
            flat.w2.copy_(g.scale * g.w2)
        return flat


def _uniform(bound: float, *shape: int, generator: Generator | None) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _normal(scale: float, *shape: int, generator: Generator | None) -> Tensor:
    return scale * torch.randn(shape, generator=generator)
