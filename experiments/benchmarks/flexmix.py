"""The peer in R: flexmix.R on data written to a folder, and what it prints.

Of R's packages flexmix is the one that fits this model: a regression with Gaussian noise for each expert, its gate a
multinomial model of the covariates. mixtools has `hmeEM`, for two experts and one covariate only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.machine import Unavailable

INSTALL = "apt-get install --no-install-recommends r-base-core r-cran-flexmix"
SCRIPT = Path(__file__).with_suffix(".R")
VERSIONS = 'cat(as.character(getRversion()), as.character(packageVersion("flexmix")))'


@dataclass(frozen=True)
class Timing:
    """CPU seconds per fit: `equal` for the iterations asked for, `converged` until flexmix stopped by itself."""

    equal: float
    converged: float
    steps: list[int]
    objective: list[float]


@dataclass(frozen=True)
class Flexmix:
    """flexmix on the data of several replicates in `folder`: n samples, d covariates, k experts."""

    folder: Path
    n: int
    d: int
    k: int
    replicates: int

    @classmethod
    def write(cls, folder: Path, x: np.ndarray, y: np.ndarray, posterior: np.ndarray) -> Flexmix:
        """Data x (replicates, n, d), y (replicates, n), and the start: posterior (replicates, n, k) of the experts."""
        for name, arrays in (("x", x), ("y", y[..., None]), ("posterior", posterior)):
            for replicate, array in enumerate(arrays, start=1):
                array.T.astype("<f8").tofile(folder / f"{name}_{replicate}.bin")  # R is column-major
        return cls(folder, *x.shape[1:], posterior.shape[2], len(x))

    def traces(self) -> list[list[float]]:
        """The log-likelihood after every iteration, of every replicate."""
        return [values for _, values in self.call("trace")]

    def timing(self, iterations: list[int]) -> Timing:
        """Time that many iterations of each replicate, and whole fits."""
        said = dict(self.call("time", *iterations))
        equal, converged = (said[name][0] / self.replicates for name in ("equal", "converged"))
        return Timing(equal, converged, [int(steps) for steps in said["steps"]], said["objective"])

    def call(self, task: str, *iterations: int) -> list[tuple[str, list[float]]]:
        sizes = (self.n, self.d, self.k, self.replicates, *iterations)
        return parse(rscript(str(SCRIPT), task, str(self.folder), *map(str, sizes)))


def parse(text: str) -> list[tuple[str, list[float]]]:
    """Lines `name number number ...`."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return [(name, [float(value) for value in values]) for name, *values in rows]


def versions() -> dict[str, str]:
    """Versions of R and flexmix; Unavailable, with the command that installs them, where one is missing."""
    if shutil.which("Rscript") is None:
        raise Unavailable(f"The benchmark em needs R and its package flexmix, and no Rscript is on the PATH: {INSTALL}")
    try:
        r, flexmix = rscript("-e", VERSIONS).split()
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"The benchmark em needs flexmix, which this R does not have: {INSTALL}") from error
    return {"r": r, "flexmix": flexmix}


def rscript(*arguments: str) -> str:
    """What R printed; its messages go to ours."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(["Rscript", *arguments], capture_output=True, text=True, check=True, env=environment)
    return done.stdout
