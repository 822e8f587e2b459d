"""Gates that are not exponential: what their functions share with a measure, and what is refused for them.

Their functions and Jacobians are tested with all others, in test_families and test_regression.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_prompt.attention.gates import ExponentialGate, Gate, SigmoidGate, SoftmaxGate, TopKGate
from moe_prompt.attention.heads import AttentionHeadMoE
from moe_prompt.attention.prompts import ConstantPrompt, PrefixPrompt
from moe_prompt.errors import InputError
from moe_prompt.estimation.least_squares import LeastSquares
from moe_prompt.estimation.starts import NearTruth
from moe_prompt.models.covariates import Uniform
from moe_prompt.models.gating import Mixed, Mixing
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.studies.fingerprint import fingerprint
from moe_prompt.theory.bad_sequences import free_values
from moe_prompt.theory.identifiability import cramer_rao
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import sigma_2
from moe_prompt.theory.split_distance import split_distance
from tests.builders.truths import described

DIM, OUTPUTS, ATOMS = 3, 2, 3


def setting(gate, expert=PrefixPrompt, atoms: int = ATOMS, seed: int = 0) -> tuple[RegressionModel, torch.Tensor]:
    rng = np.random.default_rng(seed)
    value = {"value_dim": OUTPUTS} if expert is PrefixPrompt else {}
    c = torch.eye(OUTPUTS).double() if value else torch.from_numpy(rng.standard_normal((OUTPUTS, DIM)))
    frozen = FrozenExperts.random(2, DIM, OUTPUTS, rng)
    model = RegressionModel(frozen, expert(atoms, DIM, **value), torch.eye(DIM).double(), c, gate)
    return model, torch.from_numpy(rng.standard_normal(model.num_parameters))


def points(n: int = 101, seed: int = 1) -> torch.Tensor:
    return Uniform(-2.0, 2.0, DIM).sample(n, np.random.default_rng(seed))


def widened(model, theta, change) -> tuple[RegressionModel, torch.Tensor]:
    """One atom more, a copy of atom 0 as the last, then `change(b, blocks)` in place."""
    more, (b, blocks) = model.with_atoms(model.num_atoms + 1), model.unflatten(theta)
    copied = {"b": torch.cat([b, b[:1]]), **{name: torch.cat([v, v[:1]]) for name, v in blocks.items()}}
    change(copied)
    return more, torch.cat([copied[name].flatten() for name in more.shapes])


def moved(model, theta, change) -> float:
    """max |f_G - f_*| after `change`."""
    more, other = widened(model, theta, change)
    return float((more.mean(other, points()) - model.mean(theta, points())).abs().max())


# ----------------------------------------------------------------------------------------------- sigmoid


def halve_the_mass(at):
    at["b"][[0, -1]] -= math.log(2)


def share_the_value(at):
    share = torch.tensor([1.7, -0.4]).double()
    at["value"][0], at["value"][-1] = share * at["value"][0], (1 - share) * at["value"][0]


def test_halves_of_a_mass_are_an_atom_under_softmax_and_not_under_the_sigmoid():
    assert moved(*setting(SoftmaxGate()), halve_the_mass) < 1e-14
    assert moved(*setting(SigmoidGate()), halve_the_mass) > 1e-2


def test_shares_of_a_value_are_an_atom_under_the_sigmoid_and_not_under_softmax():
    assert moved(*setting(SigmoidGate()), share_the_value) < 1e-14
    assert moved(*setting(SoftmaxGate()), share_the_value) > 1e-2


@pytest.mark.parametrize("b", [-3.0, 0.0, 3.0])
def test_an_atom_of_no_value_may_be_anywhere_under_the_sigmoid(b):
    def empty(at):
        at["b"][-1], at["p"][-1] = b, 0.0

    assert moved(*setting(SigmoidGate(), ConstantPrompt), empty) < 1e-14
    assert moved(*setting(SoftmaxGate(), ConstantPrompt), empty) > 1e-3


def test_a_mirror_image_with_a_constant_beside_it_is_an_atom_under_the_sigmoid():
    """v sigma(b) + (-v) sigma(-z) -> v sigma(z), at the speed e^{-b}: VPT has -v at -p."""

    def mirrored(bias):
        def change(at):
            at["b"][-1], at["p"][-1] = -at["b"][0], -at["p"][0]
            at["b"][0] = bias

        return change

    model, theta = setting(SigmoidGate(), ConstantPrompt)
    far, near = moved(model, theta, mirrored(12.0)), moved(model, theta, mirrored(20.0))
    assert near < 1e-6 and math.log(far / near) == pytest.approx(8, abs=0.01)
    assert moved(*setting(SoftmaxGate(), ConstantPrompt), mirrored(20.0)) > 1e-2


def test_the_bias_of_the_gate_is_a_shift_of_every_score():
    model, theta = setting(SigmoidGate(0.7))
    shifted = replace(model, gate=SigmoidGate(), frozen=replace(model.frozen, constant=model.frozen.constant + 0.7))
    other = theta.clone()
    other[model.slices["b"]] += 0.7
    assert torch.allclose(model.mean(theta, points()), shifted.mean(other, points()), rtol=1e-13, atol=1e-13)


def test_least_squares_is_efficient_under_the_sigmoid():
    """n / s^2 (error)^T I (error) is chi-squared: the mean of 40 within 5 standard errors of p, false alarm 1e-6."""
    model, theta = setting(SigmoidGate(-1.0), ConstantPrompt, seed=3)
    truth = Population(model, theta, Uniform(-2.0, 2.0, DIM), 0.01)
    rngs = [np.random.default_rng((5, k)) for k in range(40)]
    data = truth.sample(1009, rngs)
    fit = LeastSquares().fit(model, data, NearTruth(0.1, 1).starts(model, theta, rngs))
    assert bool(fit.converged.all())
    error = fit.theta - theta
    info = LocalGeometry(model, theta, truth.covariates).information
    squared = 1009 / 0.01**2 * torch.einsum("kp,pq,kq->k", error, info, error)  # chi-squared with p degrees
    p = model.num_parameters
    assert abs(float(squared.mean()) - p) < 5 * math.sqrt(2 * p / 40)
    assert cramer_rao(info, 0.01, 1009).isfinite().all()


# ------------------------------------------------------------------------------------------------- top-K


def test_f_jumps_where_the_choice_changes_by_the_difference_of_two_values():
    """On either side of the plane on which first and second score are equal, 1e-9 apart."""
    model, theta = setting(TopKGate(1), atoms=2)
    b, blocks = model.unflatten(theta)
    normal, offset = blocks["key"][0] - blocks["key"][1], b[0] - b[1]
    x = points(7)
    on = x - ((x @ normal + offset) / normal.square().sum())[:, None] * normal
    sides = [model.mean(theta, on + sign * 1e-9 * normal) for sign in (1, -1)]
    score = on @ blocks["key"][0] + b[0]
    frozen = torch.einsum("ni,jik,nk->nj", on, model.frozen.quadratic, on) + model.frozen.constant
    g = torch.cat([frozen, score[:, None]], 1).softmax(1)[:, -1]
    jump = g[:, None] * (blocks["value"][0] - blocks["value"][1])
    assert torch.allclose(sides[0] - sides[1], jump, atol=1e-7) and float(jump.abs().max()) > 0.1


@pytest.mark.parametrize(("gate", "power"), [(TopKGate(1), 1), (SoftmaxGate(), 2)])
def test_the_squared_distance_is_of_the_order_of_a_step_that_moves_the_boundary(gate, power):
    """E |f_{theta + h} - f_theta|^2 along b_0 - b_1, h and h / 8; 4e5 points, 3 % noise where the power is 1."""
    model, theta = setting(gate, atoms=2)
    x, step = points(400_000), torch.zeros_like(theta)
    step[0], step[1] = 1.0, -1.0
    far, near = (
        float((model.mean(theta + h * step, x) - model.mean(theta, x)).square().sum(1).mean()) for h in (8e-3, 1e-3)
    )
    assert math.log(far / near, 8) == pytest.approx(power, abs=0.08)


def test_what_is_not_chosen_does_not_move_f():
    model, theta = setting(TopKGate(2))
    x = points()
    b, blocks = model.unflatten(theta)
    last = (x @ blocks["key"].mT + b).argmin(1)
    rows = model.jacobian(theta, x)
    for name in ("b", "key", "value"):
        block = rows[..., model.slices[name]].unflatten(-1, model.shapes[name])
        chosen = torch.ones(len(x), ATOMS, dtype=torch.bool).scatter(1, last[:, None], False)
        by_atom = block.movedim(2, 1).flatten(2).abs().amax(-1)  # (n, atoms)
        assert bool((by_atom[~chosen] == 0).all()) and bool((by_atom[chosen] > 0).all())


# -------------------------------------------------------------------------------------- borders and content


def test_content_tells_gates_and_their_options_apart():
    gates = [SoftmaxGate(), SigmoidGate(), SigmoidGate(-1.0), TopKGate(1), TopKGate(2)]
    assert len({fingerprint(setting(gate)[0]) for gate in gates}) == len(gates)
    assert fingerprint(setting(TopKGate(2))[0]) == fingerprint(setting(TopKGate(2))[0])


@pytest.mark.parametrize(("gate", "why"), [(SigmoidGate(), "two sigmoids never add up"), (TopKGate(1), "f jumps")])
@pytest.mark.parametrize(
    "ask",
    [
        lambda model, theta: sigma_2(LocalGeometry(model, theta, Uniform(-1.0, 1.0, DIM))),
        lambda model, theta: split_distance(LocalGeometry(model, theta, Uniform(-1.0, 1.0, DIM)), 0, 0.1),
        free_values,
    ],
)
def test_what_is_derived_for_exponential_gates_is_refused_for_others(gate, why, ask):
    with pytest.raises(InputError, match=rf"needs an exponential gate .* got {type(gate).__name__}.*{why}"):
        ask(*setting(gate))


def test_limits_under_the_sigmoid_are_the_exact_ones_and_say_why_no_others():
    report = described(*setting(SigmoidGate(), ConstantPrompt), Uniform(-2.0, 2.0, DIM).nodes(125))
    assert (report.rate_exact, report.rate, report.rank) == ("n^-1/2", "-", 12)
    assert "SigmoidGate: two sigmoids never add up to one" in report.reason


def test_there_are_no_limits_under_top_k():
    with pytest.raises(InputError, match="under a top-K gate f jumps"):
        described(*setting(TopKGate(1)), Uniform(-2.0, 2.0, DIM).nodes(125))


# ---------------------------------------------------------------------------------------- a user's own gates


class Squashed(ExponentialGate):
    """A softmax whose prompts' scores saturate."""

    def link(self, scores):
        squashed = 2 * torch.tanh(scores / 2)
        return squashed, 1 - (squashed / 2).square()


class ApartMixing(Mixing):
    def frozen(self, scores):
        return scores[:, :0], scores.softmax(1)

    def mix(self, score, b, value, log_frozen, frozen_mean):
        g = self.gate.share * (score + b).softmax(1)[:, :, None]
        return Mixed((g * value).sum(1) + frozen_mean, g)

    def seeds(self, value, mixed):
        own = (mixed.g * value).sum(1, keepdim=True) / self.gate.share
        moved = mixed.g * (value - own)
        return moved, moved


class Apart(Gate):
    """Prompts compete among themselves only; what they say is added, times `share`."""

    share = 0.7

    def forward(self, pretrained_scores, prompt_scores, log_weights=None):
        shifted = prompt_scores if log_weights is None else prompt_scores + log_weights
        return torch.cat([pretrained_scores.softmax(-1), self.share * shifted.softmax(-1)], -1)

    def mixing(self):
        return ApartMixing(self)


class Doubled(SigmoidGate):
    def forward(self, *scores):
        return 2 * super().forward(*scores)


class Confused(Doubled):
    def mixing(self):
        return "as its parent"


@pytest.mark.parametrize("gate", [Squashed(), Apart()], ids=["exponential", "with mixing()"])
def test_a_users_gate_mixes_as_it_weighs_and_has_its_jacobian(gate):
    """f against the gate's own forward, one point after the other; the Jacobian against central differences."""
    model, theta = setting(gate)
    b, blocks = model.unflatten(theta)
    x = points(11)
    for row, found in zip(x, model.mean(theta, x), strict=True):
        frozen = torch.stack([row @ a @ row for a in model.frozen.quadratic]) + model.frozen.constant
        weights = gate(frozen[None], (blocks["key"] @ row)[None], b)[0]
        values = [*(eta @ row for eta in model.frozen.values), *blocks["value"]]
        expected = sum(weight * value for weight, value in zip(weights, values, strict=True))
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    jacobian, step = model.jacobian(theta, x), 1e-5
    for i in range(len(theta)):
        ends = [model.mean(theta + sign * step * torch.eye(len(theta)).double()[i], x) for sign in (1, -1)]
        assert torch.allclose(jacobian[..., i], (ends[0] - ends[1]) / (2 * step), atol=1e-8)


def test_a_users_gate_has_limits_as_far_as_it_says():
    exponential = described(*setting(Squashed(), ConstantPrompt), Uniform(-2.0, 2.0, DIM).nodes(125))
    other = described(*setting(Apart(), ConstantPrompt), Uniform(-2.0, 2.0, DIM).nodes(125))
    assert exponential.sigma_2 is not None and exponential.rank == 12
    assert other.rank == 10  # no f knows a common factor of the masses, nor a common shift of all prompts that C loses
    with pytest.raises(InputError, match=r"needs an exponential gate .* got Apart, under which nobody has said"):
        sigma_2(LocalGeometry(*setting(Apart(), ConstantPrompt), Uniform(-1.0, 1.0, DIM)))


def test_a_gate_that_says_nothing_works_in_a_head_and_is_told_why_not_in_regression():
    eye = torch.eye(DIM).double()
    head = AttentionHeadMoE(eye, eye, eye, ConstantPrompt(ATOMS, DIM).double(), Doubled())
    assert bool((head(points(5)).gates.sum(-1) > 2).all())
    with pytest.raises(InputError, match=r"Doubled works in attention heads, .*ExponentialGate.*mixing\(\)"):
        setting(Doubled())
    with pytest.raises(InputError, match=r"Confused.mixing\(\) needs to return .*Mixing: got str"):
        setting(Confused())
