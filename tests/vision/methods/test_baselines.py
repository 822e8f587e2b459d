"""What each baseline learns, that it starts at the pre-trained function, and that it can leave it."""

import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.methods.baselines import Adapter, Bias, Full, LayerNormTuning, Linear, LoRA, PartialK
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer
from tests.builders.small_vit import pictures, small_vit


def classifier(method, seed=0):
    return Classifier(small_vit(), method, 7, torch.Generator().manual_seed(seed)).double()


def learned(method):
    return {name.removeprefix("backbone.") for name in classifier(method).trainable() if not name.startswith("head")}


def test_what_learns():
    names = {name for name, _ in small_vit().named_parameters()}
    assert learned(Linear()) == set()
    assert learned(Full()) == names
    assert learned(PartialK(2)) == {n for n in names if n.startswith(("blocks.1.", "blocks.2.", "norm."))}
    assert learned(Bias()) == {n for n in names if n.endswith("bias")}
    assert learned(LayerNormTuning()) == {n for n in names if "norm" in n}
    with pytest.raises(InputError, match="this ViT has 3"):
        classifier(PartialK(4))


def test_counts_on_vit_b16():
    with torch.device("meta"):
        vit = VisionTransformer(VIT_SIZES["vit-b/16"])
    assert Classifier(vit, Full(), 2).num_tuned() == 85_798_656
    assert Classifier(vit, LoRA(8), 2).num_tuned() == 12 * 2 * 2 * 8 * 768
    assert Classifier(vit, Adapter(64), 2).num_tuned() == 12 * (2 * 64 * 768 + 64 + 768)
    assert Classifier(vit, LayerNormTuning(), 2).num_tuned() == 25 * 2 * 768


@pytest.mark.parametrize("method", [Adapter(5), LoRA(3, maps="qkv"), LoRA(3)])
def test_added_modules_start_at_the_pretrained_function_and_leave_it(method):
    model = classifier(method)
    torch.testing.assert_close(model.features(pictures()), small_vit()(pictures()), rtol=0, atol=1e-12)
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(pictures()).sin().sum().backward()
        optimizer.step()
    assert (model.features(pictures()) - small_vit()(pictures())).abs().max() > 1e-3
    moved = [name for name, p in model.trainable().items() if p.grad is not None and (p.grad != 0).any()]
    assert len(moved) == len(model.trainable()), "every added tensor learns, the down-projection too"


def test_lora_is_the_sum_of_the_maps():
    """Against the merged weight W + (alpha / r) B A in the rows of each chosen map."""
    model, scale = classifier(LoRA(rank=3, alpha=6.0, maps="vq")), 2.0
    merged = small_vit()
    for block, base in zip(model.backbone.blocks, merged.blocks, strict=True):
        qkv = block.attn.qkv
        torch.nn.init.normal_(qkv.b)
        with torch.no_grad():
            base.attn.qkv.weight[48:] += scale * qkv.b[0] @ qkv.a[0]
            base.attn.qkv.weight[:24] += scale * qkv.b[1] @ qkv.a[1]
    torch.testing.assert_close(model.features(pictures()), merged(pictures()), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.backbone.tokens(pictures()), merged.tokens(pictures()), rtol=0, atol=1e-12)


def test_the_given_backbone_is_never_changed():
    """Whatever a method does, the next one starts from the same weights; those that stay frozen are shared."""
    vit = small_vit()
    before = vit.fingerprint()
    for method in (Full(), PartialK(1), Bias(), LayerNormTuning(), Adapter(5), LoRA(3), Linear()):
        model = Classifier(vit, method, 7).double()
        for parameter in model.trainable().values():
            parameter.data.add_(1.0)
        assert vit.fingerprint() == before, method
        assert model.backbone_fingerprint() == before
        assert not any(parameter.requires_grad for parameter in vit.parameters())
    shared = Classifier(vit, LoRA(3), 7).backbone.blocks[0].mlp.fc1.weight
    assert shared is vit.blocks[0].mlp.fc1.weight
