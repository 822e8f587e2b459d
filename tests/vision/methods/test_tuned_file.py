"""A tuned set saved alone, loaded onto its backbone and refused by another; released VAPT files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from moe_prompt.attention.prompts import AdaptivePrompt
from moe_prompt.errors import InputError
from moe_prompt.vision.methods.base import DeepExperts
from moe_prompt.vision.methods.by_name import METHODS, method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.prompts import VAPT
from moe_prompt.vision.methods.released_vapt import released_vapt
from moe_prompt.vision.methods.tuned_file import load_tuned, read_notes, save_tuned
from moe_prompt.vision.vit.transformer import VIT_SIZES, VisionTransformer
from tests.builders.small_vit import pictures, small_vit

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def shaken(method, vit):
    """A classifier whose learned tensors are far from where they start."""
    model = Classifier(vit, method, 7, torch.Generator().manual_seed(3))
    for parameter in model.trainable().values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return model.eval()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_there_and_back(name, tmp_path):
    vit = small_vit().float()
    model = shaken(method_named(name), vit)
    path = save_tuned(tmp_path / "deep" / "tuned.safetensors", model, CLASSES, {"note": "kept"})
    again, classes = load_tuned(path, vit)
    assert classes == CLASSES and read_notes(path)["note"] == "kept"
    assert torch.equal(again.eval()(pictures().float()), model(pictures().float()))
    assert [p.name for p in path.parent.iterdir()] == ["tuned.safetensors"], "nothing partial is left"


def test_a_prompt_set_of_vit_b16_has_some_hundred_kilobytes(tmp_path):
    vit = VisionTransformer(VIT_SIZES["vit-b/16"])
    path = save_tuned(tmp_path / "tuned.safetensors", Classifier(vit, VAPT(10), 100), [f"{i}" for i in range(100)])
    assert 55_608 + 76_900 <= path.stat().st_size / 4 < 55_608 + 76_900 + 5_000


def test_another_backbone_or_size_is_refused(tmp_path):
    vit = small_vit().float()
    path = save_tuned(tmp_path / "tuned.safetensors", shaken(VAPT(5), vit), CLASSES)
    with pytest.raises(InputError, match="another backbone"):
        load_tuned(path, small_vit(seed=1).float())
    with pytest.raises(InputError, match="pictures of 8 x 12"):
        load_tuned(path, small_vit(image=(12, 12)).float())
    plain = tmp_path / "plain.safetensors"
    save_file({"w": torch.zeros(1)}, plain)
    with pytest.raises(InputError, match="not a tuned prompt set"):
        load_tuned(plain, vit)
    with pytest.raises(InputError, match="is not a file"):
        load_tuned(tmp_path / "absent", vit)


def own_prompt(config):
    return VAPT(5).expert(1, config, None)


def test_a_method_of_ones_own_is_given_again(tmp_path):
    vit, own = small_vit().float(), DeepExperts(own_prompt)
    model = shaken(own, vit)
    path = save_tuned(tmp_path / "x", model, CLASSES)
    again, _ = load_tuned(path, vit, own)
    assert torch.equal(again.eval()(pictures().float()), model(pictures().float()))
    with pytest.raises(InputError, match="'experts', a method of its author's own: give that method too"):
        load_tuned(path, vit)
    with pytest.raises(InputError, match="was tuned with the method"):
        load_tuned(path, vit, VAPT(5))
    with pytest.raises(InputError, match="has 7 classes: got 3"):
        save_tuned(tmp_path / "x", Classifier(vit, VAPT(5), 7), CLASSES[:3])


def test_learned_tensors_must_be_the_methods_own():
    model = Classifier(small_vit(), VAPT(5), 7)
    tensors = model.learned()
    with pytest.raises(InputError, match=r"missing head\.bias"):
        model.put({n: t for n, t in tensors.items() if n != "head.bias"}, "a file")
    with pytest.raises(InputError, match=r"head\.bias in a file needs shape \(7,\): got \(3,\)"):
        model.put({**tensors, "head.bias": torch.zeros(3)}, "a file")


def released_tensors(static, num_prompts, kernel, rank, vit, classes=7):
    """A state dict in the released names, random, its frozen backbone along with it."""
    dim, depth, (rows, columns) = vit.config.dim, vit.config.depth, vit.config.grid
    places = (rows - kernel + 1) * (columns - kernel + 1)
    transformer = {
        "prompt_embeddings": (static, num_prompts, dim),
        "deep_prompt_embeddings_mlp.block.0.weight": (rank, dim),
        "deep_prompt_embeddings_mlp.block.2.weight": (dim, rank),
        "embeddings.cls_token": (1, 1, dim),
    }
    for i in range(depth - static):
        transformer |= {
            f"deep_prompt_norm.{i}.weight": (dim,),
            f"deep_prompt_norm.{i}.bias": (dim,),
            f"deep_prompt_downsample.{i}.conv.kernel": (1, 1, kernel, kernel),
            f"deep_prompt_downsample.{i}.linear.weight": (num_prompts, places),
            f"deep_prompt_downsample.{i}.linear.bias": (num_prompts,),
        }
    shapes = {f"enc.transformer.{name}": shape for name, shape in transformer.items()}
    shapes |= {"head.last_layer.weight": (classes, dim), "head.last_layer.bias": (classes,)}
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(("static", "kernel"), [(1, 2), (2, 1)])
def test_a_released_file_fills_every_learned_tensor(static, kernel):
    vit = small_vit().float()
    tensors = released_tensors(static, 5, kernel, 3, vit)
    model = released_vapt(tensors, "released.pth", vit)
    assert (model.method.num_prompts, model.method.kernel_size, model.method.rank) == (5, kernel, 3)
    learned = sorted(float(t.sum()) for t in model.learned().values())
    given = {n: t for n, t in tensors.items() if "cls_token" not in n}
    given = sorted(float(p.sum()) for n, t in given.items() for p in (t if n.endswith("prompt_embeddings") else [t]))
    torch.testing.assert_close(torch.tensor(learned), torch.tensor(given))
    expert = model.prompting.experts["2"].eval()
    assert isinstance(expert, AdaptivePrompt)
    patches = torch.randn(4, 6, 24)
    name = f"enc.transformer.deep_prompt_downsample.{2 - static}."
    normed = torch.nn.functional.layer_norm(
        patches, (24,), *(tensors[f"enc.transformer.deep_prompt_norm.{2 - static}.{p}"] for p in ("weight", "bias"))
    )
    field = normed.mT.reshape(4 * 24, 1, 2, 3)
    averaged = torch.nn.functional.conv2d(field, tensors[name + "conv.kernel"]).reshape(4, 24, -1)
    averaged = (averaged @ tensors[name + "linear.weight"].mT + tensors[name + "linear.bias"]).mT
    w1, w2 = (tensors[f"enc.transformer.deep_prompt_embeddings_mlp.block.{i}.weight"] for i in (0, 2))
    wanted = averaged + torch.relu(averaged @ w1.mT) @ w2.mT
    torch.testing.assert_close(expert(patches).key, wanted, rtol=1e-4, atol=1e-4)


def test_a_released_file_for_another_backbone_is_named():
    vit = small_vit().float()
    tensors = released_tensors(1, 5, 2, 3, vit)
    with pytest.raises(InputError, match=r"released\.pth has 1 constant and 2 adaptive blocks: this backbone has 4"):
        released_vapt(tensors, "released.pth", small_vit(depth=4).float())
    del tensors["enc.transformer.deep_prompt_norm.1.bias"]
    with pytest.raises(InputError, match=r"released\.pth lacks enc\.transformer\.deep_prompt_norm\.1\.bias"):
        released_vapt(tensors, "released.pth", vit)
    with pytest.raises(InputError, match=r"lacks enc\.transformer\.prompt_embeddings"):
        released_vapt({}, "released.pth", vit)


def test_notes_are_plain_json(tmp_path):
    path = save_tuned(tmp_path / "t.safetensors", Classifier(small_vit().float(), VAPT(5), 7), CLASSES)
    notes = read_notes(path)
    assert json.loads(notes["method"])["num_prompts"] == 5 and json.loads(notes["image"]) == [8, 12]
