"""Prompts as experts against prompts as tokens, on ViT-B/16 and on every gate and pooling of a small ViT."""

import pytest
import torch

from experiments.benchmarks.prompts_as_tokens import PromptsAsTokens
from moe_prompt.attention.gates import NonlinearResidualGate, SigmoidGate, SoftmaxGate, TopKGate, ZeroInitGate
from moe_prompt.attention.heads import AttentionHeadMoE
from moe_prompt.attention.prompts import ConstantPrompt, PrefixPrompt, PromptExpert, PromptTokens
from moe_prompt.errors import InputError
from moe_prompt.vision.methods.base import DeepExperts
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.prompts import VAPT, VPTDeep
from moe_prompt.vision.vit.prompting import BlockPrompts, DeepPrompts, DropoutPrompt, once
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer
from tests.builders.small_vit import SMALL, pictures, small_vit


@pytest.fixture(scope="module")
def base():
    return VisionTransformer(VIT_SIZES["vit-b/16"], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [VPTDeep(7), VAPT(7, zero_init=False)], ids=["vpt-deep", "vapt"])
def test_experts_only_are_token_mode_on_vit_b16(base, method):
    """Logits and gradients of every learned tensor, float32, relative to the largest entry of each: 1e-5."""
    generator = torch.Generator().manual_seed(1)
    ours = Classifier(base, method, 11, generator).eval()
    peer = PromptsAsTokens(ours).eval()
    images = torch.randn(2, 3, 224, 224, generator=generator)
    found = []
    for model in (ours, peer):
        ours.zero_grad()
        logits = model(images)
        torch.nn.functional.cross_entropy(logits, torch.tensor([3, 8])).backward()
        found.append((logits.detach(), {n: p.grad.clone() for n, p in ours.trainable().items()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    for name, gradient in found[0][1].items():
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(gradient / scale, found[1][1][name] / scale, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", [VPTDeep(5), VAPT(5), VAPT(5, zero_init=False)])
def test_dropout_means_the_same_in_both_forms(method):
    """The same masks: with one seed, both forms draw the prompts' dropout in the same order."""
    ours = Classifier(small_vit(), method, 7, torch.Generator().manual_seed(2)).double().train()
    peer = PromptsAsTokens(ours).train()
    torch.manual_seed(3)
    logits = ours(pictures())
    torch.manual_seed(3)
    torch.testing.assert_close(logits, peer(pictures()), rtol=0, atol=1e-10)


class Shifted(PromptExpert):
    """A user's expert: a key and a value apart, both moved by the mean token."""

    def __init__(self, num_prompts, dim):
        super().__init__()
        self.key, self.value = (torch.nn.Parameter(torch.randn(num_prompts, dim).double()) for _ in range(2))

    def forward(self, tokens):
        mean = tokens.mean(-2, keepdim=True)
        return PromptTokens(self.key + mean, self.value - 2 * mean)


@pytest.mark.parametrize("gate", [SoftmaxGate(), NonlinearResidualGate(0.7, 1.3), SigmoidGate(-1.0)])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_block_is_the_mixture_of_the_core(gate, normalise):
    """One head's share of a block's attention, against `AttentionHeadMoE` on the same weights, prompts and gate."""
    vit, expert = small_vit(), Shifted(4, 24)
    block, tokens = vit.blocks[1], torch.randn(5, 7, 24, dtype=torch.float64)
    prompts = expert(tokens[:, 1:])
    enters = BlockPrompts(prompts, gate, normalise)
    entered = block.enter(enters)
    found = block.attn(block.norm1(tokens), entered)
    weight, bias, width = block.attn.qkv.weight, block.attn.qkv.bias, 8
    heads = []
    for h in range(3):
        rows = [slice(m * 24 + h * width, m * 24 + (h + 1) * width) for m in range(3)]
        q, k, v = (weight[r].mT for r in rows)
        b_q, b_k, b_v = (bias[r] for r in rows)
        seen = PromptTokens(*(block.norm1(part) if normalise else part for part in prompts))
        head = AttentionHeadMoE(q, k, v, None, gate, b_q, b_k, b_v)
        heads.append(head.mix(block.norm1(tokens), seen).output)
    wanted = block.attn.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_a_gate_that_is_softmax_is_the_fused_attention():
    vit = small_vit()
    experts = [ConstantPrompt(5, 24).double() for _ in range(3)]
    fused = vit(pictures(), DeepPrompts(experts))
    written_out = vit(pictures(), DeepPrompts(experts, [SoftmaxGate() for _ in range(3)]))
    torch.testing.assert_close(fused, written_out, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "gate", [None, NonlinearResidualGate(0.7, 1.3), SigmoidGate(-1.0), TopKGate(2), ZeroInitGate(0.4)]
)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_first_row_alone_is_the_first_row(gate, qkv_bias):
    vit, expert = small_vit(qkv_bias=qkv_bias), Shifted(4, 24)
    tokens = torch.randn(5, 7, 24, dtype=torch.float64)
    prompts = BlockPrompts(expert(tokens[:, 1:]), gate)
    for enters in (prompts, prompts._replace(tokens=PromptTokens.both(prompts.tokens.key)), None):
        alone = vit.blocks[1](tokens, enters, first_row=True)
        torch.testing.assert_close(alone, vit.blocks[1](tokens, enters)[:, :1], rtol=0, atol=1e-12)


def test_constant_prompts_pass_through_a_block_once():
    prompts = ConstantPrompt(5, 24)(torch.zeros(7, 6, 24)).key
    assert once(prompts).shape == (1, 5, 24) and once(torch.randn(7, 5, 24)).shape == (7, 5, 24)


def test_adaptive_prompts_see_patches_only():
    """Neither the class token nor registers reach the expert, and carried tokens neither."""
    seen = []

    class Spy(PromptExpert):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(2, 24, dtype=torch.float64))

        def forward(self, tokens):
            seen.append(tokens.shape)
            return PromptTokens.both(self.p.expand(len(tokens), -1, -1))

    classifier = Classifier(small_vit(registers=2), DeepExperts(lambda config: Spy()), 7).double()
    classifier(pictures())
    assert seen == [(5, 6, 24)] * 3


def test_prompts_of_another_width_are_named():
    prompting = DeepPrompts([PrefixPrompt(5, 24, value_dim=20), None, None])
    with pytest.raises(
        InputError, match="width 24 needs prompt keys and values of that width: PrefixPrompt in block 0"
    ):
        small_vit().float()(pictures().float(), prompting)


def test_no_prompt_at_all_is_refused():
    with pytest.raises(InputError, match="at least one block"):
        DeepPrompts([None, None])
    with pytest.raises(InputError, match="3 blocks need a gate each"):
        DeepPrompts([ConstantPrompt(5, 24)] * 3, [SoftmaxGate()])


def test_one_mask_serves_key_and_value():
    torch.manual_seed(0)
    expert = DropoutPrompt(ConstantPrompt(5, 24), 0.5).train()
    key, value = expert(torch.zeros(7, 6, 24))
    assert key is value and 0.3 < (key == 0).float().mean() < 0.7
    assert expert.num_prompts == 5
    key, _ = expert.eval()(torch.zeros(7, 6, 24))
    assert not (key == 0).any()


def test_blocks_without_an_expert_are_the_pretrained_ones():
    vit, config = small_vit(), SMALL
    prompting = DeepPrompts([None, None, ConstantPrompt(5, config.dim).double()])
    tokens = vit._run(pictures(), None, False)
    with_prompts = vit._run(pictures(), prompting, False)
    assert not torch.allclose(tokens, with_prompts)
    assert prompting.prompts(0, tokens[:, 1:]) is None and prompting.prompts(2, tokens[:, 1:]) is not None
