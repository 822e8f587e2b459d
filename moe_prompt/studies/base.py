"""A study: error against sample size in a number of cells, as data that says how to compute its own rows.

A cell is a truth and an estimator. A row is one fit: a cell, a sample size n, a replicate, and the numbers it was
judged by. Rows depend on the study's content and their own coordinates alone; sizes and replicates only say which of
them to compute, so that one size more, another number of workers or a restart changes no other row.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from moe_prompt.errors import require
from moe_prompt.studies.fingerprint import fingerprint

DATA, STARTS = 0, 1
"""Streams of random numbers: data, the same for every estimator, and starts."""
S = TypeVar("S", bound="Study")


@dataclass(frozen=True)
class Quantity:
    """A judged number of every fit, and what theory says of it."""

    column: str  # of the row that holds it: at least 0, less is better
    label: str  # on an axis
    slope: float | None = None  # predicted exponent of n; None: none is predicted
    constant: str | None = None  # name among the cell's limits of what multiplies n^slope
    statistic: str = "mean"  # what the slope is fitted to; mean and median are always shown
    short: str = ""  # name in tables; the column's where empty
    prediction: str = "prediction"  # what the line constant * n^slope is called
    why: str = ""  # why no slope is predicted

    @property
    def name(self) -> str:
        return self.short or self.column


@dataclass(frozen=True)
class Relation:
    """How the model that is fitted stands to the truth's: their numbers of atoms, and whether they are one family."""

    true_atoms: int
    fitted_atoms: int
    same_family: bool
    family: str | None = None  # the truth's, by its name in `theory.families.FAMILIES`

    @property
    def extra(self) -> int | None:
        """k where the fit has k atoms more than the truth, 0 where it has as many; None: it cannot be the truth."""
        extra = self.fitted_atoms - self.true_atoms
        return extra if self.same_family and extra >= 0 else None

    @property
    def exact(self) -> bool:
        """The truth's family with as many atoms."""
        return self.extra == 0

    @property
    def over_specified(self) -> bool:
        """The truth's family with more atoms."""
        return bool(self.extra)

    @property
    def misspecified(self) -> bool:
        """A family, or a number of atoms, that does not hold the truth."""
        return self.extra is None


@runtime_checkable
class Limits(Protocol):
    """What a cell tends to, by computation."""

    def to_dict(self) -> dict[str, Any]:
        """In the terms of JSON."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Study(ABC):
    """Sizes, replicates and seed of a study; `window` is the range of n on which slopes are fitted, part of the study.

    A study of one's own needs no `claim`, and its `window` is all of its sizes unless it says otherwise. A subclass
    says what its cells are, how a batch of one cell is fitted, and what theory predicts.
    """

    name: str
    claim: str = ""
    sizes: tuple[int, ...]
    replicates: int
    window: tuple[int, int] = (0, 0)  # (0, 0): from the smallest size to the largest
    seed: int = 0
    quick_sizes: tuple[int, ...] = ()
    quick_replicates: int = 25

    def __post_init__(self) -> None:
        if tuple(self.window) == (0, 0):
            object.__setattr__(self, "window", (min(self.sizes, default=0), max(self.sizes, default=0)))
        for name in ("sizes", "window", "quick_sizes"):  # NumPy's integers would not reach the database as integers
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        require(self.seed >= 0, f"study {self.name}: a seed is an integer of at least 0: got {self.seed}.")
        require(self.replicates >= 1, f"study {self.name} needs at least one replicate: got {self.replicates}.")
        require(
            self._has_slope(self.sizes),
            f"study {self.name}: the window {self.window} needs at least two of the sizes {self.sizes}.",
        )

    def _has_slope(self, sizes: tuple[int, ...]) -> bool:
        low, high = self.window
        return sum(low <= n <= high for n in sizes) >= 2

    @property
    @abstractmethod
    def cells(self) -> tuple[tuple[str, str], ...]:
        """(truth, estimator) of every cell."""

    @property
    @abstractmethod
    def content(self) -> Any:
        """Everything that a row depends on beside its own coordinates."""

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, str]:
        """Name -> SQLite type of the numbers by which fits are judged."""

    @abstractmethod
    def quantities(self, truth: str, estimator: str) -> tuple[Quantity, ...]:
        """The numbers whose fall with n is looked at."""

    @abstractmethod
    def relation(self, truth: str, estimator: str) -> Relation:
        """Whether a cell is exact, over-specified or misspecified, told from its two models."""

    @abstractmethod
    def limits(self, truth: str, estimator: str) -> Limits:
        """What theory predicts for a cell: computed once, before its first batch."""

    @abstractmethod
    def fit_batch(
        self, truth: str, estimator: str, n: int, replicates: tuple[int, ...], limits: Any
    ) -> list[dict[str, Any]]:
        """Sample, start, fit and judge: one row per replicate, without its coordinates."""

    def title(self, truth: str, estimator: str) -> str:
        """A cell's name above its panel."""
        return f"{estimator} fitted to {truth} data"

    def cost(self, truth: str, estimator: str, n: int) -> float:
        """CPU time of one fit, relative to others."""
        return float(n)

    def better(self, known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
        """Whether limits found in a later run replace those that are known: they do not, where they are exact."""
        return False

    @cached_property
    def key(self) -> str:
        return fingerprint(self.content)

    def quick(self: S) -> S:
        """A few sizes and replicates of the same study: its rows are among the full one's."""
        few = (self.sizes[:-1:2], self.sizes[:-1], self.sizes)
        return replace(
            self,
            sizes=self.quick_sizes or next(sizes for sizes in few if self._has_slope(sizes)),
            replicates=min(self.quick_replicates, self.replicates),
        )

    def rng(self, truth: str, n: int, replicate: int, stream: int) -> np.random.Generator:
        """The generator of one replicate, for its DATA or its STARTS."""
        where = (zlib.crc32(truth.encode()), n, replicate, stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=where))
