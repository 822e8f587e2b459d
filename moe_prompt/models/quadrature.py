r"""Quadrature: points and weights with E h(X) ~ sum_m w_m h(x_m), for X uniform on a cube or standard normal.

Up to four dimensions, the product of Gauss rules: k points per axis are exact for polynomials of degree 2k - 1 in
every coordinate. Beyond, scrambled Sobol points with a fixed seed: the same points at every call.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import roots_hermitenorm, roots_legendre
from torch import Tensor

Rule = tuple[Float[Tensor, "m dim"], Float[Tensor, " m"]]
_PRODUCT_DIM = 4
_MOST_PER_AXIS = 128


def uniform_rule(size: int, dim: int) -> Rule:
    """About `size` nodes for X uniform on (0, 1)^dim; weights sum to 1.

    >>> points, weights = uniform_rule(9, dim=2)
    >>> round(float(weights @ points.prod(dim=1) ** 5), 12) == round(1 / 36, 12)
    True
    """
    if dim > _PRODUCT_DIM:
        return _sobol(size, dim)
    points, weights = roots_legendre(_per_axis(size, dim))
    return _product((points + 1) / 2, weights / weights.sum(), dim)


def normal_rule(size: int, dim: int) -> Rule:
    """About `size` nodes for X ~ N(0, I_dim); weights sum to 1."""
    if dim > _PRODUCT_DIM:
        points, weights = _sobol(size, dim)
        return torch.special.ndtri(points), weights
    points, weights = roots_hermitenorm(_per_axis(size, dim))
    return _product(points, weights / weights.sum(), dim)


def _per_axis(size: int, dim: int) -> int:
    """About size^(1/dim), and no more than a smooth function needs."""
    return min(_MOST_PER_AXIS, max(2, round(size ** (1 / dim))))


def _product(points: np.ndarray, weights: np.ndarray, dim: int) -> Rule:
    grid = torch.cartesian_prod(*[torch.from_numpy(points)] * dim).reshape(-1, dim)
    mass = torch.cartesian_prod(*[torch.from_numpy(weights)] * dim).reshape(-1, dim).prod(dim=1)
    return grid, mass


def _sobol(size: int, dim: int) -> Rule:
    """The next power of two of points, kept off the faces of the cube."""
    count = 2 ** math.ceil(math.log2(max(size, 2)))
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(count, dtype=torch.float64)
    return points.clamp(2.0**-32, 1 - 2.0**-32), torch.full((count,), 1 / count, dtype=torch.float64)
