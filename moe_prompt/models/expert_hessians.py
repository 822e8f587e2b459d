r"""Second derivatives of a prompt expert's score and value, summed over samples with given weights.

    curvature_j = sum_i { c_j(x_i) d2 score_j(x_i) + g_j(x_i) sum_o r_o(x_i) d2 value_jo(x_i) }

in atom j's own parameters and the shared ones, in the order of `named_parameters`. Zero where score and value are
linear in theta (VPT, prefixes); in closed form for the built-in experts; for any other by differentiating its gradient
with torch.func, one vector-Jacobian product per parameter.

Letters in shapes: B problems, L atoms, q parameters of an atom, o outputs, n samples; more in
:mod:`moe_prompt.models.expert_jacobians`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from moe_prompt.models.expert_jacobians import (
    ConstantFamily,
    Covariate,
    Evaluation,
    Family,
    FlatAdaptiveFamily,
    LinearGateFamily,
    PrefixFamily,
    ReparameterizedFamily,
)


def curvature(
    family: Family, at: Covariate, done: Evaluation, c: Tensor, g: Tensor, r: Tensor
) -> Float64[Tensor, "B L q q"]:
    """The curvature of every atom for weights c and g (B, L, n) and r (B, o, n)."""
    return CLOSED_FORM.get(type(family), _by_autograd)(family, at, done, c, g, r)


def _size(family: Family) -> int:
    """Parameters of one atom, its own and the shared ones."""
    shared = family.expert.is_shared
    return sum(math.prod(value.shape[1 if shared(name) else 2 :]) for name, value in family.parameters.items())


def _zero(family: Family, at: Covariate, done: Evaluation, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
    q = _size(family)
    return c.new_zeros(*c.shape[:2], q, q)


def _flat_adaptive(
    family: FlatAdaptiveFamily, at: Covariate, done: Evaluation, c: Tensor, g: Tensor, r: Tensor
) -> Tensor:
    r"""score = sum_h (W_2' q)_h u_h and value = C W_2 u with u_h = act(z_h), z_h = w1_h . x.

    d2/dw1_h2 = { c (W_2' q)_h + g (r' C W_2)_h } act''(z_h) x x',
    d2/dw1_h dW2_kh = { c q_k + g (r' C)_k } act'(z_h) x.
    """
    z, u, readout = done.saved  # (B, L, h, n) twice, (B, h, n)
    act, rank, width = family.expert.activation, z.shape[2], at.x.shape[1]
    back = family.c.mT @ r  # (B, dim, n)
    rho = c[:, :, None] * readout[:, None] + g[:, :, None] * (family.w2_transposed @ back)[:, None]
    pull = c[:, :, None] * at.q[:, None] + g[:, :, None] * back[:, None]  # (B, L, dim, n)
    own = _moments(rho * act.second(z, u), at.x)
    sloped = (act.derivative(z, u)[:, :, :, None] * at.x[:, None, None]).flatten(2, 3)
    cross = (sloped @ pull.mT).unflatten(2, (rank, width))
    out = _zero(family, at, done, c, g, r)
    for h in range(rank):
        rows = slice(h * width, (h + 1) * width)
        columns = slice(rank * width + h, None, rank)  # W2 is (dim, rank)
        out[:, :, rows, rows] = own[:, :, h]
        out[:, :, rows, columns] = cross[:, :, h]
        out[:, :, columns, rows] = cross[:, :, h].mT
    return out


def _linear_gate(family: LinearGateFamily, at: Covariate, done: Evaluation, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
    r"""score is linear; value = C act(eta x): d2/deta_k2 = g (C' r)_k act''(z_k) x x'."""
    out = _zero(family, at, done, c, g, r)
    bent = (family.c.mT @ r)[:, None] * g[:, :, None] * family.expert.activation.second(*done.saved)
    own, dim, width = _moments(bent, at.x), at.q.shape[1], at.x.shape[1]
    for k in range(own.shape[2]):
        rows = slice(dim + k * width, dim + (k + 1) * width)
        out[:, :, rows, rows] = own[:, :, k]
    return out


def _moments(weights: Tensor, x: Tensor) -> Tensor:
    """sum_i weights(x_i) x_i x_i' for weights (B, L, h, n): (B, L, h, D, D)."""
    weighted = weights[:, :, :, None] * x[:, None, None]
    return (weighted.flatten(1, 3) @ x.mT).unflatten(1, weighted.shape[1:4])


def _reparameterized(
    family: ReparameterizedFamily, at: Covariate, done: Evaluation, c: Tensor, g: Tensor, r: Tensor
) -> Tensor:
    r"""score = q' act(W_1 p), value = C act(W_2 p): d2/dp2 = W_1' diag(c q act''(W_1 p)) W_1 + the same with g C' r."""
    if "w1" in family.parameters:  # the maps are learned too
        return _by_autograd(family, at, done, c, g, r)
    p, act = family.parameters["p"], family.expert.activation
    out = _zero(family, at, done, c, g, r)
    pulls = (c @ at.q.mT, g @ r.mT @ family.c)  # (B, L, k) and (B, L, v)
    for weight, pull in zip((family.expert.w1, family.expert.w2), pulls, strict=True):
        z = p @ weight.mT
        out += weight.mT @ ((pull * act.second(z, act(z)))[..., None] * weight)
    return out


def _by_autograd(family: Family, at: Covariate, done: Evaluation, c: Tensor, g: Tensor, r: Tensor) -> Tensor:
    """The Jacobian of the gradient, in all of an atom's parameters at once; every atom is a problem of its own."""
    count = c.shape[1]
    parameters, at = family.apart(count).parameters, at.repeated(count)
    names = list(parameters)
    shapes = {name: parameters[name].shape[1:] for name in names}
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = torch.cat([parameters[name].flatten(1) for name in names], 1)

    def weighted(theta: Tensor, x: Tensor, q: Tensor, c: Tensor, w: Tensor) -> Tensor:
        parts = dict(zip(names, theta.split(sizes), strict=True))
        blocks = {name: parts[name].reshape(shapes[name]) for name in names}
        tokens = functional_call(family.expert, blocks, (x.mT.unflatten(1, (family.num_tokens, -1)),))
        score = torch.einsum("njk,kn->jn", tokens.key.expand(x.shape[1], -1, -1), q)
        value = torch.einsum("njv,ov->jon", tokens.value.expand(x.shape[1], -1, -1), family.c)
        return (score * c).sum() + (value * w).sum()

    hessian: Callable[..., Tensor] = vmap(
        jacrev(grad(weighted))
    )  # forward mode warns: torch still compiles it by TorchScript
    w = (g[:, :, None] * r[:, None]).flatten(0, 1)
    return hessian(flat, at.x, at.q, c.flatten(0, 1), w).unflatten(0, (-1, count))


CLOSED_FORM: dict[type[Family], Callable[..., Tensor]] = {
    ConstantFamily: _zero,
    PrefixFamily: _zero,
    ReparameterizedFamily: _reparameterized,
    FlatAdaptiveFamily: _flat_adaptive,
    LinearGateFamily: _linear_gate,
}
