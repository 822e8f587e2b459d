r"""Covariates: distributions of X, each with a sampler for data and a quadrature for expectations.

``sample(n, rng)`` draws X_1, ..., X_n. ``nodes(size)`` gives points x_m and weights w_m >= 0 that sum to 1, so that

    E h(X) ~ sum_m w_m h(x_m).

| distribution                   | nodes               | the sum is                                        |
|--------------------------------|---------------------|---------------------------------------------------|
| continuous, up to 4 dimensions | Gauss rules         | exact for polynomials h (`models.quadrature`)     |
| continuous, more dimensions    | quasi-random points | approximate                                       |
| finitely many points           | all of the points   | exact for every h                                 |

All tensors are float64.
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
from PIL import Image
from torch import Tensor

from moe_prompt.attention.pictures import read_picture
from moe_prompt.errors import require
from moe_prompt.models.quadrature import normal_rule, uniform_rule

Points = Float[Tensor, "n dim"]
Weights = Float[Tensor, " n"]
_MOST_CROPS = 2_000_000  # exact nodes list at most this many crops


class Covariates(ABC):
    """A distribution of X in R^dim; a subclass writes `sample` and `nodes`."""

    dim: int

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> Points:
        """n draws of X, (n, dim). The same state of `rng` gives the same draws."""

    @abstractmethod
    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        """A quadrature of about `size` nodes: points (m, dim), and weights (m,) that sum to 1."""

    def describe(self) -> dict[str, Any]:
        """The class's name and its fields as JSON values; equal descriptions mean equal distributions."""
        content = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **content}


@dataclass(frozen=True)
class Uniform(Covariates):
    """X uniform on the box [low, high]^dim. Raises InputError unless low < high and dim >= 1.

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
        points, weights = uniform_rule(size, self.dim)
        return self.low + (self.high - self.low) * points, weights


@dataclass(frozen=True)
class Gaussian(Covariates):
    """X ~ N(0, scale^2 I) in R^dim; `scale` is a standard deviation. Raises InputError unless it is positive."""

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
        points, weights = normal_rule(size, self.dim)
        return self.scale * points, weights


@dataclass(frozen=True)
class EvenGrid(Covariates):
    """A fixed design of evenly spaced points, x_i = low + (high - low) (i - 1) / (n - 1), i = 1..n (arXiv 2305.03288).

    `sample` does not use its generator. As n grows the design approaches the uniform distribution, whose quadrature
    `nodes` returns. Raises InputError unless low < high.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _require_interval(self.low, self.high)

    @property
    def dim(self) -> int:  # type: ignore[override]
        """The design has one dimension."""
        return 1

    def sample(self, n: int, rng: np.random.Generator) -> Points:
        return torch.linspace(self.low, self.high, n, dtype=torch.float64)[:, None]

    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        return Uniform(self.low, self.high, 1).nodes(size)


@dataclass(frozen=True, eq=False)
class ImagePatches(Covariates):
    r"""Tokens of real pictures: X is a random crop of a random picture, cut into patches and flattened.

    1. A picture of `images`, (count, H, W) or (count, H, W, C), and a crop x crop window in it are drawn uniformly.
    2. Pixels are standardised: (pixel - mean) / sd, with mean and sd over the whole collection.
    3. The window is cut into (crop / patch)^2 tokens, row by row. A token is the patch x patch x C pixels of one patch,
       row by row with the channel last. X has one token after the other.

    Raises InputError for a crop that does not fit, or for pictures in which all pixels are equal or one is not finite.

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
        """Crops of the 1797 handwritten digits of scikit-learn, 8 x 8 grey pixels each."""
        from sklearn.datasets import load_digits

        return cls(load_digits().images, crop, patch)

    @classmethod
    def folder(
        cls, path: str | Path, crop: int = 4, patch: int = 2, size: int = 16, color: bool = False
    ) -> ImagePatches:
        """Crops of all picture files under `path`, sorted by name and resized to size x size pixels.

        Pictures are converted to grey unless `color`. Raises InputError for a folder that does not exist, holds no
        picture, or holds one that cannot be read.
        """
        root, mode = Path(path), "RGB" if color else "L"
        require(root.is_dir(), f"pictures are read from a folder: {str(path)!r} is none; give the path of a folder.")
        files = [file for file in sorted(root.rglob("*")) if _is_picture(file)]
        require(len(files) > 0, f"no picture in {str(path)!r}: put PNG, JPEG or other picture files there.")
        pictures = [np.asarray(read_picture(file).convert(mode).resize((size, size))) for file in files]
        return cls(np.stack(pictures), crop, patch)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a crop, (crop / patch)^2."""
        return (self.crop // self.patch) ** 2

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Length of X: crop^2 times the number of channels."""
        return self.crop**2 * self._windows.shape[3]

    @cached_property
    def _windows(self) -> np.ndarray:
        """A view of every crop, (count, H - crop + 1, W - crop + 1, C, crop, crop)."""
        pixels = self.images.reshape(*self.images.shape[:3], -1).astype(np.float64)
        pixels = (pixels - pixels.mean()) / pixels.std()
        return np.lib.stride_tricks.sliding_window_view(pixels, (self.crop, self.crop), axis=(1, 2))

    def _tokens(self, windows: np.ndarray) -> np.ndarray:
        """Windows (n, C, crop, crop) as rows of tokens, (n, dim)."""
        cells = self.crop // self.patch
        cut = windows.reshape(len(windows), -1, cells, self.patch, cells, self.patch)
        return cut.transpose(0, 2, 4, 3, 5, 1).reshape(len(windows), -1)

    def sample(self, n: int, rng: np.random.Generator) -> Points:
        picture, top, left = (rng.integers(count, size=n) for count in self._windows.shape[:3])
        return torch.from_numpy(self._tokens(self._windows[picture, top, left]))

    def nodes(self, size: int = 4096) -> tuple[Points, Weights]:
        """The exact distribution, whatever `size`: every distinct crop, weighted by its share of all crops."""
        count = math.prod(self._windows.shape[:3])
        require(
            count <= _MOST_CROPS,
            f"exact nodes list every crop, at most {_MOST_CROPS}: got {count}; use smaller or fewer pictures.",
        )
        crops = self._windows.reshape(count, *self._windows.shape[3:])
        points, times = np.unique(self._tokens(crops), axis=0, return_counts=True)
        return torch.from_numpy(points), torch.from_numpy(times / count)


def _plain(value: Any) -> Any:
    """The value as JSON; an array by its shape and a hash of its numbers."""
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value, dtype="<f8")
        return {"shape": list(value.shape), "sha256": hashlib.sha256(content.tobytes()).hexdigest()}
    return value


def _is_picture(file: Path) -> bool:
    """True for a file whose name has the ending of a format that Pillow opens."""
    return file.is_file() and Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN


def _require_interval(low: float, high: float) -> None:
    require(
        math.isfinite(low) and math.isfinite(high) and low < high,
        f"an interval needs finite low < high: got low = {low}, high = {high}.",
    )


def _require_dim(dim: int) -> None:
    require(dim >= 1, f"covariates need at least one dimension: got dim = {dim}.")
