"""A study of seconds, as a user's file defines one: VPT and VAPT in the plane, one prompt each."""

import numpy as np
import torch

from moe_prompt.attention.prompts import ConstantPrompt, FlatAdaptivePrompt
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import Random
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.kinds.rates import RateStudy

DIM, OUTPUTS, NODES = 2, 3, 21**2
rng = np.random.default_rng(2)
frozen = FrozenExperts.random(1, DIM, OUTPUTS, rng)
key_map, value_map = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((DIM, DIM), (OUTPUTS, DIM)))
experts = {"vpt": ConstantPrompt(1, DIM), "vapt": FlatAdaptivePrompt(1, DIM, 1, "tanh")}
models = {name: RegressionModel(frozen, expert, key_map, value_map) for name, expert in experts.items()}
thetas = {"vpt": [0.3, 1.1, -0.7], "vapt": [0.2, 0.9, -1.3, 0.8, 1.2]}  # b, then p or w1 and w2
covariates = Uniform(-2.0, 2.0, DIM)
study = RateStudy(
    name="small",
    claim="errors fall in matched cells and stay in the others",
    truths={
        name: Population(model, torch.tensor(thetas[name], dtype=torch.float64), covariates, 0.05)
        for name, model in models.items()
    },
    contenders=models,
    sizes=(23, 61, 157),
    replicates=5,
    window=(23, 157),
    estimator=LeastSquares(box=4.0),
    starts=Random(count=5),
    nodes=NODES,
    projection_starts=12,
    quick_sizes=(23, 61),
    quick_replicates=3,
)
