"""f_G of every family against plain loops over samples and experts, its Jacobian against autograd and differences."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from moe_prompt.attention import prompts as experts
from moe_prompt.attention.gates import NonlinearResidualGate, SigmoidGate, SoftmaxGate, TopKGate
from moe_prompt.attention.prompts import PromptExpert, PromptTokens
from moe_prompt.models.experts.autograd import AutogradForm
from moe_prompt.models.experts.constant import ConstantForm
from moe_prompt.models.experts.form_of import form_of
from moe_prompt.models.regression import FrozenExperts, Mixture, RegressionModel

RANK, ATOMS, DIM, OUTPUTS, TOKENS, SAMPLES, VALUE, INPUTS, FROZEN = 2, 3, 5, 7, 11, 13, 17, 19, 23
GRID = (2, 3)
RELATIVE = 1e-12


class Modulated(PromptExpert):
    """A user's expert: what a colleague would write in five lines, with a shared matrix and no closed form."""

    shared = ("mix",)

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(ATOMS, DIM))
        self.mix = nn.Parameter(torch.zeros(VALUE, DIM))

    def forward(self, tokens: experts.Tokens) -> PromptTokens:
        mean = tokens.mean(-2, keepdim=True)
        key = self.a.expand(*tokens.shape[:-2], *self.a.shape)
        return PromptTokens(key, torch.sin(self.a * mean) @ self.mix.mT)


def adaptive() -> experts.AdaptivePrompt:
    return experts.AdaptivePrompt(
        ATOMS, GRID, experts.FeatureProjector(DIM, RANK, "gelu", residual=True, scale=0.7), token_bias=True
    )


# ------------------------------------------------------------------ oracles: one atom, one sample, numpy and loops

SCALAR = {
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "relu": lambda z: max(z, 0.0),
    "linear": lambda z: z,
    "square": lambda z: z * z,
}


def act(name: str, z: np.ndarray) -> np.ndarray:
    return np.array([SCALAR[name](float(v)) for v in z])


def loop_flat(name):
    def prompt(at, j, x):
        p = at["w2"] @ act(name, at["w1"][j] @ x)
        return p, p

    return prompt


def loop_linear_gate(name):
    return lambda at, j, x: (at["beta"][j], act(name, at["eta"][j] @ x))


def loop_reparameterized(expert):
    def prompt(at, j, x):
        w1, w2 = (at[name] if name in at else getattr(expert, name).detach().numpy() for name in ("w1", "w2"))
        return act("tanh", w1 @ at["p"][j]), act("tanh", w2 @ at["p"][j])

    return prompt


def loop_modulated(at, j, x):
    return at["a"][j], at["mix"] @ np.sin(at["a"][j] * x)


def loop_adaptive(at, j, x):
    height, width = GRID
    tokens = x.reshape(height * width, DIM)
    centred = tokens - tokens.mean(1, keepdims=True)
    spread = np.sqrt(tokens.var(1, keepdims=True) + 1e-5)
    tokens = (centred / spread * at["norm.weight"] + at["norm.bias"]).reshape(height, width, DIM)
    z, place = np.full(DIM, at["bias"][j]), 0
    for top in range(height - 1):
        for left in range(width - 1):
            for i in range(2):
                for k in range(2):
                    z += at["alpha"][j, place] * at["kernel"][i, k] * tokens[top + i, left + k]
            place += 1
    p = z + 0.7 * at["feature_projector.w2"] @ act("gelu", at["feature_projector.w1"] @ z)
    return p, p


def cases() -> dict[str, tuple]:
    """Name -> expert, oracle, tokens, D, key features, value features."""
    one = (1, INPUTS, DIM)
    known = experts.ReparameterizedPrefix(ATOMS, DIM, "tanh", generator=torch.Generator().manual_seed(3)).double()
    free = experts.ReparameterizedPrefix(ATOMS, DIM, "tanh", free_maps=True)
    prefix = experts.PrefixPrompt(ATOMS, DIM, value_dim=VALUE)
    out = {
        "constant": (experts.ConstantPrompt(ATOMS, DIM), lambda at, j, x: (at["p"][j], at["p"][j]), *one, DIM),
        "prefix": (prefix, lambda at, j, x: (at["key"][j], at["value"][j]), *one, VALUE),
        "reparameterised": (known, loop_reparameterized(known), *one, DIM),
        "reparameterised, free maps": (free, loop_reparameterized(free), *one, DIM),
        "adaptive": (adaptive(), loop_adaptive, math.prod(GRID), math.prod(GRID) * DIM, DIM, DIM),
        "user's": (Modulated(), loop_modulated, 1, DIM, DIM, VALUE),
    }
    for name in ("tanh", "gelu", "sigmoid", "relu", "linear"):
        flat = experts.FlatAdaptivePrompt(ATOMS, DIM, RANK, name, num_tokens=TOKENS)
        out[f"flat {name}"] = (flat, loop_flat(name), TOKENS, TOKENS * DIM, DIM, DIM)
    for name in ("linear", "tanh", "square"):
        expert = experts.LinearGateExpert(ATOMS, INPUTS, VALUE, name)
        out[f"linear gate {name}"] = (expert, loop_linear_gate(name), 1, INPUTS, INPUTS, VALUE)
    return out


CASES = cases()
CLOSED = [name for name, (expert, *_) in CASES.items() if form_of(expert) is not AutogradForm]
GATES = {
    "softmax": (SoftmaxGate, lambda s: s),
    "NoRGa": (lambda: NonlinearResidualGate(0.7, 1.3), lambda s: s + 0.7 * math.tanh(1.3 * s)),
    "sigmoid": (lambda: SigmoidGate(-0.9), None),
    "top-2": (lambda: TopKGate(2), None),
    "top-3": (lambda: TopKGate(3), None),
}


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def make_model(case: str, gate: str = "softmax", bias: bool = True) -> RegressionModel:
    expert, _, tokens, inputs, key, value = CASES[case]
    rng = np.random.default_rng(1)
    frozen = FrozenExperts.random(FROZEN, inputs, OUTPUTS, rng)
    maps = normal(rng, inputs, key) / math.sqrt(inputs), normal(rng, OUTPUTS, value)
    return RegressionModel(frozen, expert, *maps, GATES[gate][0](), bias, tokens)


def draw(model: RegressionModel, problems: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """theta (problems, p) and x (problems, n, D) of order one."""
    rng = np.random.default_rng(2)
    return 0.6 * normal(rng, problems, model.num_parameters), normal(rng, problems, SAMPLES, len(model.key_map))


def split(model: RegressionModel, theta: torch.Tensor) -> dict[str, np.ndarray]:
    """Parameters by name in the order the model states: b, then as the module lists them."""
    shapes = {"b": (model.num_atoms,)} if model.gating_bias else {}
    for name, p in model.expert.named_parameters():
        shapes[name] = tuple(p.shape) if model.expert.is_shared(name) else (model.num_atoms, *p.shape[1:])
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = np.split(theta.numpy(), ends)
    assert pieces.pop().size == 0
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def loop_mean(model: RegressionModel, theta: torch.Tensor, x: torch.Tensor, case: str, gate: str) -> np.ndarray:
    """f_G (n, outputs), one sample and one expert at a time."""
    at, prompt = split(model, theta), CASES[case][1]
    b = at.get("b", np.zeros(model.num_atoms))
    a, const, eta = (part.numpy() for part in (model.frozen.quadratic, model.frozen.constant, model.frozen.values))
    rows = []
    for xi in x.numpy():
        frozen_scores = [float(xi @ a[j] @ xi + const[j]) for j in range(FROZEN)]
        values, scores = [eta[j] @ xi for j in range(FROZEN)], []
        for j in range(model.num_atoms):
            key, value = prompt(at, j, xi)
            scores.append(float((model.key_map.numpy() @ key) @ xi))
            values.append(model.value_map.numpy() @ value)
        weights = loop_weights(gate, frozen_scores, scores, b.tolist())
        rows.append(sum(w * v for w, v in zip(weights, values, strict=True)))
    return np.stack(rows)


def loop_weights(gate: str, frozen: list[float], scores: list[float], b: list[float]) -> list[float]:
    """The weight of every expert, frozen ones first, from scores alone."""
    if gate == "sigmoid":
        shifted = [s + bj for s, bj in zip(scores, b, strict=True)]
        return [1 / (1 + math.exp(0.9 - s)) for s in [*frozen, *shifted]]
    link = GATES[gate][1] or (lambda s: s)
    logits = [link(s) + bj for s, bj in zip(scores, b, strict=True)]
    if gate.startswith("top"):
        kept = sorted(range(len(logits)), key=lambda j: -logits[j])[: int(gate[-1])]
        logits = [logit if j in kept else -math.inf for j, logit in enumerate(logits)]
    weights = [math.exp(s) for s in [*frozen, *logits]]
    return [w / sum(weights) for w in weights]


def assert_close(actual: torch.Tensor, expected, relative: float = RELATIVE) -> None:
    actual, expected = actual.detach().numpy(), torch.as_tensor(expected).detach().numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= relative * np.abs(expected).max()


# ----------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("case", CASES)
def test_mean_is_the_double_loop(case, gate, bias):
    model = make_model(case, gate, bias)
    theta, x = draw(model)
    mixed = model.at(theta)(model.prepare(x))
    for k in range(2):
        assert_close(mixed[k].mT, loop_mean(model, theta[k], x[k], case, gate))


@pytest.mark.parametrize("case", ["flat tanh", "adaptive", "user's", "reparameterised, free maps"])
def test_number_of_atoms_is_free_whatever_the_expert_was_built_with(case):
    model = make_model(case, "NoRGa").with_atoms(4)
    theta, x = draw(model)
    assert_close(model.mean(theta[1], x[1]), loop_mean(model, theta[1], x[1], case, "NoRGa"))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("case", CLOSED)
def test_closed_form_jacobian_is_autograd(case, gate):
    model = make_model(case, gate)
    theta, x = draw(model)
    prepared = model.prepare(x)
    closed, auto = (torch.full((2, model.num_parameters, OUTPUTS, SAMPLES), math.nan).double() for _ in range(2))
    f = model.at(theta)(prepared, model.blocks(closed))
    b, parameters = model.unflatten(theta)
    differentiated = AutogradForm(model.expert, model.value_map, model.num_tokens, parameters)
    g = Mixture(model.gate, b[..., None], differentiated)(prepared, model.blocks(auto))
    assert_close(f, g)
    assert_close(closed, auto)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("case", CASES)
def test_jacobian_is_the_central_difference(case, gate, bias):
    """Along random unit directions: every entry of J enters. h = 1e-5 leaves an error near 1e-10, h^2 and 1e-16 / h."""
    model = make_model(case, gate, bias)
    theta, x = (part[0] for part in draw(model))
    directions = nn.functional.normalize(normal(np.random.default_rng(3), 11, model.num_parameters))
    ends = model.mean(torch.stack([theta + 1e-5 * directions, theta - 1e-5 * directions]), x)
    slopes = torch.einsum("nop,kp->kno", model.jacobian(theta, x), directions)
    assert_close(slopes, (ends[0] - ends[1]) / 2e-5, 1e-8)


def test_an_experts_subclass_is_differentiated_not_taken_for_its_parent():
    class Doubled(experts.ConstantPrompt):
        def forward(self, tokens):
            key, value = super().forward(tokens)
            return PromptTokens(2 * key, 2 * value)

    assert form_of(experts.ConstantPrompt(2, 3)) is ConstantForm
    model = make_model("constant")
    doubled = RegressionModel(model.frozen, Doubled(ATOMS, DIM), model.key_map, model.value_map)
    theta, x = (part[0] for part in draw(model))
    twice = theta.clone()
    twice[ATOMS:] *= 2
    assert_close(doubled.mean(theta, x), model.mean(twice, x))
    scaled = model.jacobian(twice, x)
    scaled[..., ATOMS:] *= 2
    assert_close(doubled.jacobian(theta, x), scaled)


def test_scores_in_the_hundreds_do_not_overflow():
    """exp(700) is the edge of float64: the softmax is shifted, so weights saturate and nothing is NaN."""
    model = make_model("constant")
    theta, x = (part[0] for part in draw(model))
    theta = theta.clone()
    theta[0] = 2000.0
    f, jacobian = model.mean(theta, x), model.jacobian(theta, x)
    winner = model.value_map @ theta[ATOMS : ATOMS + DIM]
    assert_close(f, winner.expand(SAMPLES, -1))
    assert bool(jacobian.isfinite().all())
