r"""Gates: how the scores of the experts become their weights. A gate knows nothing of the experts themselves.

Every gate maps the scores of N pre-trained experts and N_p prompt experts to N + N_p weights per query,

    forward(pretrained_scores (*batch, queries, N), prompt_scores (*batch, queries, N_p)) -> (*batch, queries, N + N_p)

with an optional log-weight b_j added to each prompt's score: real attention has b = 0, the statistical model does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_prompt.attention.activations import Activation, activation
from moe_prompt.errors import require

Scores = Float[Tensor, "*batch queries experts"]


class Gate(nn.Module, ABC):
    """Scores to weights."""

    rowwise: ClassVar[bool] = True
    """Whether the weights of a query depend on its own scores alone."""

    @abstractmethod
    def forward(
        self,
        pretrained_scores: Float[Tensor, "*batch queries pretrained"],
        prompt_scores: Float[Tensor, "*batch queries prompts"],
        log_weights: Float[Tensor, "*other prompts"] | None = None,
    ) -> Scores:
        """Weights of all experts, pre-trained ones first."""


class ExponentialGate(Gate):
    r"""Softmax over all experts after a link on the prompts' scores: weight_j proportional to exp(link(s_j) + b_j).

    Numerator and denominator of the mixture are then sums over atoms, which is what the theory of mixing measures
    asks for; :class:`~moe_prompt.models.regression.RegressionModel` takes gates of this kind.
    """

    @abstractmethod
    def link(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """The transformed scores and the link's derivative (None: the link is the identity)."""

    def bend(self, scores: Tensor) -> Tensor | None:
        """The link's second derivative; None where it is zero."""
        return None

    def forward(
        self,
        pretrained_scores: Float[Tensor, "*batch queries pretrained"],
        prompt_scores: Float[Tensor, "*batch queries prompts"],
        log_weights: Float[Tensor, "*other prompts"] | None = None,
    ) -> Scores:
        prompt_scores = _shift(self.link(prompt_scores)[0], log_weights)
        return torch.cat([pretrained_scores, prompt_scores], dim=-1).softmax(dim=-1)


class SoftmaxGate(ExponentialGate):
    """Softmax over pre-trained and prompt experts together: standard attention (arXiv 2501.18936)."""

    def link(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        return scores, None


class NonlinearResidualGate(ExponentialGate):
    r"""NoRGa: link(s) = s + alpha * act(tau * s) on the prompts' scores only (arXiv 2405.14124).

    In a head `alpha` and `tau` are learnable scalars; a regression model holds them fixed.
    """

    def __init__(self, alpha: float = 1.0, tau: float = 1.0, activation_name: str | Activation = "tanh") -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha), dtype=torch.float64))
        self.tau = nn.Parameter(torch.tensor(float(tau), dtype=torch.float64))
        self.activation = activation(activation_name)

    def link(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        alpha, tau = self.alpha.to(scores.dtype), self.tau.to(scores.dtype)
        z = tau * scores
        a = self.activation(z)
        return scores + alpha * a, 1 + alpha * tau * self.activation.derivative(z, a)

    def bend(self, scores: Tensor) -> Tensor | None:
        alpha, tau = self.alpha.to(scores.dtype), self.tau.to(scores.dtype)
        z = tau * scores
        return alpha * tau * tau * self.activation.second(z, self.activation(z))


class SigmoidGate(Gate):
    """Every expert weighed by its own sigmoid(s + bias): experts do not compete (arXiv 2405.13997, 2409.04431).

    `bias` is added to every score; -log(number of experts) keeps the total weight near that of a softmax.
    """

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(
        self,
        pretrained_scores: Float[Tensor, "*batch queries pretrained"],
        prompt_scores: Float[Tensor, "*batch queries prompts"],
        log_weights: Float[Tensor, "*other prompts"] | None = None,
    ) -> Scores:
        scores = torch.cat([pretrained_scores, _shift(prompt_scores, log_weights)], dim=-1)
        return torch.sigmoid(scores + self.bias)


class TopKGate(Gate):
    r"""Softmax over the pre-trained experts and the K prompts with the largest score averaged over queries.

    The average over queries of x_i^T W_Q W_K^T p is xbar^T W_Q W_K^T p, one score per prompt: it chooses the K
    prompts *and* is their score in every row (SMoPE, arXiv 2509.24483). The others weigh zero.
    """

    rowwise = False

    def __init__(self, k: int) -> None:
        super().__init__()
        require(k >= 1, f"a top-K gate keeps at least one prompt: got k = {k}.")
        self.k = k

    def forward(
        self,
        pretrained_scores: Float[Tensor, "*batch queries pretrained"],
        prompt_scores: Float[Tensor, "*batch queries prompts"],
        log_weights: Float[Tensor, "*other prompts"] | None = None,
    ) -> Scores:
        prompts = prompt_scores.shape[-1]
        require(self.k <= prompts, f"a top-K gate needs k <= number of prompts: got k = {self.k}, {prompts} prompts.")
        score = _shift(prompt_scores.mean(dim=-2, keepdim=True), log_weights)
        dropped = torch.ones_like(score, dtype=torch.bool).scatter(-1, score.topk(self.k, dim=-1).indices, False)
        score = score.masked_fill(dropped, -torch.inf).expand_as(prompt_scores)
        return torch.cat([pretrained_scores, score], dim=-1).softmax(dim=-1)


class ZeroInitGate(Gate):
    r"""Zero-initialised attention: prompts have a softmax of their own, times tanh(a), a = 0 at the start (2502.03029).

    Pre-trained experts keep their softmax untouched, so the first step of training starts from the pre-trained head.
    """

    def __init__(self, a: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(float(a), dtype=torch.float64))

    def forward(
        self,
        pretrained_scores: Float[Tensor, "*batch queries pretrained"],
        prompt_scores: Float[Tensor, "*batch queries prompts"],
        log_weights: Float[Tensor, "*other prompts"] | None = None,
    ) -> Scores:
        prompt_weights = _shift(prompt_scores, log_weights).softmax(dim=-1)
        scale = torch.tanh(self.a).to(prompt_scores.dtype)
        return torch.cat([pretrained_scores.softmax(dim=-1), scale * prompt_weights], dim=-1)


def _shift(prompt_scores: Tensor, log_weights: Tensor | None) -> Tensor:
    return prompt_scores if log_weights is None else prompt_scores + log_weights
