"""Score, value and derivatives of any expert, a user's own included, from its `forward` by torch.func: more slowly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vjp, vmap

from moe_prompt.attention.prompts import PromptExpert
from moe_prompt.models.experts.base import Covariate, ExpertForm, Parameters, ScoreAndValue


class AutogradForm(ExpertForm[PromptExpert]):
    """Score, value and pullback of any expert, one vector-Jacobian product per sample and output."""

    # vmap misplaces any out_dims but 0 where an output does not depend on what it maps over: a constant key or value.

    def evaluate(self, at: Covariate) -> ScoreAndValue:
        over_samples = vmap(self._single, in_dims=(None, 1, 1))
        score, value = vmap(over_samples)(self.parameters, at.x, at.q)
        return ScoreAndValue(score.movedim(1, -1), value.movedim(1, -1))

    def pullback(self, at: Covariate, done: ScoreAndValue, s: Tensor, g: Tensor, out: Parameters) -> None:
        def rows(params: Parameters, x: Tensor, q: Tensor, s_x: Tensor, g_x: Tensor) -> Parameters:
            pull = vjp(lambda theta: self._single(theta, x, q), params)[1]
            value_cotangent = g_x[:, :, None] * torch.eye(s_x.shape[1], dtype=g_x.dtype, device=g_x.device)
            return vmap(lambda a, b: pull((a, b))[0], in_dims=(1, 1))(s_x, value_cotangent)

        over_samples = vmap(rows, in_dims=(None, 1, 1, 2, 2))
        jacobian = vmap(over_samples)(self.parameters, at.x, at.q, s[:, :, 0], g[:, :, :, 0])
        for name, block in jacobian.items():
            out[name].copy_(block.movedim((1, 2), (-1, -2)))

    def _single(self, parameters: Parameters, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        tokens = functional_call(self.expert, parameters, (x.unflatten(0, (self.num_tokens, -1)),))
        return tokens.key @ q, tokens.value @ self.c.mT

    def curvature(self, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
        return differentiated_curvature(self, at, done, c, g, r)


def differentiated_curvature(
    form: ExpertForm, at: Covariate, done: ScoreAndValue, c: Tensor, g: Tensor, r: Tensor
) -> Tensor:
    """The Jacobian of the gradient, in all of an atom's parameters at once; every atom is a problem of its own."""
    count = c.shape[1]
    parameters, at = form.apart(count).parameters, at.repeated(count)
    names = list(parameters)
    shapes = {name: parameters[name].shape[1:] for name in names}
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = torch.cat([parameters[name].flatten(1) for name in names], 1)

    def weighted(theta: Tensor, x: Tensor, q: Tensor, c: Tensor, w: Tensor) -> Tensor:
        parts = dict(zip(names, theta.split(sizes), strict=True))
        blocks = {name: parts[name].reshape(shapes[name]) for name in names}
        tokens = functional_call(form.expert, blocks, (x.mT.unflatten(1, (form.num_tokens, -1)),))
        score = torch.einsum("njk,kn->jn", tokens.key.expand(x.shape[1], -1, -1), q)
        value = torch.einsum("njv,ov->jon", tokens.value.expand(x.shape[1], -1, -1), form.c)
        return (score * c).sum() + (value * w).sum()

    hessian: Callable[..., Tensor] = vmap(
        jacrev(grad(weighted))
    )  # forward mode warns: torch still compiles it by TorchScript
    w = (g[:, :, None] * r[:, None]).flatten(0, 1)
    return hessian(flat, at.x, at.q, c.flatten(0, 1), w).unflatten(0, (-1, count))
