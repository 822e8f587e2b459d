r"""Parameter blocks: a model's parameter vector theta (p,) as named tensors laid end to end.

theta = (block_1, block_2, ...),    each block flattened row by row, in the order of `shapes`
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from itertools import accumulate, pairwise

from jaxtyping import Float
from torch import Tensor

from moe_prompt.errors import require


class ParameterBlocks(ABC):
    """A model with named parameter blocks; a subclass says which by `shapes`."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each parameter block, in the order of theta."""

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Name -> place of each block in a parameter vector."""
        ends = list(accumulate((math.prod(shape) for shape in self.shapes.values()), initial=0))
        return {name: slice(*bounds) for name, bounds in zip(self.shapes, pairwise(ends), strict=True)}

    @property
    def num_parameters(self) -> int:
        """Length p of a parameter vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def named_blocks(self, theta: Float[Tensor, "*batch p"]) -> dict[str, Tensor]:
        """Name -> block (*batch, *shape) of parameter vectors theta.

        Raises:
            InputError: vectors of another length than p.
        """
        require(
            theta.shape[-1] == self.num_parameters,
            f"this model has {self.num_parameters} parameters: got a vector of {theta.shape[-1]}.",
        )
        return {name: theta[..., self.slices[name]].unflatten(-1, shape) for name, shape in self.shapes.items()}
