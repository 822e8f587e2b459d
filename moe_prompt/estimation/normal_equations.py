r"""J'J, J'r and r'r of many least-squares problems in one pass over their data.

The rows of the Jacobian and, as one extra row, the residual are written feature-major into a chunk that stays in
cache; the product of the chunk with its own transpose is [J r]'[J r], and the chunks of a problem add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moe_prompt.models.regression import Prepared, RegressionModel
from moe_prompt.models.sampling import Dataset

CHUNK_BYTES = 3 << 20  # measured best between one and eight megabytes: cache against the cost of a call
FEW_ROWS = 32  # measured, one thread of a Xeon: below, the full product of torch is faster by a half to two thirds


@dataclass(frozen=True, eq=False)
class Problem:
    """Replicates times starts: problem k is start k % starts of replicate k // starts."""

    model: RegressionModel
    prepared: Prepared
    y: Tensor  # (replicates, o, n)
    weights: Tensor | None
    starts: int
    chunks: dict = field(default_factory=dict)  # views of consecutive replicates, cut once

    @classmethod
    def of(cls, model: RegressionModel, data: Dataset, starts: int, stride: int = 1) -> Problem:
        """Every `stride`-th observation of every replicate, fitted from a number of starts."""
        part = slice(None, None, stride)
        weights = None if data.weights is None else data.weights[part]
        return cls(model, model.prepare(data.x[:, part]), data.y[:, part].mT.contiguous(), weights, starts)

    @property
    def observations(self) -> int:
        return self.y.shape[1] * self.y.shape[2]

    @cached_property
    def width(self) -> int:
        """Samples whose Jacobian and residual, side by side, fill a chunk."""
        return max(256, CHUNK_BYTES // (8 * self.y.shape[1] * (self.model.num_parameters + 1)))

    def square_norm(self) -> Tensor:
        """sum_i w_i |y_i|^2 of every problem: the scale below which a residual is rounding."""
        squares = self.y.square().sum(1)
        return (squares if self.weights is None else squares * self.weights).sum(1).repeat_interleave(self.starts)

    def gram(self, theta: Tensor, index: Tensor) -> Tensor:
        """[J r]'[J r] (K, p + 1, p + 1) at theta (K, p) of the problems in `index`; r = f - y."""
        out = theta.new_zeros(len(theta), theta.shape[1] + 1, theta.shape[1] + 1)
        for some, replicates in self.groups(index):
            self._accumulate(out[some], theta[some], replicates)
        return out

    def objective(self, theta: Tensor, index: Tensor) -> Tensor:
        """1/2 sum_i w_i |f - y|^2 (K,), without derivatives."""
        out = theta.new_zeros(len(theta))
        for some, replicates in self.groups(index):
            mixture = self.model.at(theta[some])
            for prepared, y, scale in self.pieces(replicates):
                residual = mixture(prepared) - y
                residual = residual if scale is None else residual * scale
                out[some] += 0.5 * residual.square().sum((1, 2))
        return out

    def groups(self, index: Tensor, width: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Problems that fit into a chunk of `width` samples together, with their replicates."""
        together = max(1, (width or self.width) // self.y.shape[2])
        for first in range(0, len(index), together):
            some = slice(first, first + together)
            yield some, index[some] // self.starts

    def pieces(self, replicates: Tensor, width: int | None = None) -> Iterator[tuple[Prepared, Tensor, Tensor | None]]:
        """Prepared covariates, observations and root weights of some replicates, a chunk of samples at a time."""
        n, width = self.y.shape[2], width or self.width
        for start in range(0, n, width):
            yield self._chunk(replicates, slice(start, min(n, start + width)))

    def _accumulate(self, out: Tensor, theta: Tensor, replicates: Tensor) -> None:
        """Sum the Gram products of all chunks of a few problems."""
        mixture, width = self.model.at(theta), 0
        for prepared, y, scale in self.pieces(replicates):
            if y.shape[2] != width:
                width = y.shape[2]
                joined = theta.new_empty(len(theta), theta.shape[1] + 1, y.shape[1], width)
                blocks, residual = self.model.blocks(joined), joined[:, -1]
            torch.sub(mixture(prepared, blocks), y, out=residual)
            if scale is not None:
                joined.mul_(scale)
            _add_gram(joined.flatten(2), out)

    def _chunk(self, replicates: Tensor, samples: slice) -> tuple[Prepared, Tensor, Tensor | None]:
        """One of the pieces; views where possible."""
        first, last = int(replicates[0]), int(replicates[-1])
        if len(replicates) > 1 and not replicates.equal(torch.arange(first, last + 1)):
            return self._cut(replicates, samples)
        key = (first, last, samples.start, samples.stop)
        if key not in self.chunks:
            self.chunks[key] = self._cut(slice(first, last + 1), samples)
        return self.chunks[key]

    def _cut(self, replicates: Tensor | slice, samples: slice) -> tuple[Prepared, Tensor, Tensor | None]:
        scale = None if self.weights is None else self.weights[samples].sqrt()
        return self.prepared.part(replicates, samples), self.y[replicates][..., samples], scale


def _add_gram(rows: Tensor, out: Tensor) -> None:
    """out += rows rows' for rows (K, m, n).

    NumPy's product of a matrix with its own transpose computes half of it, and pays for that with few rows.
    """
    if rows.shape[1] < FEW_ROWS:
        out.baddbmm_(rows, rows.mT)
        return
    array = rows.numpy()
    with np.errstate(all="ignore"):  # an infinite or undefined product is the fit's business
        out += torch.from_numpy(array @ array.swapaxes(1, 2))
