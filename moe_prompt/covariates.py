r"""Covariates: where X comes from, with a sampler for data and a quadrature for expectations.

``sample(n, rng)`` draws X_1, ..., X_n; ``nodes(size)`` gives points x_m and weights w_m >= 0 that sum to 1, with

    E h(X) ~ sum_m w_m h(x_m),

exact for polynomials (Gauss rules, up to four dimensions), quasi-random beyond, and exact for every h where the
distribution has finitely many points. Tensors are float64; convert them to what the model computes in.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from scipy.special import roots_hermitenorm, roots_legendre
from torch import Tensor

from moe_prompt.errors import require

Points = Float[Tensor, "n dim"]
Weights = Float[Tensor, "n"]
_TENSOR_DIM = 4
_GAUSS_ORDER = 128
_MOST_CROPS = 2_000_000


class Covariates(ABC):
    """A distribution of X in R^dim."""

    dim: int

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> Points:
        """n independent draws, (n, dim); the same generator state gives the same draws."""

    @abstractmethod
    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        """A quadrature of about `size` points: points (m, dim) and weights (m,) that sum to 1."""

    def describe(self) -> dict[str, Any]:
        """Name and content in the terms of JSON: equal descriptions, equal distributions."""
        content = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **content}


@dataclass(frozen=True)
class Uniform(Covariates):
    """X uniform on the box [low, high]^dim.

    >>> points, weights = Uniform(0.0, 3.0, dim=2).nodes(100)
    >>> round(float(weights @ points.square().sum(1)), 12)
    6.0
    """

    low: float = -1.0
    high: float = 1.0
    dim: int = 1

    def __post_init__(self) -> None:
        _require_interval(self.low, self.high)
        _require_dim(self.dim)

    def sample(self, n: int, rng: np.random.Generator) -> Points:
        return torch.from_numpy(rng.uniform(self.low, self.high, (n, self.dim)))

    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        if self.dim > _TENSOR_DIM:
            points, weights = _sobol(size, self.dim)
        else:
            points, weights = _product(*_unit_legendre(_order(size, self.dim)), self.dim)
        return self.low + (self.high - self.low) * points, weights


@dataclass(frozen=True)
class Gaussian(Covariates):
    """X ~ N(0, scale^2 I): `scale` is a standard deviation."""

    dim: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        _require_dim(self.dim)
        require(
            self.scale > 0 and math.isfinite(self.scale), f"a Gaussian needs a scale above 0: got scale = {self.scale}."
        )

    def sample(self, n: int, rng: np.random.Generator) -> Points:
        return self.scale * torch.from_numpy(rng.standard_normal((n, self.dim)))

    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        if self.dim > _TENSOR_DIM:
            points, weights = _sobol(size, self.dim)
            return self.scale * torch.special.ndtri(points), weights
        points, weights = roots_hermitenorm(_order(size, self.dim))
        points, weights = _product(points, weights / weights.sum(), self.dim)
        return self.scale * points, weights


@dataclass(frozen=True)
class EvenGrid(Covariates):
    """n points evenly spaced on [low, high], ends included: a fixed design, the generator unused (arXiv 2305.03288).

    Its limit in n is the uniform distribution, which is what `nodes` integrates.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _require_interval(self.low, self.high)

    @property
    def dim(self) -> int:  # type: ignore[override]
        """1."""
        return 1

    def sample(self, n: int, rng: np.random.Generator) -> Points:
        return torch.linspace(self.low, self.high, n, dtype=torch.float64)[:, None]

    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        return Uniform(self.low, self.high, 1).nodes(size)


@dataclass(frozen=True, eq=False)
class ImagePatches(Covariates):
    r"""Tokens of real pictures: X = vec of a random crop of a random picture, cut into patches.

    `images` is (count, H, W) or (count, H, W, C). Picture and crop position are uniform and independent. The
    crop x crop window is cut into (crop / patch)^2 tokens, row by row; a token is its patch x patch x C pixels, row by
    row, channel last; X is token after token. Pixels are (pixel - mean) / sd, both over the whole collection.
    Raises InputError for crops that do not fit and pictures that are all one value.

    >>> pictures = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    >>> covariates = ImagePatches(pictures, crop=2, patch=1)
    >>> covariates.dim, covariates.num_tokens, [len(t) for t in covariates.nodes()]
    (4, 4, [8, 8])
    """

    images: np.ndarray
    crop: int = 4
    patch: int = 2

    def __post_init__(self) -> None:
        shape = self.images.shape
        require(
            self.images.ndim in (3, 4) and 0 not in shape,
            f"pictures need shape (count, H, W) or (count, H, W, C): got {shape}.",
        )
        require(
            1 <= self.patch <= self.crop <= min(shape[1:3]) and self.crop % self.patch == 0,
            f"a crop needs to fit in the {shape[1]} x {shape[2]} pictures and be a multiple of the patch: "
            f"got crop = {self.crop}, patch = {self.patch}.",
        )
        spread = np.std(self.images, dtype=np.float64)
        require(
            bool(np.isfinite(spread) and spread > 0),
            f"pictures need finite pixels of more than one value: got standard deviation {spread}.",
        )

    @classmethod
    def digits(cls, crop: int = 4, patch: int = 2) -> ImagePatches:
        """The 1797 handwritten digits that come with scikit-learn, 8 x 8 grey pixels."""
        from sklearn.datasets import load_digits

        return cls(load_digits().images, crop, patch)

    @classmethod
    def folder(
        cls, path: str | Path, crop: int = 4, patch: int = 2, size: int = 16, color: bool = False
    ) -> ImagePatches:
        """Every picture under `path`, in the order of its name, resized to size x size; other files are passed over."""
        root = Path(path)
        require(root.is_dir(), f"pictures are read from a folder: {str(path)!r} is none.")
        read = (_picture(file, size, color) for file in sorted(root.rglob("*")) if file.is_file())
        pictures = [picture for picture in read if picture is not None]
        require(len(pictures) > 0, f"no picture in {str(path)!r}: put PNG, JPEG or other picture files there.")
        return cls(np.stack(pictures), crop, patch)

    @property
    def num_tokens(self) -> int:
        """(crop / patch)^2."""
        return (self.crop // self.patch) ** 2

    @property
    def dim(self) -> int:  # type: ignore[override]
        """crop^2 times the number of channels."""
        return self.crop**2 * self._windows.shape[3]

    @cached_property
    def _windows(self) -> np.ndarray:
        """A view of every crop, (count, H - crop + 1, W - crop + 1, C, crop, crop)."""
        pixels = self.images.reshape(*self.images.shape[:3], -1).astype(np.float64)
        pixels = (pixels - pixels.mean()) / pixels.std()
        return np.lib.stride_tricks.sliding_window_view(pixels, (self.crop, self.crop), axis=(1, 2))

    def _tokens(self, windows: np.ndarray) -> np.ndarray:
        cells = self.crop // self.patch
        cut = windows.reshape(len(windows), -1, cells, self.patch, cells, self.patch)
        return cut.transpose(0, 2, 4, 3, 5, 1).reshape(len(windows), -1)

    def sample(self, n: int, rng: np.random.Generator) -> Points:
        picture, top, left = (rng.integers(count, size=n) for count in self._windows.shape[:3])
        return torch.from_numpy(self._tokens(self._windows[picture, top, left]))

    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        """Every distinct crop with its share of all crops, whatever `size`: the exact distribution."""
        count = math.prod(self._windows.shape[:3])
        require(
            count <= _MOST_CROPS,
            f"exact nodes list every crop, at most {_MOST_CROPS}: got {count}; use smaller or fewer pictures.",
        )
        crops = self._windows.reshape(count, *self._windows.shape[3:])
        points, times = np.unique(self._tokens(crops), axis=0, return_counts=True)
        return torch.from_numpy(points), torch.from_numpy(times / count)


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    content = np.ascontiguousarray(value, dtype="<f8")
    return {"shape": list(value.shape), "sha256": hashlib.sha256(content.tobytes()).hexdigest()}


def _picture(file: Path, size: int, color: bool) -> np.ndarray | None:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB" if color else "L").resize((size, size)))
    except UnidentifiedImageError:
        return None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        require(False, f"the picture {str(file)!r} cannot be read ({error}): repair or remove it.")
        return None


def _order(size: int, dim: int) -> int:
    """Nodes per axis: about size^(1/dim), and no more than a smooth function needs."""
    return min(_GAUSS_ORDER, max(2, round(size ** (1 / dim))))


def _unit_legendre(order: int) -> tuple[np.ndarray, np.ndarray]:
    points, weights = roots_legendre(order)
    return (points + 1) / 2, weights / 2


def _product(points: np.ndarray, weights: np.ndarray, dim: int) -> tuple[Tensor, Tensor]:
    """The product rule of `dim` copies of a rule in one dimension."""
    grid = torch.cartesian_prod(*[torch.from_numpy(points)] * dim).reshape(-1, dim)
    mass = torch.cartesian_prod(*[torch.from_numpy(weights)] * dim).reshape(-1, dim).prod(dim=1)
    return grid, mass


def _sobol(size: int, dim: int) -> tuple[Tensor, Tensor]:
    """The next power of two of scrambled Sobol points in the open cube (0, 1)^dim, the same at every call."""
    count = 2 ** math.ceil(math.log2(max(size, 2)))
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(count, dtype=torch.float64)
    return points.clamp(2.0**-32, 1 - 2.0**-32), torch.full((count,), 1 / count, dtype=torch.float64)


def _require_interval(low: float, high: float) -> None:
    require(
        math.isfinite(low) and math.isfinite(high) and low < high,
        f"an interval needs finite low < high: got low = {low}, high = {high}.",
    )


def _require_dim(dim: int) -> None:
    require(dim >= 1, f"covariates need at least one dimension: got dim = {dim}.")
