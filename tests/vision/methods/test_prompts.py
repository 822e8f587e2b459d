"""Published parameter counts, initial values, and every switch of VAPT."""

import math

import pytest
import torch

from moe_prompt.attention.prompts import AdaptivePrompt, FeatureProjector
from moe_prompt.errors import InputError
from moe_prompt.vision.methods.by_name import METHODS, method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.prompts import VAPT, NoRGa, Prefix, VPTDeep, VPTShallow
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer
from tests.builders.small_vit import pictures, small_vit

RELEASED = [
    ((1, 2, 8), 31_866),
    ((5, 2, 8), 42_418),
    ((10, 2, 8), 55_608),
    ((50, 2, 8), 161_128),
    ((100, 2, 8), 293_028),
    ((200, 2, 8), 556_828),
    ((10, 3, 8), 52_913),
    ((100, 3, 64), 351_599),
]


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        vit = VisionTransformer(VIT_SIZES["vit-b/16"])
    return vit


@pytest.mark.parametrize(("sizes", "count"), RELEASED)
def test_released_counts_of_vapt(base, sizes, count):
    assert Classifier(base, VAPT(*sizes), 2).num_tuned() == count


def test_counts_of_the_other_prompt_methods(base):
    d, layers = 768, 12
    assert Classifier(base, VPTDeep(7), 2).num_tuned() == layers * 7 * d
    assert Classifier(base, VPTShallow(7), 2).num_tuned() == 7 * d
    assert Classifier(base, Prefix(7), 2).num_tuned() == 2 * layers * 7 * d
    assert Classifier(base, NoRGa(7), 2).num_tuned() == 2 * layers * 7 * d + 2 * layers
    paper = Classifier(base, VAPT.paper(7, 3, 5), 2)
    norms = layers * 2 * d  # in the paper's formula, not in its count
    assert paper.num_tuned() - norms == layers * 7 * 12 * 12 + layers * 9 + 2 * 5 * d
    head = Classifier(base, VPTDeep(7), 11).head
    assert sum(p.numel() for p in head.parameters()) == 11 * (d + 1)


def test_official_adaptive_prompts_are_exactly_zero_at_the_start():
    prompting = VAPT(5).prompting(small_vit().config, torch.Generator().manual_seed(0)).train()
    patches = torch.randn(3, 6, 24)
    for block, expert in prompting.experts.items():
        prompts = expert(patches)
        assert prompts.key is prompts.value
        assert bool((prompts.key == 0).all()) == (block != "0")


def test_zero_without_the_residual_would_never_learn():
    """Why the paper's form must not start at zero: the gradient of every adaptive prompt vanishes there."""
    stuck = Classifier(small_vit(), VAPT(5, residual=False), 7).double()
    stuck(pictures()).sin().sum().backward()
    adaptive = [p.grad for n, p in stuck.trainable().items() if n.endswith(("alpha", "w1", "w2"))]
    assert adaptive and all((g == 0).all() for g in adaptive)
    paper = Classifier(small_vit(), VAPT.paper(5), 7).double()
    paper(pictures()).sin().sum().backward()
    assert all((p.grad != 0).any() for n, p in paper.trainable().items() if n.endswith(("alpha", "w1", "w2")))


def test_constant_prompts_start_within_the_released_bound():
    bound = math.sqrt(6 / (3 * 4**2 + 24))
    prompts = VPTDeep(50).prompting(small_vit().config, torch.Generator().manual_seed(0)).experts["1"].expert.p
    assert prompts.abs().max() <= bound and prompts.abs().max() > 0.98 * bound


def adaptive(method):
    return next(m for m in method.prompting(small_vit().config).modules() if isinstance(m, AdaptivePrompt))


def projectors(method):
    return {id(m) for m in method.prompting(small_vit().config).modules() if isinstance(m, FeatureProjector)}


def test_every_switch_of_vapt():
    plain = VAPT(5)
    assert len(plain.prompting(small_vit().config).experts) == 3
    static = [
        not isinstance(e, AdaptivePrompt)
        for e in VAPT(5, static_blocks=2).prompting(small_vit().config).experts.values()
    ]
    assert static == [True, True, False]
    assert isinstance(adaptive(VAPT(5, layer_norm=False)).norm, torch.nn.Identity)
    assert adaptive(VAPT(5, token_bias=False)).bias is None
    assert (adaptive(VAPT(5, zero_init=False)).alpha != 0).all()
    assert not adaptive(VAPT(5, residual=False)).feature_projector.residual
    assert adaptive(VAPT(5, channel_dropout=0.3)).channel_dropout.p == 0.3
    assert adaptive(VAPT(5, projector_dropout=0.4)).feature_projector.dropout.p == 0.4
    assert adaptive(VAPT(5, activation="tanh")).feature_projector.activation.name == "tanh"
    assert VAPT(5, static_dropout=0.2).prompting(small_vit().config).experts["0"].dropout.p == 0.2
    assert (len(projectors(plain)), len(projectors(VAPT(5, shared_projector=False)))) == (1, 2)


def test_ablations_of_vapt_leave_what_their_names_say():
    patches = torch.randn(3, 6, 24)
    options = {"layer_norm": False, "token_bias": False, "zero_init": False, "channel_dropout": 0.0}
    expert = adaptive(VAPT(5, projector=False, convolution=False, **options))
    torch.testing.assert_close(expert(patches).key, expert.alpha @ patches)
    assert {n for n, p in expert.named_parameters() if p.requires_grad} == {"alpha"}
    scaled = adaptive(VAPT(5, learned_scale=True, scale=0.5, **options)).feature_projector.eval()
    z = torch.randn(2, 24)
    torch.testing.assert_close(scaled(z), z + 0.5 * torch.relu(z @ scaled.w1.mT) @ scaled.w2.mT)
    assert "scale" in dict(scaled.named_parameters())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_by_its_name_and_back(name):
    method = method_named(name)
    described = method.to_dict()
    assert described.pop("name") == name and method_named(name, **described) == method


def test_names_options_and_values_are_checked():
    assert method_named("vapt-paper", num_prompts=3) == VAPT.paper(3)
    with pytest.raises(InputError, match="did you mean 'vpt-deep'"):
        method_named("vpt-deap")
    with pytest.raises(InputError, match="option of lora 'num_prompts'"):
        method_named("lora", num_prompts=3)
    for name, option, value in [
        ("vpt-deep", "num_prompts", 0),
        ("vapt", "channel_dropout", 1.0),
        ("lora", "maps", "qo"),
    ]:
        with pytest.raises(InputError, match=r"needs|rate in|takes"):
            method_named(name, **{option: value})
