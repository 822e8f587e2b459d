"""The report on a picture: its numbers against loops over gates, its streams, its files; and that it can be drawn."""

import json
import math
from importlib.resources import files
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from moe_prompt.attention.view import view_picture
from moe_prompt.errors import InputError

PHOTO = Path(str(files("sklearn.datasets") / "images" / "china.jpg"))
SIZES = {"grid": (3, 5), "dim": 14, "heads": 2, "num_prompts": 7}


def test_numbers_are_those_of_the_gates():
    report = view_picture(PHOTO, **SIZES)
    assert (report.num_tokens, report.num_prompts, report.special) == (15, 7, 0)
    assert report.gates.shape == (2, 15, 22) and report.experts.shape == (2, 22, 7)
    assert report.uniform_mass == 7 / 22 and report.picture.shape == (48, 80, 3)
    for h in range(2):
        for i in range(15):
            gate = report.gates[h, i].double().tolist()
            assert sum(gate) == pytest.approx(1, rel=1e-5)
            assert float(report.prompt_mass[h, i]) == pytest.approx(sum(gate[15:]), rel=1e-4)
            entropy = -sum(g * math.log(g) for g in gate if g > 0)
            assert float(report.effective_experts[h, i]) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_only_vapt_moves_with_the_picture(tmp_path):
    report = view_picture(PHOTO, **SIZES)
    assert report.adaptivity["vpt"].tolist() == [0.0] * 7
    assert (report.adaptivity["vapt"] > 1e-3).all() and (report.adaptivity["vapt"] < 1).all()
    Image.new("RGB", (60, 40), (90, 20, 200)).save(tmp_path / "plain.png")
    assert view_picture(tmp_path / "plain.png", **SIZES).adaptivity["vapt"].max() < 1e-9


def test_the_kind_of_prompt_changes_the_prompts_alone():
    vpt, vapt = (view_picture(PHOTO, prompt=kind, **SIZES) for kind in ("vpt", "vapt"))
    assert torch.equal(vpt.experts[:, :15], vapt.experts[:, :15])
    assert not torch.isclose(vpt.experts[:, 15:], vapt.experts[:, 15:]).any(dim=-1).all()
    assert all(torch.equal(vpt.adaptivity[kind], vapt.adaptivity[kind]) for kind in ("vpt", "vapt"))


def test_streams_do_not_share_numbers():
    """More prompts leave the block and its pre-trained experts as they were; another seed changes them."""
    few, many = (view_picture(PHOTO, **{**SIZES, "num_prompts": number}) for number in (3, 7))
    assert torch.equal(few.experts[:, :15], many.experts[:, :15])
    other = view_picture(PHOTO, seed=1, **SIZES)
    assert not torch.isclose(other.experts[:, :15], many.experts[:, :15]).all()
    again = view_picture(PHOTO, **SIZES)
    assert torch.equal(again.gates, many.gates)


def stored(path: Path, embedding: bool, dim: int = 14) -> Path:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"blocks.{b}.attn.qkv.weight": (3 * dim, dim) for b in range(2)}
    shapes |= {f"blocks.{b}.attn.proj.weight": (dim, dim) for b in range(2)}
    shapes |= {f"blocks.{b}.norm1.{part}": (dim,) for b in range(2) for part in ("weight", "bias")}
    if embedding:
        shapes |= {"patch_embed.proj.weight": (dim, 3, 4, 4), "patch_embed.proj.bias": (dim,)}
        shapes |= {"cls_token": (1, 1, dim), "pos_embed": (1, 16, dim)}
    save_file({name: torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize("block", [0, 1])
def test_stored_block_is_used_as_stored(tmp_path, block):
    """Experts and gates from the file's tensors by hand: embed, add positions, normalise, one head after the other."""
    from safetensors.torch import load_file

    path = stored(tmp_path / "vit.safetensors", embedding=True)
    report = view_picture(PHOTO, weights=path, grid=(3, 5), heads=2, block=block, num_prompts=7)
    assert report.special == 1 and report.gates.shape == (2, 16, 23) and report.picture.shape == (12, 20, 3)
    t = load_file(path)
    picture = Image.open(PHOTO).convert("RGB").resize((20, 12), Image.Resampling.BICUBIC)
    pixels = torch.tensor(list(picture.tobytes()), dtype=torch.float32).reshape(12, 20, 3) / 127.5 - 1
    weight = t["patch_embed.proj.weight"]
    patches = [
        torch.einsum("dcyx,yxc->d", weight, pixels[4 * r : 4 * r + 4, 4 * c : 4 * c + 4]) + t["patch_embed.proj.bias"]
        for r in range(3)
        for c in range(5)
    ]
    tokens = torch.stack([t["cls_token"][0, 0], *patches]) + t["pos_embed"][0]
    centred = tokens - tokens.mean(-1, keepdim=True)
    name = f"blocks.{block}."
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    x = normal * t[f"{name}norm1.weight"] + t[f"{name}norm1.bias"]
    q, k, v = (x @ part.mT for part in t[f"{name}attn.qkv.weight"].chunk(3))
    for h in range(2):
        columns = slice(7 * h, 7 * h + 7)
        torch.testing.assert_close(report.experts[h, :16], v[:, columns], rtol=1e-3, atol=1e-4)
        gates = (q[:, columns] @ k[:, columns].mT / 7**0.5).softmax(-1)
        seen = report.gates[h, :, :16] / report.gates[h, :, :16].sum(-1, keepdim=True)
        torch.testing.assert_close(seen, gates, rtol=1e-3, atol=1e-4)
    assert bool(report.notes) == (block == 1)


def test_missing_embedding_is_replaced_and_said(tmp_path):
    report = view_picture(PHOTO, weights=stored(tmp_path / "b.safetensors", embedding=False), grid=(3, 5), heads=2)
    assert "holds no patch embedding" in report.notes[0] and report.special == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": "vatp"}, "unknown prompt 'vatp'.*did you mean 'vapt'"),
        ({"num_prompts": 0}, "at least 1: got 0"),
        ({"grid": (1, 5)}, "got 1 x 5"),
        ({"heads": 3}, "a random block: the number of heads must divide"),
        ({"block": 1}, "got block 1, give a weights file"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"weights": "b.safetensors", "dim": 13}, "has dim 14: got dim 13"),
        ({"weights": "b.safetensors", "dim": None, "block": 2}, "holds 2 attention block"),
        ({"weights": "missing.safetensors"}, "missing.safetensors is not a file"),
    ],
)
def test_bad_input_is_named(tmp_path, options, says):
    stored(tmp_path / "b.safetensors", embedding=True)
    options = {name: tmp_path / value if name == "weights" else value for name, value in options.items()}
    with pytest.raises(InputError, match=says):
        view_picture(PHOTO, **{**SIZES, **options})


def test_report_in_words_and_json():
    report = view_picture(PHOTO, **SIZES)
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["prompts"] == 7 and len(numbers["prompt_mass"]) == 2 and numbers["adaptivity"]["vpt"] == [0.0] * 7
    assert "15 pre-trained and 7 VAPT experts" in report.sentence() and "\n" not in report.sentence()


def test_report_can_be_drawn():
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from moe_prompt.plotting.head_view import draw_view

    for heads in (1, 2):
        figure = draw_view(view_picture(PHOTO, **{**SIZES, "heads": heads}), heads=heads)
        maps = sum(len(axes.images) for axes in figure.axes)
        assert maps == 1 + 1 + 3 * heads  # picture, mass on prompts, one gate map per query and head
        figure.canvas.draw()
        pyplot.close(figure)
