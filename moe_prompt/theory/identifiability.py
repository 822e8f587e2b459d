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
from torch.func import functional_call, jacrev, vmap

from moe_prompt.errors import require
from moe_prompt.models.atoms import parameter_names
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
    jacobian = vmap(jacrev(lambda t, x: token_vector(model, t, x)), (None, 0))(theta, points[some])
    return factor_rank(triangular([jacobian]), parameter_names(model))


def token_vector(model: RegressionModel, theta: Float64[Tensor, "p"], x: Float64[Tensor, "dim"]) -> Tensor:
    """(b, key_1, ..., key_L, value_1, ..., value_L) at one covariate, as one vector."""
    b, parameters = model.unflatten(theta)
    tokens = functional_call(model.expert, parameters, (x.unflatten(0, (model.num_tokens, -1)),))
    return torch.cat([b if model.gating_bias else b[:0], tokens.key.flatten(), tokens.value.flatten()])
