r"""Second derivatives of a prompt expert's score and value, summed over samples with given weights.

    curvature = sum_i { c(x_i) d2 score(x_i; theta) + sum_o w_o(x_i) d2 value_o(x_i; theta) }

for one atom theta, its own parameters and the shared ones, in the order of `named_parameters`. Zero where score and
value are linear in theta (VPT, prefixes); in closed form for the built-in experts; for any other by differentiating its
gradient with torch.func, one vector-Jacobian product per parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from moe_prompt.families import (
    ConstantFamily,
    Covariate,
    Evaluation,
    Family,
    FlatAdaptiveFamily,
    LinearGateFamily,
    PrefixFamily,
    ReparameterizedFamily,
)


def curvature(family: Family, at: Covariate, done: Evaluation, c: Tensor, w: Tensor) -> Tensor:
    """(K, q, q) for K problems of one atom each; c (K, n), w (K, o, n)."""
    return CLOSED_FORM.get(type(family), _by_autograd)(family, at, done, c, w)


def _zero(family: Family, at: Covariate, done: Evaluation, c: Tensor, w: Tensor) -> Tensor:
    q = sum(math.prod(value.shape[1:]) for value in family.parameters.values())
    return c.new_zeros(len(c), q, q)


def _flat_adaptive(family: FlatAdaptiveFamily, at: Covariate, done: Evaluation, c: Tensor, w: Tensor) -> Tensor:
    r"""score = sum_h (W_2' q)_h u_h and value = C W_2 u with u_h = act(z_h), z_h = w1_h . x.

    d2/dw1_h2 = { c (W_2' q)_h + (w' C W_2)_h } act''(z_h) x x',   d2/dw1_h dW2_kh = { c q_k + (w' C)_k } act'(z_h) x.
    """
    z, u, readout = done.saved
    z, u = z[:, 0], u[:, 0]  # (K, r, n): the only atom
    act, (rank, width), dim = family.expert.activation, z.shape[1:2] + at.x.shape[1:2], at.q.shape[1]
    back = family.c.mT @ w  # (K, dim, n)
    rho = c[:, None] * readout + family.w2_transposed @ back
    out = c.new_zeros(len(c), rank * width + dim * rank, rank * width + dim * rank)
    bent, sloped = rho * act.second(z, u), act.derivative(z, u)
    pull = at.q * c[:, None] + back
    for h in range(rank):
        own = slice(h * width, (h + 1) * width)
        out[:, own, own] = (at.x * bent[:, h, None]) @ at.x.mT
        cross = (at.x * sloped[:, h, None]) @ pull.mT  # (K, width, dim)
        columns = rank * width + h + rank * torch.arange(dim)  # W2 is (dim, rank)
        out[:, own, columns] = cross
        out[:, columns, own] = cross.mT
    return out


def _linear_gate(family: LinearGateFamily, at: Covariate, done: Evaluation, c: Tensor, w: Tensor) -> Tensor:
    r"""score is linear; value = C act(eta x): d2/deta_k2 = (C' w)_k act''(z_k) x x'."""
    out = _zero(family, at, done, c, w)
    z, h = done.saved
    bent = (family.c.mT @ w) * family.expert.activation.second(z[:, 0], h[:, 0])
    dim, width = at.q.shape[1], at.x.shape[1]
    for k in range(bent.shape[1]):
        own = slice(dim + k * width, dim + (k + 1) * width)
        out[:, own, own] = (at.x * bent[:, k, None]) @ at.x.mT
    return out


def _reparameterized(family: ReparameterizedFamily, at: Covariate, done: Evaluation, c: Tensor, w: Tensor) -> Tensor:
    r"""score = q' act(W_1 p), value = C act(W_2 p): d2/dp2 = W_1' diag(c q act''(W_1 p)) W_1 + the same with C' w."""
    if "w1" in family.parameters:  # the maps are learned too
        return _by_autograd(family, at, done, c, w)
    p, act = family.parameters["p"][:, 0], family.expert.activation
    out = c.new_zeros(len(c), p.shape[1], p.shape[1])
    pulls = ((at.q @ c[..., None])[..., 0], w.sum(-1) @ family.c)
    for weight, pull in zip((family.expert.w1, family.expert.w2), pulls, strict=True):
        z = p @ weight.mT
        out += weight.mT @ ((pull * act.second(z, act(z)))[..., None] * weight)
    return out


def _by_autograd(family: Family, at: Covariate, done: Evaluation, c: Tensor, w: Tensor) -> Tensor:
    """The Jacobian of the gradient, in all of the atom's parameters at once."""
    names = list(family.parameters)
    shapes = {name: family.parameters[name].shape[1:] for name in names}
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = torch.cat([family.parameters[name].flatten(1) for name in names], 1)

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
    return hessian(flat, at.x, at.q, c, w)


CLOSED_FORM: dict[type[Family], Callable[..., Tensor]] = {
    ConstantFamily: _zero,
    PrefixFamily: _zero,
    ReparameterizedFamily: _reparameterized,
    FlatAdaptiveFamily: _flat_adaptive,
    LinearGateFamily: _linear_gate,
}
