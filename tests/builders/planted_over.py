"""Rows that nobody fitted, of an over-specified study and of a study of no kind: errors of known rates."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from moe_prompt.studies.base import Quantity, Relation, Study
from moe_prompt.studies.kinds.over_specified import OverLimits, OverSpecifiedStudy
from moe_prompt.studies.running.database import columns_of
from tests.builders.small_over_specified import study as small

SIZES, REPLICATES = (67, 211, 683), 40
over = replace(small, sizes=SIZES, replicates=REPLICATES, window=(67, 683))
POWERS = {"parameter_loss": -0.5, "split_error": -0.25, "first_moment_error": -0.5, "function_error": -0.5}
CONSTANTS = {"parameter_loss": 3.0, "split_error": 2.0, "first_moment_error": 5.0, "function_error": 0.7}
NOTES = {
    f"limits {truth} {estimator}": OverLimits(8, 0.05, 0.3, 0.3, 2.5, 2.4, 4.0, 0.7).to_dict()
    if truth in over.smooth
    else OverLimits(8, 0.05).to_dict()
    for truth, estimator in over.cells
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Plain(Study):
    """A study of no kind that the package knows: one cell, one number with a prediction, one without."""

    cells = (("coin", "average"),)
    content = "plain"
    columns = {"miss": "REAL", "spread": "REAL"}  # noqa: RUF012 - not a field

    def quantities(self, truth: str, estimator: str) -> tuple[Quantity, ...]:
        return (
            Quantity("miss", "distance", -0.5, "size", prediction="law of the coin"),
            Quantity("spread", "range", statistic="median"),
        )

    def relation(self, truth: str, estimator: str) -> Relation:
        return Relation(1, 1, True)

    def limits(self, truth: str, estimator: str) -> OverLimits:
        return OverLimits(1, 1.0)

    def fit_batch(self, truth, estimator, n, replicates, limits):
        raise NotImplementedError


plain = Plain(name="plain", claim="averages settle", sizes=SIZES, replicates=REPLICATES, window=(67, 683))
PLAIN_NOTES = {"limits coin average": {"size": 4.0}}


def row(study: Study, truth: str, estimator: str, n: int, replicate: int, judged: dict) -> dict:
    where = {"study": study.key, "truth": truth, "estimator": estimator, "n": n, "replicate": replicate}
    fitted = {"objective": 1.0, "converged": 1, "at_boundary": int(replicate == 0), "steps": 7, "gradient_norm": 1e-9}
    told = {"offset": 1e-7, "cpu_seconds": 0.01, "message": "converged"}
    return dict.fromkeys(columns_of(study.columns)) | where | judged | fitted | told


def planted_over(study: OverSpecifiedStudy = over, held: float = 1.0) -> pd.DataFrame:
    """CONSTANTS n^POWERS with 10 % scatter; where no law is known the split and D stay, and end `held` times higher.

    In the first replicate of every size the fit ends on the box, and at the first size of each cell it misses.
    """
    rng, rows = np.random.default_rng(0), []
    for truth, estimator in study.cells:
        for n in study.sizes:
            for replicate in range(study.replicates):
                judged = {}
                for name, power in POWERS.items():
                    level = truth not in study.smooth and name in ("split_error", "parameter_loss")
                    power = np.log(held) / np.log(study.sizes[-1] / study.sizes[0]) if level else power
                    judged[name] = CONSTANTS[name] * n**power * float(np.exp(0.1 * rng.standard_normal()))
                missed = int(replicate == 0 and n == study.sizes[0])
                judged |= {"least_mass": 0.1, "objective_at_truth": 1.1, "missed": missed, "escaped": 1}
                rows.append(row(study, truth, estimator, n, replicate, judged))
    return pd.DataFrame(rows, columns=list(columns_of(study.columns)))


def planted_plain() -> pd.DataFrame:
    """A miss of 4 n^-1/2 with 10 % scatter, a spread that is 2 whatever n."""
    rng = np.random.default_rng(1)
    rows = [
        row(
            plain,
            "coin",
            "average",
            n,
            r,
            {"miss": 4 * n**-0.5 * float(np.exp(0.1 * rng.standard_normal())), "spread": 2.0},
        )
        for n in SIZES
        for r in range(REPLICATES)
    ]
    return pd.DataFrame(rows, columns=list(columns_of(plain.columns)))
