"""VPT and prefixes: key and value are parameters, so that score and value are linear in them."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_prompt.attention.prompts import ConstantPrompt, PrefixPrompt
from moe_prompt.models.experts.base import Covariate, ExpertForm, Parameters, ScoreAndValue, closed_form


@closed_form(ConstantPrompt)
class ConstantForm(ExpertForm[ConstantPrompt]):
    """key_j = value_j = p_j."""

    def prepare(self, p: Tensor) -> None:  # type: ignore[override]
        self.key, self.value = p, (p @ self.c.mT)[..., None]

    def evaluate(self, at: Covariate) -> ScoreAndValue:
        return ScoreAndValue(self.key @ at.q, self.value)

    def pullback(self, at: Covariate, done: ScoreAndValue, s: Tensor, g: Tensor, out: Parameters) -> None:
        torch.mul(at.q_row, s, out=out["p"]).addcmul_(self.c_column, g)

    def rows(self, at: Covariate, done: ScoreAndValue, r: Tensor) -> tuple[Tensor, Tensor]:
        return at.q[:, None], (self.c.mT @ r)[:, None]

    def curvature(self, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
        return self.no_curvature(c)


@closed_form(PrefixPrompt)
class PrefixForm(ExpertForm[PrefixPrompt]):
    """key_j and value_j are free."""

    def prepare(self, key: Tensor, value: Tensor) -> None:  # type: ignore[override]
        self.key, self.value = key, (value @ self.c.mT)[..., None]

    def evaluate(self, at: Covariate) -> ScoreAndValue:
        return ScoreAndValue(self.key @ at.q, self.value)

    def pullback(self, at: Covariate, done: ScoreAndValue, s: Tensor, g: Tensor, out: Parameters) -> None:
        torch.mul(at.q_row, s, out=out["key"])
        torch.mul(self.c_column, g, out=out["value"])

    def rows(self, at: Covariate, done: ScoreAndValue, r: Tensor) -> tuple[Tensor, Tensor]:
        back = self.c.mT @ r
        score, value = [at.q, torch.zeros_like(back)], [torch.zeros_like(at.q), back]
        return torch.cat(score, 1)[:, None], torch.cat(value, 1)[:, None]

    def curvature(self, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
        return self.no_curvature(c)
