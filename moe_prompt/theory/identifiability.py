r"""Which parameters can be learned at all, and how well at best: symmetries of the parameters, Cramer-Rao bound.

For the regression model Y = f_theta(X) + s e with Jacobian J(x) = d f_theta(x) / d theta (outputs, p),

    I(theta) = E[J(X)^T J(X)],        n Cov(theta_hat) -> s^2 I(theta)^{-1},

so a fit with as many atoms as the truth errs as n^{-1/2} exactly along the directions that I does not annihilate. A
family whose symmetry is continuous has null directions however it is written; more than those are a defect.
`LocalGeometry` computes J, I and the rank.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import functional_call

from moe_prompt.errors import require
from moe_prompt.models.atoms import atom_places, parameter_names
from moe_prompt.models.experts.base import Covariate
from moe_prompt.models.experts.form_of import form_of
from moe_prompt.models.regression import RegressionModel
from moe_prompt.theory.local_geometry import Nodes
from moe_prompt.theory.rank import JacobianRank, factor_rank, triangular

FEW = 64
"""Covariates at which tokens are differentiated: as functions of x they are as rich as their parameters are many."""


def cramer_rao(information: Float64[Tensor, "p p"], noise: float, n: int) -> Float64[Tensor, "p p"]:
    """s^2 I^+ / n: the least covariance of an estimate from n observations with noise s, on what is identified.

    Where I is singular this is the pseudo-inverse: the covariance of the estimate's components orthogonal to the null
    directions. Directions that carry less than 1e-12 of the largest information, at unit diagonal, count as null.

    >>> cramer_rao(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)), noise=2.0, n=10).diagonal().tolist()
    [0.1, 0.0]
    """
    require(noise > 0 and n >= 1, f"a Cramer-Rao bound needs noise > 0 and n >= 1: got noise = {noise}, n = {n}.")
    diagonal = information.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * information * scale)
    null = scale[:, None] * vectors[:, values < 1e-12 * values[-1]]
    kept = torch.linalg.qr(null, mode="complete").Q[:, null.shape[1] :]
    return noise**2 / n * kept @ torch.linalg.inv(kept.mT @ information @ kept) @ kept.mT


@torch.no_grad()
def token_rank(model: RegressionModel, theta: Float64[Tensor, "p"], nodes: Nodes) -> JacobianRank:
    """Rank and null directions of theta -> (b, keys and values of all prompts as functions of x), at theta.

    What it annihilates changes no prompt: the continuous symmetries of the way the family is written.
    """
    points, _ = nodes
    some = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[: max(FEW, model.num_parameters)]
    return factor_rank(triangular([token_jacobian(model, theta, points[some])]), parameter_names(model))


def token_jacobian(
    model: RegressionModel, theta: Float64[Tensor, "p"], x: Float64[Tensor, "m dim"]
) -> Float64[Tensor, "m rows p"]:
    """d (b, key_1, value_1, ..., key_L, value_L) / d theta at some covariates.

    A key is the score without B and x: its k-th entry is the score of a covariate whose B^T x is the k-th unit vector.
    """
    keys, values, m = model.key_map.shape[1], model.value_map.shape[1], len(x)
    identity = torch.eye(keys + values, dtype=theta.dtype)
    form = form_of(model.expert)(
        model.expert, identity[:values, :values], model.num_tokens, model.unflatten(theta[None])[1]
    )
    entries = identity.repeat_interleave(m, 1)[None]  # which entry of key or value each repetition of x asks for
    at = Covariate(x.mT.repeat(1, keys + values)[None], entries[:, :keys])
    rows = sum(form.rows(at, form.evaluate(at), entries[:, keys:]), start=x.new_zeros(()))
    first = int(model.gating_bias)
    out = x.new_zeros(m * (keys + values), model.num_atoms, len(theta))
    for atom, places in enumerate(atom_places(model)[:, first:]):
        out[:, atom, places] = rows[0, atom if rows.shape[1] > 1 else 0].mT
    biases = torch.eye(len(theta), dtype=theta.dtype)[: first * model.num_atoms]
    tokens = out.unflatten(0, (-1, m)).transpose(0, 1).flatten(1, 2)
    return torch.cat([biases.expand(m, -1, -1), tokens], 1)


def token_vector(model: RegressionModel, theta: Float64[Tensor, "p"], x: Float64[Tensor, "dim"]) -> Tensor:
    """(b, key_1, ..., key_L, value_1, ..., value_L) at one covariate, as one vector."""
    b, parameters = model.unflatten(theta)
    tokens = functional_call(model.expert, parameters, (x.unflatten(0, (model.num_tokens, -1)),))
    return torch.cat([b if model.gating_bias else b[:0], tokens.key.flatten(), tokens.value.flatten()])
