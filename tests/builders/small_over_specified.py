"""Over-specified studies of seconds: in the plane, one frozen expert, splits that show and splits that do not."""

import numpy as np
import torch

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt, PrefixPrompt
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.over_specified.newton import NewtonLeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.kinds.over_specified import OverSpecifiedStudy

DIM, OUTPUTS, NODES, NOISE = 2, 3, 11**2, 0.05
rng = np.random.default_rng(4)
frozen = FrozenExperts.random(1, DIM, OUTPUTS, rng)
key_map, value_map = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
experts = {
    "VPT, L = 1": ConstantPrompt(1, DIM),
    "VPT, L = 2": ConstantPrompt(2, DIM),
    "VAPT, L = 1": FlatAdaptivePrompt(1, DIM, 1, "tanh"),
    "prefix, L = 1": PrefixPrompt(1, DIM),
}


FAMILIES = {name: name.rsplit(", ", 1)[0] for name in experts}


def truth(expert, family: str | None = None) -> Population:
    model = RegressionModel(frozen, expert, key_map, value_map)
    theta = torch.from_numpy(np.random.default_rng(5).uniform(-1.5, 1.5, model.num_parameters))
    return Population(model, theta, Uniform(-2.0, 2.0, DIM), NOISE, family)


study = OverSpecifiedStudy(
    name="small-over",
    claim="splits that show fall with n",
    truths={name: truth(expert, FAMILIES[name]) for name, expert in experts.items()},
    smooth=("VPT, L = 1", "VPT, L = 2", "VAPT, L = 1"),
    sizes=(67, 211),
    replicates=3,
    window=(67, 211),
    estimator=NewtonLeastSquares(first=LeastSquares(box=3.0), keep=2),
    starts=Random(count=7),
    nodes=NODES,
)
