"""Rows of a study that nobody fitted: errors with known rates, so that what is said of them can be checked."""

import numpy as np
import pandas as pd

from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.running.database import columns_of

NOTES = {
    "limits vpt vpt": {"parameters": 3, "floor": 0.0, "risk_constant": 2.0, "loss_constant": 3.0, "leverage": 5.0},
    "limits vapt vapt": {"parameters": 5, "floor": 0.0, "risk_constant": 7.0, "loss_constant": 11.0, "leverage": 13.0},
    "limits vpt vapt": {"parameters": 5, "floor": 0.23},
    "limits vapt vpt": {"parameters": 3, "floor": 0.011},
}


def planted_rows(study: RateStudy, slope: float = -0.5, over_floor: float = 1.01) -> pd.DataFrame:
    """Loss 3 n^slope, risk 2 n^{2 slope} in matched cells, over_floor times the floor in the others; 10 % scatter."""
    rng, rows = np.random.default_rng(0), []
    for truth in study.truths:
        for estimator in study.contenders:
            for n in study.sizes:
                for replicate in range(study.replicates):
                    scatter = float(np.exp(0.1 * rng.standard_normal()))
                    errors = (
                        {"parameter_loss": 3 * n**slope * scatter, "excess_risk": 2 * n ** (2 * slope) * scatter}
                        | {"efficiency": scatter, "squared_error": 0.5 * scatter / n, "missed": 0}
                        | {"start_parameter_loss": 4.0, "start_excess_risk": 5.0}
                        if truth == estimator
                        else {"excess_risk": NOTES[f"limits {truth} {estimator}"]["floor"] * over_floor}
                        | {"projection_risk": scatter / n, "start_excess_risk": 6.0}
                    )
                    where = {"study": study.key, "truth": truth, "estimator": estimator, "n": n, "replicate": replicate}
                    fitted = {"objective": 1.0, "objective_at_truth": 1.1, "converged": 1, "at_boundary": 0, "steps": 7}
                    told = {"gradient_norm": 1e-9, "offset": 1e-7, "cpu_seconds": 0.01, "message": "converged"}
                    rows.append(dict.fromkeys(columns_of(study.columns)) | where | errors | fitted | told)
    return pd.DataFrame(rows, columns=list(columns_of(study.columns)))
