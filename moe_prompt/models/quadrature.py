r"""Quadrature rules: points x_m and weights w_m with E h(X) ~ sum_m w_m h(x_m), for uniform and for normal X.

Up to four dimensions a rule is a product of Gauss rules. With k points per axis it is exact for polynomials of degree
2k - 1 in every coordinate. In more dimensions the points are scrambled Sobol points of equal weight; their seed is
fixed, so that every call returns the same points.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import roots_hermitenorm, roots_legendre
from torch import Tensor

Rule = tuple[Float[Tensor, "m dim"], Float[Tensor, " m"]]
_PRODUCT_DIM = 4  # product rules are used up to this dimension
_MOST_PER_AXIS = 128  # a product rule has at most this many points per axis


def uniform_rule(size: int, dim: int) -> Rule:
    """About `size` nodes for X uniform on (0, 1)^dim: points (m, dim), and weights (m,) that sum to 1.

    >>> points, weights = uniform_rule(9, dim=2)
    >>> round(float(weights @ points.prod(dim=1) ** 5), 12) == round(1 / 36, 12)
    True
    """
    if dim > _PRODUCT_DIM:
        return _sobol(size, dim)
    points, weights = roots_legendre(_per_axis(size, dim))
    return _product((points + 1) / 2, weights / weights.sum(), dim)


def normal_rule(size: int, dim: int) -> Rule:
    """About `size` nodes for X ~ N(0, I_dim): points (m, dim), and weights (m,) that sum to 1."""
    if dim > _PRODUCT_DIM:
        points, weights = _sobol(size, dim)
        return torch.special.ndtri(points), weights
    points, weights = roots_hermitenorm(_per_axis(size, dim))
    return _product(points, weights / weights.sum(), dim)


def _per_axis(size: int, dim: int) -> int:
    """Points per axis: about size^(1/dim), at least 2, at most as many as a smooth function needs."""
    return min(_MOST_PER_AXIS, max(2, round(size ** (1 / dim))))


def _product(points: np.ndarray, weights: np.ndarray, dim: int) -> Rule:
    """The product rule in `dim` dimensions of a rule in one."""
    grid = torch.cartesian_prod(*[torch.from_numpy(points)] * dim).reshape(-1, dim)
    mass = torch.cartesian_prod(*[torch.from_numpy(weights)] * dim).reshape(-1, dim).prod(dim=1)
    return grid, mass


def _sobol(size: int, dim: int) -> Rule:
    """At least `size` Sobol points, a power of two of them, kept off the faces of the cube."""
    count = 2 ** math.ceil(math.log2(max(size, 2)))
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(count, dtype=torch.float64)
    return points.clamp(2.0**-32, 1 - 2.0**-32), torch.full((count,), 1 / count, dtype=torch.float64)
