"""The regression model as a head's row, its parameter vector as a measure, and samples from it."""

import math

import numpy as np
import pytest
import torch

from moe_prompt.attention.gates import Gate, NonlinearResidualGate, SigmoidGate, SoftmaxGate, TopKGate
from moe_prompt.attention.heads import AttentionHeadMoE
from moe_prompt.attention.prompts import (
    AdaptivePrompt,
    ConstantPrompt,
    FeatureProjector,
    FlatAdaptivePrompt,
    PrefixPrompt,
    PromptExpert,
    ReparameterizedPrefix,
)
from moe_prompt.errors import InputError
from moe_prompt.measures.mixing_measure import MixingMeasure
from moe_prompt.models.covariates import Gaussian, Uniform
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Dataset, Population

RANK, ATOMS, DIM, VALUE, SAMPLES, KEY = 2, 3, 5, 7, 11, 13
GRID = (2, 3)
TOKENS = math.prod(GRID)
HEAD_EXPERTS = {
    "constant": lambda seed: ConstantPrompt(ATOMS, DIM, 1.0, seed),
    "prefix": lambda seed: PrefixPrompt(ATOMS, DIM, 1.0, generator=seed),
    "reparameterised": lambda seed: ReparameterizedPrefix(ATOMS, DIM, bound=1.0, generator=seed),
    "flat": lambda seed: FlatAdaptivePrompt(ATOMS, DIM, RANK, num_tokens=TOKENS, generator=seed),
    "adaptive": lambda seed: AdaptivePrompt(
        ATOMS, GRID, FeatureProjector(DIM, RANK, "gelu", True, generator=seed), generator=seed
    ),
}


GATES = {
    "softmax": SoftmaxGate,
    "NoRGa": lambda: NonlinearResidualGate(0.7, 1.3),
    "sigmoid": lambda: SigmoidGate(-1.1),
    "top-2": lambda: TopKGate(2),
}


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def flat_model(bias: bool = True, expert: PromptExpert | None = None) -> RegressionModel:
    rng = np.random.default_rng(1)
    expert = expert or FlatAdaptivePrompt(ATOMS, DIM, RANK)
    frozen = FrozenExperts.random(KEY, DIM, VALUE, rng)
    maps = normal(rng, DIM, DIM), normal(rng, VALUE, DIM)
    return RegressionModel(frozen, expert, *maps, gating_bias=bias)


def theta_of(expert: PromptExpert) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in expert.parameters()])


# -------------------------------------------------------------------------------------------- rows of a head


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("row", [0, 4])
@pytest.mark.parametrize("name", HEAD_EXPERTS)
def test_from_head_is_that_row_of_the_head(name, row, gate):
    rng = np.random.default_rng(0)
    expert = HEAD_EXPERTS[name](torch.Generator().manual_seed(1)).double()
    w_q, w_k, w_v = normal(rng, DIM, KEY), normal(rng, DIM, KEY), normal(rng, DIM, VALUE)
    head = AttentionHeadMoE(w_q, w_k, w_v, expert, gate())
    model = RegressionModel.from_head(head, row, TOKENS, expert, gate=gate(), gating_bias=False)
    tokens = normal(rng, SAMPLES, TOKENS, DIM)
    expected = head(tokens).output[:, row].detach()
    actual = model.mean(theta_of(expert), tokens.flatten(1))
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


# ------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("atoms", [ATOMS, 4])
def test_flatten_is_the_inverse_of_measure(atoms, bias):
    model = flat_model(bias).with_atoms(atoms)
    theta = normal(np.random.default_rng(2), 2, 17, model.num_parameters)
    measure = model.measure(theta)
    assert measure.batch_shape == (2, 17) and measure.num_atoms == atoms
    assert measure.atoms.keys() == {"w1"} and measure.shared.keys() == {"w2"}
    assert model.flatten(measure).equal(theta)
    b, blocks = model.unflatten(theta)
    assert measure.log_weights.equal(b) and all(
        blocks[name].equal({**measure.atoms, **measure.shared}[name]) for name in blocks
    )


@pytest.mark.parametrize("bias", [True, False])
def test_parameter_vector_is_b_then_the_modules_parameters_in_order(bias):
    expert = FlatAdaptivePrompt(ATOMS, DIM, RANK).double()
    model = flat_model(bias, expert)
    theta = torch.cat([torch.arange(ATOMS).double(), theta_of(expert)])[0 if bias else ATOMS :]
    b, blocks = model.unflatten(theta)
    assert b.tolist() == ([0, 1, 2] if bias else [0, 0, 0])
    assert blocks["w1"].equal(expert.w1) and blocks["w2"].equal(expert.w2)
    assert theta[model.slices["w2"]].equal(expert.w2.flatten())


def test_with_atoms_adds_atoms_of_the_same_family():
    """An atom of mass exp(-800) is not there; one split in two of half its mass is the same measure."""
    model = flat_model()
    wide = model.with_atoms(ATOMS + 1)
    assert wide.num_parameters == model.num_parameters + 1 + RANK * DIM and model.num_atoms == ATOMS
    rng = np.random.default_rng(3)
    theta, x = normal(rng, model.num_parameters), normal(rng, SAMPLES, DIM)
    measure = model.measure(theta)

    def widened(log_weights: torch.Tensor, copied: int) -> torch.Tensor:
        atoms = {"w1": torch.cat([measure.atoms["w1"], measure.atoms["w1"][copied, None]])}
        return wide.mean(wide.flatten(MixingMeasure(log_weights, atoms, measure.shared)), x)

    f, b = model.mean(theta, x), measure.log_weights
    assert torch.allclose(widened(torch.cat([b, b.new_tensor([-800.0])]), 1), f, rtol=1e-13, atol=1e-13)
    half = b.clone()
    half[1] -= math.log(2)
    assert torch.allclose(widened(torch.cat([half, half[1:2]]), 1), f, rtol=1e-13, atol=1e-13)
    assert not torch.allclose(widened(torch.cat([b, b[1:2]]), 1), f, rtol=1e-3)


def test_mean_and_jacobian_have_the_shapes_they_state():
    model = flat_model()
    rng = np.random.default_rng(4)
    theta, x = normal(rng, 2, 17, model.num_parameters), normal(rng, SAMPLES, DIM)
    many = model.mean(theta, x)
    assert many.shape == (2, 17, SAMPLES, VALUE)
    assert many[1, 7].equal(model.mean(theta[1, 7], x))
    assert model.jacobian(theta[1, 7], x).shape == (SAMPLES, VALUE, model.num_parameters)


def test_the_gate_is_held_fixed_and_the_callers_stays_learnable():
    gate = NonlinearResidualGate(0.5, 2.0)
    model = flat_model()
    held = RegressionModel(model.frozen, model.expert, model.key_map, model.value_map, gate)
    assert all(p.requires_grad for p in gate.parameters())
    assert not any(p.requires_grad for p in held.gate.parameters())


# ---------------------------------------------------------------------------------------------- samples


def population(noise: float, seed: int = 5) -> Population:
    model = flat_model()
    return Population(model, normal(np.random.default_rng(seed), model.num_parameters), Uniform(-2.0, 1.0, DIM), noise)


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(np.random.SeedSequence(0, spawn_key=(k,))) for k in range(count)]


def test_sample_is_the_mean_plus_noise_of_the_stated_size():
    """6.6 standard errors: false alarm below 1e-10 for mean and for variance, in 7 x 3 x 1009 residuals."""
    truth = population(0.3)
    data = truth.sample(1009, generators(3))
    assert data.x.shape == (3, 1009, DIM) and data.y.shape == (3, 1009, VALUE) and len(data) == 3 and data.n == 1009
    residual = torch.stack([data.y[k] - truth.model.mean(truth.theta, data.x[k]) for k in range(3)]) / 0.3
    count = residual.numel()
    assert abs(residual.mean()) < 6.6 / math.sqrt(count)
    assert abs(residual.square().mean() - 1) < 6.6 * math.sqrt(2 / count)
    assert not residual[0].equal(residual[1])


def test_a_replicate_depends_on_its_own_generator_only():
    truth = population(0.3)
    data, alone = truth.sample(17, generators(3)), truth.sample(17, generators(3)[2:])
    assert data.x[2].equal(alone.x[0]) and torch.allclose(data.y[2], alone.y[0], rtol=1e-13, atol=1e-13)


def test_without_noise_a_sample_is_the_truth():
    truth = population(0.0)
    data = truth.sample(17, generators(2))
    assert torch.allclose(data.y[1], truth.model.mean(truth.theta, data.x[1]), rtol=1e-13, atol=1e-13)


def test_noiseless_integrates_as_its_covariates_do():
    """sum_m w_m y_m against a plain average of f over 2e5 draws: 6.6 standard errors, false alarm below 1e-9."""
    truth = population(0.5)
    data = truth.noiseless(4096)
    assert len(data) == 1 and data.weights is not None and abs(data.weights.sum() - 1) < 1e-12
    f = truth.model.mean(truth.theta, truth.covariates.sample(200_000, np.random.default_rng(6)))
    error = (data.weights @ data.y[0] - f.mean(0)).abs()
    assert bool((error < 6.6 * f.std(0) / math.sqrt(len(f))).all())


# ----------------------------------------------------------------------------------------------- borders


def test_frozen_experts_have_scores_and_values_of_order_one():
    frozen = FrozenExperts.random(KEY, DIM, VALUE, np.random.default_rng(7))
    x = Gaussian(DIM).sample(1009, np.random.default_rng(8)).mT[None]
    scores = frozen.scores(x)
    mean = frozen.mean(scores.softmax(1), x)
    by_hand = torch.einsum("din,jde,ein->ijn", x.movedim(1, 0), frozen.quadratic, x.movedim(1, 0))
    assert torch.allclose(scores, by_hand + frozen.constant[:, None], rtol=1e-12, atol=1e-12)
    assert scores.shape == (1, KEY, 1009) and mean.shape == (1, VALUE, 1009)
    assert 0.3 < scores.std() < 3 and 0.1 < mean.std() < 3


def bad_dataset(name: str, value: float) -> dict[str, torch.Tensor]:
    arrays = {"x": torch.zeros(2, 7, 3).double(), "y": torch.zeros(2, 7, 5).double()}
    arrays[name][1, 3, 2] = value
    return arrays


class OwnGate(Gate):
    """A gate that does not say how a regression model mixes under it."""

    def forward(self, pretrained_scores, prompt_scores, log_weights=None):
        return torch.cat([pretrained_scores, prompt_scores], -1)


SENTENCES = {
    "gate": (
        lambda: RegressionModel(*flat_parts(), gate=OwnGate()),
        "OwnGate works in attention heads.* but a regression model",
    ),
    "too few atoms to choose from": (
        lambda: RegressionModel(*flat_parts(), gate=TopKGate(3)).with_atoms(2),
        "needs k <= number of prompts: got k = 3, 2 prompts",
    ),
    "no frozen expert": (
        lambda: FrozenExperts.random(0, DIM, VALUE, np.random.default_rng()),
        "at least one frozen expert: got 0",
    ),
    "theta": (lambda: flat_model().unflatten(torch.zeros(7, 3).double()), "has 43 parameters: got a vector of 3"),
    "x columns": (lambda: flat_model().prepare(torch.zeros(2, 7, 3).double()), "needs 5 columns: got 3"),
    "sample size": (lambda: population(0.1).sample(0, generators(2)), "n >= 1: got 0"),
    "lengths": (
        lambda: Dataset(torch.zeros(2, 7, 3).double(), torch.zeros(2, 5, 3).double()),
        r"got \(2, 7, 3\) and \(2, 5, 3\)",
    ),
    "NaN in x": (lambda: Dataset(**bad_dataset("x", math.nan)), "1 values of x are NaN or infinite"),
    "infinity in y": (lambda: Dataset(**bad_dataset("y", math.inf)), "1 values of y are NaN or infinite"),
    "negative weight": (lambda: weighted([1.0, -1.0, 2.0]), "weights must be .* got shape \\(3,\\), least -1"),
    "NaN weight": (lambda: weighted([1.0, math.nan, 2.0]), "got shape \\(3,\\), least nan"),
    "number of weights": (lambda: weighted([1.0, 2.0]), "weights must be 3 .* got shape \\(2,\\), least 1"),
    "row": (
        lambda: RegressionModel.from_head(
            AttentionHeadMoE(*[torch.eye(3).double()] * 3), 7, 2, ConstantPrompt(ATOMS, 3)
        ),
        "0..1: got 7",
    ),
}


def weighted(weights: list[float]) -> Dataset:
    return Dataset(torch.zeros(2, 3, 5).double(), torch.zeros(2, 3, 7).double(), torch.tensor(weights).double())


def flat_parts() -> tuple:
    model = flat_model()
    return model.frozen, model.expert, model.key_map, model.value_map


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("case", SENTENCES)
def test_misuse_is_answered_in_one_sentence(case):
    misuse, sentence = SENTENCES[case]
    with pytest.raises(InputError, match=sentence) as caught:
        misuse()
    assert "\n" not in str(caught.value)


def test_no_atoms_are_refused():
    with pytest.raises(InputError, match="at least one atom: got 0"):
        flat_model().with_atoms(0)
