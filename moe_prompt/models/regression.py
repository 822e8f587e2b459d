r"""The regression model: a gated mixture of frozen and prompt experts (arXiv 2402.02952, 2410.02200).

    Y_i = f_{G*}(X_i) + e_i,    e_i ~ N(0, s^2 I)
    f_G(x) = [ sum_j exp(x^T A_j x + a_j) eta_j x + sum_j' exp(score(x; theta_j') + b_j') value(x; theta_j') ] / D_G(x)
    score(x; theta) = (B key)^T x,   value(x; theta) = C value,   G = sum_j' exp(b_j') delta_{theta_j'}

under softmax; what other gates make of the same scores and values is in :mod:`moe_prompt.models.gating`. B plays
W_Q W_K^T / sqrt(d_k) and C plays W_V^T: :meth:`RegressionModel.from_head` builds the same object from row i of an
attention head, with x the tokens flattened. At least one frozen expert pins the softmax, so every b_j is identified.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from moe_prompt.attention.gates import Gate, SoftmaxGate
from moe_prompt.attention.heads import EVERY_TOKEN, AttentionHeadMoE
from moe_prompt.attention.prompts import PromptExpert
from moe_prompt.errors import InputError, require
from moe_prompt.measures.mixing_measure import MixingMeasure
from moe_prompt.measures.symmetries import HiddenUnits, NoSymmetry, Symmetry
from moe_prompt.models.experts.base import Covariate, ExpertForm, Parameters
from moe_prompt.models.experts.form_of import form_of
from moe_prompt.models.gating import Mixing, mixing
from moe_prompt.models.parameter_blocks import ParameterBlocks

IN_CACHE = 4096  # samples


@dataclass(frozen=True)
class FrozenExperts:
    """N pre-trained experts with quadratic gates and linear values: A (N, D, D), a (N,), eta (N, o, D)."""

    quadratic: Float64[Tensor, "experts dim dim"]
    constant: Float64[Tensor, "experts"]
    values: Float64[Tensor, "experts outputs dim"]

    @classmethod
    def random(cls, num_experts: int, dim: int, outputs: int, rng: np.random.Generator) -> FrozenExperts:
        """Scores and values of order one on covariates of order one."""
        require(num_experts >= 1, f"the softmax needs at least one frozen expert: got {num_experts}.")
        draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape))  # noqa: E731
        return cls(
            draw(num_experts, dim, dim) / dim,
            0.5 * draw(num_experts),
            draw(num_experts, outputs, dim) / math.sqrt(dim),
        )

    def scores(self, x: Tensor) -> Tensor:
        """x^T A_j x + a_j (B, N, n) at x (B, D, n)."""
        return torch.stack([(x * (a @ x)).sum(1) for a in self.quadratic], 1) + self.constant[:, None]

    def mean(self, weights: Tensor, x: Tensor) -> Tensor:
        """sum_j weights_j eta_j x (B, o, n) for weights (B, N, n)."""
        return sum((weights[:, j, None] * (eta @ x) for j, eta in enumerate(self.values)), start=weights.new_zeros(()))


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything of a sample that does not depend on the prompts, feature-major: computed once, used at every step."""

    at: Covariate
    log_frozen: Tensor  # (B, 1, n): log of the summed gates; (B, 0, n) where experts do not compete
    frozen_mean: Tensor  # (B, o, n): the frozen experts' own mixture

    def part(self, replicates: Tensor | slice, samples: slice) -> Prepared:
        """Some replicates and samples of it."""
        arrays = (self.at.x, self.at.q, self.log_frozen, self.frozen_mean)
        x, q, log_frozen, frozen_mean = (array[replicates][..., samples] for array in arrays)
        return Prepared(Covariate(x, q), log_frozen, frozen_mean)


@dataclass(frozen=True, eq=False)
class RegressionModel(ParameterBlocks):
    r"""The family {f_G}: frozen experts, a prompt expert's formula, B (D, k), C (o, v), a gate, and whether b is free.

    A parameter vector theta (p,) holds b (if `gating_bias`), then the expert's parameters in the order of
    `named_parameters`. The values inside `expert` are not used, only its shapes.
    """

    frozen: FrozenExperts
    expert: PromptExpert
    key_map: Float64[Tensor, "dim key"]
    value_map: Float64[Tensor, "outputs value"]
    gate: Gate = field(default_factory=SoftmaxGate)
    gating_bias: bool = True
    num_tokens: int = 1
    num_atoms: int = 0  # 0: as many as the expert has prompts

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate", deepcopy(self.gate).requires_grad_(False))
        if not self.num_atoms:
            object.__setattr__(self, "num_atoms", self.expert.num_prompts)
        self.mixing.check(self.num_atoms)

    @cached_property
    def mixing(self) -> Mixing:
        """What the gate makes of scores and values."""
        return mixing(self.gate)

    @classmethod
    def from_head(
        cls, head: AttentionHeadMoE, row: int, num_tokens: int, expert: PromptExpert | None = None, **options: Any
    ) -> RegressionModel:
        """Row `row` of a head on `num_tokens` tokens as a regression model in x = vec(tokens).

        The prompt expert and the gate are the head's own unless `expert` or `gate` name others. At
        `model.theta_of(head.prompt)` the model is the head's row. Under a gate that averages a prompt's score over the
        queries, B is the average of all rows' maps.

        Raises:
            InputError: no prompt expert, one that does not see every token, biases, or a gate without a mixing.
        """
        require(
            head.prompt_tokens == EVERY_TOKEN,
            f"a row as a regression model needs prompts that see every token: got prompt_tokens={head.prompt_tokens}.",
        )
        expert = expert or head.prompt
        if expert is None:
            raise InputError("a row as a regression model needs a prompt expert: give the head one, or name `expert`.")
        own, gate = head.row_mixture(row, num_tokens), options.pop("gate", head.gate)
        key_map = own.key_map
        if mixing(gate).averages_queries:
            key_map = torch.stack([head.row_mixture(i, num_tokens).key_map for i in range(num_tokens)]).mean(0)
        frozen = FrozenExperts(own.quadratic, own.constant, own.values)
        return cls(frozen, expert, key_map, own.value_map, gate, num_tokens=num_tokens, **options)

    def with_atoms(self, num_atoms: int) -> RegressionModel:
        """The same family with another number of atoms: over-specified when larger than the truth's."""
        require(num_atoms >= 1, f"a mixing measure needs at least one atom: got {num_atoms}.")
        return replace(self, num_atoms=num_atoms)

    # ----------------------------------------------------------------------------------------- parameters

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each parameter block, with this model's number of atoms."""
        blocks: dict[str, tuple[int, ...]] = {"b": (self.num_atoms,)} if self.gating_bias else {}
        for name, p in self.expert.named_parameters():
            shared = self.expert.is_shared(name)
            blocks[name] = tuple(p.shape) if shared else (self.num_atoms, *p.shape[1:])
        return blocks

    @property
    def outputs(self) -> int:
        return self.value_map.shape[0]

    def unflatten(self, theta: Tensor) -> tuple[Tensor, Parameters]:
        """theta (*batch, p) -> b (*batch, L) and name -> (*batch, *shape)."""
        blocks = self.named_blocks(theta)
        b = blocks.pop("b", None)
        return theta.new_zeros(*theta.shape[:-1], self.num_atoms) if b is None else b, blocks

    def flatten(self, measure: MixingMeasure) -> Tensor:
        """The parameter vector of a mixing measure (inverse of :meth:`measure`)."""
        blocks = {"b": measure.log_weights, **measure.atoms, **measure.shared}
        batch = measure.log_weights.shape[:-1]
        return torch.cat([blocks[name].reshape(*batch, -1) for name in self.shapes], -1)

    def theta_of(self, expert: PromptExpert) -> Float64[Tensor, "p"]:
        """The parameter vector of an expert's own values, with log-weights b = 0."""
        values = {name: p.detach().double() for name, p in expert.named_parameters()}
        b = torch.zeros(self.num_atoms, dtype=torch.float64)
        return torch.cat([(b if name == "b" else values[name]).flatten() for name in self.shapes])

    def measure(self, theta: Tensor) -> MixingMeasure:
        """theta (*batch, p) as sum_j exp(b_j) delta_{theta_j}."""
        b, blocks = self.unflatten(theta)
        shared = {name: block for name, block in blocks.items() if self.expert.is_shared(name)}
        return MixingMeasure(b, {name: v for name, v in blocks.items() if name not in shared}, shared)

    @property
    def symmetry(self) -> Symmetry:
        """What leaves every f_G as it is: permuted, flipped or rescaled hidden units, where the expert has them."""
        if self.expert.hidden_units is None:
            return NoSymmetry()
        return HiddenUnits(*self.expert.hidden_units, self.expert.activation)

    # ----------------------------------------------------------------------------------------- evaluation

    def prepare(self, x: Float64[Tensor, "replicates n dim"]) -> Prepared:
        """Reduce covariates to what evaluation needs."""
        require(x.shape[-1] == len(self.key_map), f"x needs {len(self.key_map)} columns: got {x.shape[-1]}.")
        x = x.mT.contiguous()
        parts = [self._frozen(part) for part in x.split(IN_CACHE, dim=2)]
        log_frozen, frozen_mean = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        return Prepared(Covariate(x, self.key_map.mT @ x), log_frozen, frozen_mean)

    def _frozen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_frozen, weights = self.mixing.frozen(self.frozen.scores(x))
        return log_frozen, self.frozen.mean(weights, x)

    def at(self, theta: Float64[Tensor, "batch p"]) -> Mixture:
        """The mixtures f_G of a batch of parameter vectors."""
        b, parameters = self.unflatten(theta)
        return Mixture(
            self.gate, b[..., None], form_of(self.expert)(self.expert, self.value_map, self.num_tokens, parameters)
        )

    def blocks(self, jacobian: Tensor) -> Parameters:
        """Name -> view (B, *shape, o, n) of a Jacobian's rows (B, p, o, n)."""
        return {name: jacobian[:, self.slices[name]].unflatten(1, shape) for name, shape in self.shapes.items()}

    def mean(
        self, theta: Float64[Tensor, "*batch p"], x: Float64[Tensor, "n dim"] | Prepared
    ) -> Float64[Tensor, "*batch n outputs"]:
        """f_G(x) for one or many parameter vectors at the same covariates, or at covariates that are prepared."""
        prepared = self._once_prepared(x)
        means = [self.at(one[None])(prepared)[0].mT for one in theta.reshape(-1, theta.shape[-1])]
        return torch.stack(means).reshape(*theta.shape[:-1], -1, self.outputs)

    def jacobian(
        self, theta: Float64[Tensor, "p"], x: Float64[Tensor, "n dim"] | Prepared
    ) -> Float64[Tensor, "n outputs p"]:
        """d f_G(x) / d theta at covariates, or at covariates that are prepared."""
        prepared = self._once_prepared(x)
        out = theta.new_empty(1, self.num_parameters, self.outputs, prepared.at.x.shape[2])
        self.at(theta[None])(prepared, self.blocks(out))
        return out[0].permute(2, 1, 0)

    def _once_prepared(self, x: Tensor | Prepared) -> Prepared:
        return x if isinstance(x, Prepared) else self.prepare(x[None])


class Mixture:
    """f_G at fixed parameters, as a function of reduced covariates."""

    def __init__(self, gate: Gate, b: Tensor, prompts: ExpertForm) -> None:
        self.gate, self.b, self.prompts, self.mixing = gate, b, prompts, mixing(gate)

    def __call__(self, prepared: Prepared, jacobian: Parameters | None = None) -> Tensor:
        r"""f (B, o, n); with `jacobian` given, d f / d theta is written into its blocks.

        d f_o = sum_j { (df_o / ds_j) d score_j + (df_o / db_j) d b_j + g_j d value_jo }.
        """
        done = self.prompts.evaluate(prepared.at)
        mixed = self.mixing.mix(done.score, self.b, done.value, prepared.log_frozen, prepared.frozen_mean)
        if jacobian is not None:
            by_bias, by_score = self.mixing.seeds(done.value, mixed)
            if "b" in jacobian:
                jacobian["b"].copy_(by_bias)
            self.prompts.pullback(prepared.at, done, by_score[:, :, None], mixed.g[:, :, None], jacobian)
        return mixed.f
