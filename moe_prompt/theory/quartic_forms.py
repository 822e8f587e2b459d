r"""The least length of a quadratic map on the unit sphere, and of its convex hull.

For symmetric T (q, q, m), T[M] = sum_kl M_kl T_kl in R^m,

    least     min |T[a a^T]|  over |a| = 1:                a quartic form, searched from many starts
    nearest   min |z - T[a a^T]| over a:                   a quartic, searched likewise
    relaxed   min |T[M]|      over M >= 0, trace M = 1:    convex, with a certificate

The second is a lower bound of the first: for every unit vector u of R^m, |T[M]| >= <u, T[M]> >= the least eigenvalue
of sum_m u_m T_m.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import nnls
from torch import Tensor

Form = Float64[Tensor, "q q m"]
_STEPS, _SQUARE_STEPS = 200, 60
LOWEST = 5  # eigenvectors that join the list of directions at a time


def least(form: Form, starts: int = 64, seed: int = 0) -> tuple[float, Float64[Tensor, "q"], Float64[Tensor, "s q"]]:
    """min |T[a a^T]|, its a (of several, the one with fewest coordinates), and where every start ended.

    Starts are the axes and `starts` random directions. Newton's method on the sphere, with the Hessian's eigenvalues
    by absolute value so that saddles repel, damped until every step descends.

    >>> form = torch.diag_embed(torch.eye(3, dtype=torch.float64))  # T[a a^T] = (a_1^2, a_2^2, a_3^2)
    >>> round(least(form)[0], 12) == round(3**-0.5, 12)
    True
    """
    q, scale = len(form), float(form.abs().max()) or 1.0
    noise = torch.randn(starts, q, dtype=form.dtype, generator=torch.Generator().manual_seed(seed))
    a, value = _descend(form / scale, torch.cat([torch.eye(q, dtype=form.dtype), noise / noise.norm(dim=1)[:, None]]))
    length = (2 * value).sqrt()
    near = length <= length.min() * (1 + 1e-6) + 1e-9
    best = int(torch.where(near, a.abs().sum(1), torch.inf).argmin())
    sign = torch.sign(a[best, a[best].abs().argmax()])
    return scale * float(length[best]), sign * a[best], a


def nearest_square(
    form: Form, target: Float64[Tensor, "m"], starts: int, generator: torch.Generator
) -> Float64[Tensor, "q"]:
    """The a that minimises |target - T[a a^T]|, by Levenberg-Marquardt from random starts of its natural size.

    >>> form = torch.diag_embed(torch.eye(3, dtype=torch.float64))
    >>> a = nearest_square(form, torch.tensor([4.0, 1.0, -5.0]).double(), 20, torch.Generator().manual_seed(0))
    >>> a.abs().round(decimals=6)
    tensor([2., 1., 0.], dtype=torch.float64)
    """
    size = (target.norm() / form.flatten(0, 1).norm(dim=1).max()).sqrt()
    start = size * torch.randn(1, starts, 1, len(form), dtype=form.dtype, generator=generator)
    return nearest_squares([form], target[None], start)[0][0, 0]


def nearest_squares(
    forms: list[Form], targets: Float64[Tensor, "draws m"], start: Float64[Tensor, "draws starts extra q"]
) -> tuple[Float64[Tensor, "draws extra q"], Float64[Tensor, "draws"]]:
    """min |target - sum_k T_k[a_k a_k^T]|^2 by Levenberg-Marquardt from every start: the best a and the value."""
    draws, starts, extra, q = start.shape
    a, target = start.flatten(0, 1), targets.repeat_interleave(starts, 0)

    def residual(a: Tensor) -> tuple[Tensor, Tensor]:
        slopes = [torch.einsum("klm,nl->nkm", form, a[:, k]) for k, form in enumerate(forms)]
        fitted = sum(torch.einsum("nkm,nk->nm", slope, a[:, k]) for k, slope in enumerate(slopes))
        return fitted - target, 2 * torch.cat(slopes, 1)

    r, jacobian = residual(a)
    value, damping = r.square().sum(1), torch.ones(len(a), dtype=a.dtype)
    eye = torch.eye(extra * q, dtype=a.dtype)
    for _ in range(_SQUARE_STEPS):
        gram = jacobian @ jacobian.mT
        scale = gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-300
        step = torch.linalg.solve(gram + (damping * scale)[:, None, None] * eye, jacobian @ r[..., None])[..., 0]
        trial = a - step.unflatten(1, (extra, q))
        new_r, new_jacobian = residual(trial)
        new = new_r.square().sum(1)
        good = new < value
        a = torch.where(good[:, None, None], trial, a)
        r, jacobian = torch.where(good[:, None], new_r, r), torch.where(good[:, None, None], new_jacobian, jacobian)
        value = torch.where(good, new, value)
        damping = torch.where(good, damping / 4, damping * 4).clamp(1e-12, 1e12)
    value, a = value.unflatten(0, (draws, starts)), a.unflatten(0, (draws, starts))
    least = value.argmin(1)
    rows = torch.arange(draws)
    return a[rows, least], value[rows, least]


def relaxed(form: Form, directions: Float64[Tensor, "s q"], steps: int = 1000) -> tuple[float, float]:
    """An upper and a lower bound of min |T[M]| over M >= 0, trace M = 1, equal to 1e-6 of themselves at convergence.

    Column generation: the shortest convex combination of T[a a^T] over a list of a that begins with `directions`. With
    u along that combination, eigenvectors of sum_m u_m T_m whose eigenvalue is below its length promise a shorter one:
    they join the list, the lowest few with their sums and differences, until none promises anything.
    """
    columns = torch.einsum("sk,sl,klm->sm", directions, directions, form).numpy()
    scale, lower = float(form.abs().max()) or 1.0, 0.0
    for _ in range(steps):
        weights = _shortest(columns / scale)
        columns, weights = columns[weights > 0], weights[weights > 0]
        shortest = weights @ columns
        upper = float(np.linalg.norm(shortest))
        if upper <= 1e-9 * scale:
            return upper, lower
        values, vectors = torch.linalg.eigh(form @ torch.from_numpy(shortest / upper))
        lower = max(lower, float(values[0]))
        if upper - lower <= 1e-6 * upper:
            break
        new = _with_pairs(vectors[:, :LOWEST].mT[values[:LOWEST] < upper])
        columns = np.concatenate([columns, torch.einsum("sk,sl,klm->sm", new, new, form).numpy()])
    return upper, lower


def _with_pairs(rows: Tensor) -> Tensor:
    """Orthonormal rows and the unit sums and differences of every two of them."""
    i, j = torch.triu_indices(len(rows), len(rows), 1)
    return torch.cat([rows, (rows[i] + rows[j]) / 2**0.5, (rows[i] - rows[j]) / 2**0.5])


def _descend(form: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Where every start ends, and 1/2 |T[a a^T]|^2 there."""
    end, least, left = a.clone(), torch.empty_like(a[:, 0]), torch.arange(len(a))
    damping = torch.full_like(least, 1e-3)
    value, gradient, hessian = _derivatives(form, a)
    for _ in range(_STEPS):
        moved = _newton(a, gradient, hessian, damping)
        new = _derivatives(form, moved)
        good = new[0] <= value
        still = ((moved - a).norm(dim=1) < 1e-14) | ~good
        a, gradient = torch.where(good[:, None], moved, a), torch.where(good[:, None], new[1], gradient)
        hessian, value = torch.where(good[:, None, None], new[2], hessian), torch.where(good, new[0], value)
        damping = torch.where(good, damping / 5, damping * 4).clamp(1e-14, 1e14)
        end[left], least[left] = a, value
        go_on = ~(still & (good | (damping > 1e8)))  # a start that has ended leaves the batch
        if not bool(go_on.any()):
            break
        left, a, value, damping = left[go_on], a[go_on], value[go_on], damping[go_on]
        gradient, hessian = gradient[go_on], hessian[go_on]
    return end, least


def _derivatives(form: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1/2 |T[a a^T]|^2 with its gradient and Hessian in R^q."""
    slope = torch.einsum("klm,sl->skm", form, a)
    residual = torch.einsum("skm,sk->sm", slope, a)
    gradient = 2 * torch.einsum("skm,sm->sk", slope, residual)
    hessian = 4 * slope @ slope.mT + 2 * torch.einsum("klm,sm->skl", form, residual)
    return 0.5 * residual.square().sum(1), gradient, hessian


def _newton(a: Tensor, gradient: Tensor, hessian: Tensor, damping: Tensor) -> Tensor:
    """One damped step along the sphere from every point."""
    identity = torch.eye(a.shape[1], dtype=a.dtype)
    normal = a[:, :, None] * a[:, None]
    tangent = identity - normal
    radial = (a * gradient).sum(1)[:, None, None]
    curvature = tangent @ (hessian - radial * identity) @ tangent + normal
    values, vectors = torch.linalg.eigh(curvature)
    size = values.abs() + damping[:, None] * values.abs().amax(1, keepdim=True) + 1e-300
    step = (vectors @ ((vectors.mT @ tangent @ gradient[..., None]) / size[..., None]))[..., 0]
    moved = a - step
    return moved / moved.norm(dim=1, keepdim=True)


def _shortest(columns: np.ndarray) -> np.ndarray:
    """Weights of the shortest vector in the convex hull of the rows; least squares is blind to their total."""
    system = np.concatenate([columns.T, np.ones((1, len(columns)))])
    target = np.zeros(len(system))
    target[-1] = 1.0
    weights = nnls(system, target, maxiter=50 * len(columns))[0]
    return weights / weights.sum()
