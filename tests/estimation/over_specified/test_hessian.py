"""sum_i w_i r_i d2 f(x_i) against differences of the gradient that the Gram matrix holds, family by family."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from moe_prompt.attention import prompts as experts
from moe_prompt.attention.activations import ACTIVATIONS, Activation
from moe_prompt.attention.gates import NonlinearResidualGate, SigmoidGate, SoftmaxGate
from moe_prompt.errors import InputError
from moe_prompt.estimation.normal_equations import Problem
from moe_prompt.estimation.over_specified import hessian as module
from moe_prompt.estimation.over_specified.hessian import second_order
from moe_prompt.models.atoms import atom_places
from moe_prompt.models.regression import FrozenExperts, RegressionModel
from moe_prompt.theory.families import FAMILIES

DIM, OUTPUTS, ATOMS, REPLICATES, STARTS = 3, 5, 3, 3, 2
WIDTH = 256  # the least that a chunk holds
LONG, SHORT = 2 * WIDTH + 89, 97  # three pieces of one problem; two problems to a piece


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)


class Scaled(experts.ConstantPrompt):
    """A user's expert: value and key bend in their own parameters, and a map of its own is shared."""

    shared = ("mix",)

    def __init__(self, num_prompts: int, dim: int) -> None:
        super().__init__(num_prompts, dim)
        self.mix = torch.nn.Parameter(torch.eye(dim))

    def forward(self, tokens):
        key, value = super().forward(tokens)
        return experts.PromptTokens(key * torch.cos(key), torch.tanh(value @ self.mix) * tokens.mean(-1, keepdim=True))


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def model_of(expert: experts.PromptExpert, dim: int = DIM, values: int = DIM, **options) -> RegressionModel:
    rng = np.random.default_rng(3)
    frozen = FrozenExperts.random(2, dim * options.get("num_tokens", 1), OUTPUTS, rng)
    rows = dim * options.get("num_tokens", 1)
    return RegressionModel(frozen, expert, normal(rng, rows, dim), normal(rng, OUTPUTS, values), **options)


def problem_of(model: RegressionModel, n: int, weighted: bool = False) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """Residuals of order one; theta of some problems, one left out, and their indices."""
    rng = np.random.default_rng(n)
    x, y = normal(rng, REPLICATES, n, len(model.key_map)), normal(rng, REPLICATES, model.outputs, n)
    weights = torch.from_numpy(rng.uniform(0.2, 2, n)) if weighted else None
    index = torch.from_numpy(np.sort(rng.permutation(REPLICATES * STARTS)[:-1]))
    theta = 0.7 * normal(rng, len(index), model.num_parameters)
    return Problem(model, model.prepare(x), y, weights, STARTS), theta, index


def by_differences(problem: Problem, theta: torch.Tensor, index: torch.Tensor, h: float = 1e-4) -> torch.Tensor:
    """d(J'r) - J'J with differences of fourth order: errors of h^4 and of rounding / h."""
    gradient: Callable = lambda t: problem.gram(t, index)[:, :-1, -1]  # noqa: E731
    columns = []
    for one in torch.eye(theta.shape[1], dtype=torch.float64) * h:
        near = gradient(theta + one) - gradient(theta - one)
        far = gradient(theta + 2 * one) - gradient(theta - 2 * one)
        columns.append((8 * near - far) / (12 * h))
    return torch.stack(columns, 2) - problem.gram(theta, index)[:, :-1, :-1]


def assert_second_order(model: RegressionModel, n: int = SHORT, weighted: bool = False, h: float = 1e-4) -> None:
    problem, theta, index = problem_of(model, n, weighted)
    actual, expected = second_order(problem, theta, index), by_differences(problem, theta, index, h)
    assert actual.shape == expected.shape
    size = expected.abs().amax((1, 2))
    assert bool((size > 0.1).all())  # there is something to compare
    gram = problem.gram(theta, index)[:, :-1, :-1].abs().amax((1, 2))
    assert bool(((actual - expected).abs().amax((1, 2)) <= 1e-9 * (size + gram)).all())
    assert torch.allclose(actual, actual.mT, rtol=0, atol=1e-12 * float(size.max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_the_table(name):
    h = 1e-5 if "relu" in name else 1e-4  # a step that carries no sample over a kink
    assert_second_order(FAMILIES[name].build().model.with_atoms(ATOMS), h=h)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["VAPT", "linear gate"])
def test_every_activation(kind, name):
    flat = kind == "VAPT"
    expert = experts.FlatAdaptivePrompt(2, DIM, 2, name) if flat else experts.LinearGateExpert(2, DIM, DIM, name)
    assert_second_order(model_of(expert), h=1e-5 if name == "relu" else 1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_norga_with_every_activation(name):
    expert = experts.FlatAdaptivePrompt(2, DIM, 2)
    model = model_of(expert, gate=NonlinearResidualGate(0.8, 1.3, name))
    assert_second_order(model, h=1e-5 if name in ("relu", "square") else 1e-4)  # exp(square): it bends fast


EXPERTS = {
    "VPT": lambda: experts.ConstantPrompt(ATOMS, DIM),
    "prefix": lambda: experts.PrefixPrompt(ATOMS, DIM),
    "VAPT": lambda: experts.FlatAdaptivePrompt(ATOMS, DIM, 2),
    "linear gate": lambda: experts.LinearGateExpert(ATOMS, DIM, DIM),
    "user's": lambda: Scaled(ATOMS, DIM),
}


@pytest.mark.parametrize("gate", [SoftmaxGate, lambda: NonlinearResidualGate(0.6, 1.2)], ids=["softmax", "NoRGa"])
@pytest.mark.parametrize("bias", [True, False], ids=["b free", "b = 0"])
@pytest.mark.parametrize("name", EXPERTS)
def test_with_weights_and_without_log_weights(name, bias, gate):
    assert_second_order(model_of(EXPERTS[name](), gating_bias=bias, gate=gate()), weighted=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["VPT", "VAPT"])
def test_pieces_of_a_sample_add_up(name, weighted):
    assert_second_order(model_of(EXPERTS[name]()), n=LONG, weighted=weighted)


def test_pieces_are_several(monkeypatch):
    """What the other tests rely on: two problems together in the short sample, three pieces of the long one."""
    seen = []
    monkeypatch.setattr(
        module.Atoms, "blocks", lambda self, at, y, scale: seen.append(tuple(y.shape)) or torch.zeros(
            len(y), ATOMS, ATOMS, DIM + 1, DIM + 1, dtype=torch.float64
        )
    )  # fmt: skip
    for n, expected in ((SHORT, [(2, OUTPUTS, SHORT)] * 2 + [(1, OUTPUTS, SHORT)]), (LONG, None)):
        seen.clear()
        second_order(*problem_of(model_of(EXPERTS["VPT"]()), n))
        assert seen == (expected or [(1, OUTPUTS, WIDTH), (1, OUTPUTS, WIDTH), (1, OUTPUTS, 89)] * 5)


def test_chunks_do_not_change_the_sum(monkeypatch):
    problem, theta, index = problem_of(model_of(EXPERTS["VAPT"]()), LONG, True)
    small = second_order(problem, theta, index)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1 << 24)
    assert torch.allclose(second_order(problem, theta, index), small, rtol=0, atol=1e-12 * float(small.abs().max()))


def test_tokens_and_an_experts_shared_modules():
    """VAPT as released, four tokens: every parameter but one is shared, and names have dots."""
    projector = experts.FeatureProjector(DIM, 2, "tanh", residual=True)
    expert = experts.AdaptivePrompt(ATOMS, (2, 2), projector, kernel_size=1, layer_norm=True, token_bias=True).double()
    assert_second_order(model_of(expert, num_tokens=4))
    flat = experts.FlatAdaptivePrompt(ATOMS, DIM, 2, num_tokens=2)
    assert_second_order(model_of(flat, num_tokens=2))


def test_an_activation_of_the_users_own():
    sine = Activation("sine", torch.sin, lambda z, _: torch.cos(z), odd=True)
    assert_second_order(model_of(experts.FlatAdaptivePrompt(2, DIM, 2, sine)))
    assert_second_order(
        model_of(experts.LinearGateExpert(2, DIM, DIM, sine), gate=NonlinearResidualGate(0.7, 0.9, sine))
    )


def test_places_of_an_atoms_coordinates():
    """Log-weight, own parameters, shared ones; every parameter is somewhere, shared ones with every atom."""
    model = model_of(experts.FlatAdaptivePrompt(ATOMS, DIM, 2))
    places = atom_places(model)
    theta = torch.arange(model.num_parameters)
    assert places[:, 0].tolist() == list(range(ATOMS))
    w1, w2 = (theta[model.slices[name]] for name in ("w1", "w2"))
    for j in range(ATOMS):
        assert places[j, 1:7].tolist() == w1.reshape(ATOMS, 6)[j].tolist() and places[j, 7:].equal(w2)


def test_other_gates_are_refused():
    problem, theta, index = problem_of(model_of(EXPERTS["VPT"](), gate=SigmoidGate()), SHORT)
    with pytest.raises(InputError, match="second-order term needs an exponential gate"):
        second_order(problem, theta, index)
