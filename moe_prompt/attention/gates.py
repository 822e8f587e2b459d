r"""Gates: rules that turn the experts' scores into their weights, knowing nothing else of the experts.

Every gate maps the scores of N pre-trained experts and N_p prompt experts to N + N_p weights per query,

    forward(pretrained_scores (*batch, queries, N), prompt_scores (*batch, queries, N_p)) -> (*batch, queries, N + N_p)

A log-weight b_j may be added to the score of prompt j. Attention has no log-weights (b = 0); the statistical model
learns them.
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
    """The base of gates: scores (*batch, queries, N) and (*batch, queries, N_p) to weights of the N + N_p experts."""

    rowwise: ClassVar[bool] = True
    """True if the weights of a query depend on the scores of this query alone."""

    @abstractmethod
    def forward(
        self,
        pretrained_scores: Float[Tensor, "*batch queries pretrained"],
        prompt_scores: Float[Tensor, "*batch queries prompts"],
        log_weights: Float[Tensor, "*other prompts"] | None = None,
    ) -> Scores:
        """Weights of all experts, (*batch, queries, N + N_p): the pre-trained experts first, then the prompts."""


class ExponentialGate(Gate):
    r"""Softmax over all experts after a link on the prompts' scores: weight_j proportional to exp(link(s_j) + b_j).

    The numerator and the denominator of the mixture are then sums over prompts, as the theory of mixing measures
    requires. Least squares with second derivatives (`estimation.over_specified`) needs a gate of this kind.
    """

    @abstractmethod
    def link(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """link(s) and link'(s), both of the shape of `scores`; the derivative is None if the link is the identity."""

    def bend(self, scores: Tensor) -> Tensor | None:
        """The second derivative link''(s), of the shape of `scores`; None if it is zero everywhere."""
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
    """Standard attention: link(s) = s, one softmax over all experts (arXiv 2501.18936, section 3)."""

    def link(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        return scores, None


class NonlinearResidualGate(ExponentialGate):
    r"""NoRGa, the non-linear residual gate: link(s) = s + alpha * act(tau * s) (arXiv 2405.14124).

    The link acts on the scores of prompts only. A head learns the scalars `alpha` and `tau`; a regression model keeps
    them fixed.
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
    """Every expert has the weight sigmoid(s + bias) of its own score (arXiv 2405.13997, 2409.04431).

    Experts do not compete, so the weights of a query need not sum to one. With bias = -log(number of experts) their
    sum is near one when scores are near zero.
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
    r"""SMoPE: softmax over the pre-trained experts and K chosen prompts (arXiv 2509.24483).

    Each prompt has one score, the average of its scores over all queries: the average of x_i^T W_Q W_K^T p over i is
    xbar^T W_Q W_K^T p. The K prompts of largest average score are chosen, and every query uses their average score
    in its softmax. The other prompts have weight zero.

    Raises:
        InputError: k below 1, or above the number of prompts.
    """

    rowwise = False

    def __init__(self, k: int) -> None:
        super().__init__()
        require(k >= 1, f"a top-K gate keeps at least one prompt: got k = {k}; choose k >= 1.")
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
    r"""Zero-initialised attention: two separate softmaxes, that of the prompts times tanh(a) (arXiv 2502.03029).

    weights = [softmax(pre-trained scores), tanh(a) softmax(prompt scores)]

    The scalar a is learned and starts at 0. The prompts then weigh nothing, so training starts from the pre-trained
    head.
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
