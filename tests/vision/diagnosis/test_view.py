"""A block on a picture: against transformers' attention for files of every format, and against the running network."""

import json
import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from moe_prompt.attention.gates import SigmoidGate
from moe_prompt.attention.prompts import PrefixPrompt
from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.loading import load_backbone
from moe_prompt.vision.data.preprocessing import VTAB
from moe_prompt.vision.diagnosis.networks import PROMPTS
from moe_prompt.vision.diagnosis.view import block_mixtures, view_picture
from moe_prompt.vision.methods.baselines import LoRA
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.prompts import VAPT
from moe_prompt.vision.methods.tuned_file import save_tuned
from moe_prompt.vision.vit.prompting import DeepPrompts
from tests.builders import vit_files
from tests.builders.small_files import CLASSES, vit_file
from tests.builders.small_vit import SMALL, pictures, small_vit

PHOTO = Path(str(files("sklearn.datasets") / "images" / "china.jpg"))
LATE = """
from moe_prompt.attention.prompts import ConstantPrompt
from moe_prompt.vision.methods.base import DeepMethod

class Late(DeepMethod):
    \"\"\"Prompts in the second block alone: what comes before it is the network as it was.\"\"\"
    name = "late"
    def expert(self, block, config, generator):
        return ConstantPrompt(5, config.dim, 2.0) if block == 1 else None
    def to_dict(self):
        return {"name": self.name}

method = Late()
"""


def backbone_file(kind: str, folder: Path) -> tuple[torch.nn.Module, Path]:
    """One of transformers' models, and a file of it in some format."""
    model = vit_files.model({"timm": "vit", "google": "vit"}.get(kind, kind), attn_implementation="eager")
    if kind == "timm":
        return model, vit_files.write(vit_files.timm_names(model, folder / "a"), folder / "vit.safetensors", heads="3")
    if kind == "google":
        arrays = vit_files.google_arrays(vit_files.timm_names(model, folder / "a"), vit_files.HEADS)
        np.savez(folder / "vit.npz", **arrays)
        return model, folder / "vit.npz"
    model.save_pretrained(folder / "saved")
    return model, folder / "saved"


@pytest.mark.parametrize("kind", ["timm", "google", "vit", "dinov2", "registers"])
def test_gates_of_a_later_block_are_those_of_transformers(tmp_path, kind):
    """Softmax over tokens and prompts, renormalised over tokens, is the attention without the prompts."""
    theirs, path = backbone_file(kind, tmp_path)
    (tmp_path / "late.py").write_text(LATE)
    report = view_picture(PHOTO, backbone=path, prompt=str(tmp_path / "late.py"), block=1)
    side = vit_files.IMAGE
    shrunk = Image.open(PHOTO).resize((side, side), Image.Resampling.BILINEAR)
    pixels = torch.tensor(list(shrunk.tobytes())).reshape(side, side, 3) / 255
    normal = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        attention = theirs(normal.movedim(-1, 0)[None], output_attentions=True).attentions[1][0]
    tokens = report.num_tokens
    assert attention.shape == (vit_files.HEADS, tokens, tokens) and report.num_prompts == 5
    seen = report.gates[..., :tokens] / report.gates[..., :tokens].sum(-1, keepdim=True)
    torch.testing.assert_close(seen, attention, rtol=0, atol=1e-6)
    assert bool((report.prompt_mass > 1e-3).all())
    assert report.special == tokens - vit_files.GRID**2 and report.grid == (vit_files.GRID, vit_files.GRID)


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("prompt", [*PROMPTS, "sigmoid"])
def test_outputs_are_those_of_the_whole_network_as_it_runs(block, prompt):
    """A hook on the attention of block k, for every prompt, a gate that is no softmax and prompts in all blocks."""
    vit, images = small_vit(registers=2, layer_scale=True), pictures(2)
    method = PROMPTS.get(prompt)
    if method is None:
        experts = [PrefixPrompt(5, SMALL.dim, 1.0) for _ in range(3)]
        prompting = DeepPrompts(experts, [SigmoidGate(-1.0) for _ in range(3)])
    else:
        prompting = replace(method, num_prompts=5).prompting(vit.config, torch.Generator().manual_seed(3))
    prompting = prompting.double().eval()
    caught = []
    vit.blocks[block].attn.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        vit.tokens(images, prompting)
        found = block_mixtures(vit, block, images, prompting)
    rows = found.output.shape[1]
    assert rows == 1 + 2 + 6 and found.gates.shape == (2, 3, rows, rows + 5)
    torch.testing.assert_close(found.output, caught[0][:, :rows], rtol=1e-10, atol=1e-10)


def trained(folder: Path, method) -> tuple[Classifier, Path]:
    """A classifier on the small file whose prompts are anything but what they were drawn as, and its tuned file."""
    vit, _ = load_backbone(vit_file(folder / "vit.safetensors"))
    classifier = Classifier(vit, method, len(CLASSES))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in classifier.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    notes = {"preprocessing": json.dumps(VTAB(16, "half").to_dict())}
    return classifier.eval(), save_tuned(folder / "tuned.safetensors", classifier, CLASSES, notes)


def test_trained_prompts_are_in_every_block_before(tmp_path):
    classifier, tuned = trained(tmp_path, VAPT(5, static_blocks=0))
    report = view_picture(PHOTO, backbone=tmp_path / "vit.safetensors", tuned=tuned, block=1)
    caught = []
    attention = classifier.backbone.blocks[1].attn
    attention.register_forward_pre_hook(lambda module, inputs: caught.append(inputs))
    shrunk = Image.open(PHOTO).resize((16, 16), Image.Resampling.BILINEAR)
    pixels = torch.tensor(list(shrunk.tobytes())).reshape(16, 16, 3).movedim(-1, 0) / 127.5 - 1
    with torch.no_grad():
        classifier.backbone.tokens(pixels[None], classifier.prompting)
        (tokens, prompts), maps = caught[0], attention.qkv
        q, k = maps.weight[:24], maps.weight[24:48]
        x, p = tokens[0], prompts.tokens.key[0]
        keys = torch.cat([x, p]) @ k.mT + maps.bias[24:48]
        for h, columns in enumerate(torch.arange(24).chunk(3)):
            scores = ((x @ q.mT + maps.bias[:24])[:, columns] @ keys[:, columns].mT) / math.sqrt(8)
            torch.testing.assert_close(report.gates[h], scores.softmax(-1), rtol=0, atol=1e-6)
    assert report.trained and report.prompt == "vapt" and bool((report.adaptivity > 1e-4).all())
    assert "trained" in report.sentence() and "untrained" not in report.sentence()
    with pytest.raises(InputError, match="leave those options out"):
        view_picture(PHOTO, backbone=tmp_path / "vit.safetensors", tuned=tuned, num_prompts=3)
    with pytest.raises(InputError, match="name that backbone too"):
        view_picture(PHOTO, tuned=tuned)


def test_a_tuned_file_without_prompts_is_named(tmp_path):
    _, tuned = trained(tmp_path, LoRA(2))
    with pytest.raises(InputError, match="tuned by lora, which has no prompts"):
        view_picture(PHOTO, backbone=tmp_path / "vit.safetensors", tuned=tuned)


SIZES = {"size": (48, 80), "num_prompts": 7}


def test_numbers_are_those_of_the_gates():
    report = view_picture(PHOTO, **SIZES)
    assert (report.num_tokens, report.num_prompts, report.special, report.grid) == (15, 7, 0, (3, 5))
    assert report.gates.shape == (3, 15, 22) and report.experts.shape == (3, 22, 64)
    assert report.uniform_mass == 7 / 22 and report.picture.shape == (48, 80, 3)
    for h in range(3):
        for i in range(15):
            gate = report.gates[h, i].double().tolist()
            assert sum(gate) == pytest.approx(1, rel=1e-5)
            assert float(report.prompt_mass[h, i]) == pytest.approx(sum(gate[15:]), rel=1e-4)
            entropy = -sum(g * math.log(g) for g in gate if g > 0)
            assert float(report.effective_experts[h, i]) == pytest.approx(math.exp(entropy), rel=1e-4)


@pytest.mark.parametrize(("prompt", "moves"), [(name, "vapt" in name) for name in PROMPTS if name != "vpt-shallow"])
def test_only_vapt_moves_with_the_picture(prompt, moves, tmp_path):
    report = view_picture(PHOTO, prompt=prompt, **SIZES)
    if not moves:
        assert report.adaptivity.tolist() == [0.0] * 7
        return
    assert bool((report.adaptivity > 1e-3).all() and (report.adaptivity < 1).all())
    Image.new("RGB", (60, 40), (90, 20, 200)).save(tmp_path / "plain.png")
    assert view_picture(tmp_path / "plain.png", prompt=prompt, **SIZES).adaptivity.max() < 1e-9


def test_carried_prompts_move_after_the_first_block():
    first, second = (view_picture(PHOTO, prompt="vpt-shallow", block=block, **SIZES).adaptivity for block in (0, 1))
    assert first.tolist() == [0.0] * 7 and bool((second > 1e-4).all())


def test_streams_do_not_share_numbers():
    """More prompts leave the block and its pre-trained experts as they were; another seed changes them."""
    few, many = (view_picture(PHOTO, **{**SIZES, "num_prompts": number}) for number in (3, 7))
    assert torch.equal(few.experts[:, :15], many.experts[:, :15])
    assert torch.equal(view_picture(PHOTO, prompt="vpt", **SIZES).experts[:, :15], many.experts[:, :15])
    other = view_picture(PHOTO, seed=1, **SIZES)
    assert not torch.isclose(other.experts[:, :15], many.experts[:, :15]).all()
    assert torch.equal(view_picture(PHOTO, **SIZES).gates, many.gates)


@pytest.mark.parametrize("heads", [1, 2, 4, 6])
def test_heads_are_as_many_as_the_user_says(tmp_path, heads):
    report = view_picture(PHOTO, heads=heads, **SIZES)
    assert report.gates.shape[0] == heads and report.experts.shape == (heads, 22, 192 // heads)
    tensors = small_vit(image=(8, 8)).state_dict()
    path = vit_files.write(tensors, tmp_path / "vit.safetensors")
    assert len(view_picture(PHOTO, backbone=path, heads=heads).gates) == heads


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": "vatp"}, "unknown prompt 'vatp'.*did you mean 'vapt'"),
        ({"num_prompts": 0}, "num prompts needs to be at least 1: got 0"),
        ({"size": (40, 80)}, "multiples of it: got 40 x 80"),
        ({"heads": 5}, "heads of a ViT must divide its width 192: got 5"),
        ({"block": -1}, "got block -1"),
        ({"backbone": "vit.safetensors", "block": 2}, "vit.safetensors has blocks 0 to 1: got block 2"),
        ({"backbone": "missing.safetensors"}, "missing.safetensors does not exist"),
        ({"normalisation": "mean"}, "unknown normalisation 'mean'"),
        ({"prompt": "late.py", "backbone": "vit.safetensors"}, "block 0 has no prompts to view"),
        ({"prompt": "late.py"}, "late.py sets its own number of prompts"),
        ({"prompt": "falls.py", "num_prompts": None}, "falls.py fails in block 0: RuntimeError: .*fallen"),
        ({"prompt": "low.py", "num_prompts": None}, "low.py has no prompts to view"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    vit_file(tmp_path / "vit.safetensors")
    Path("late.py").write_text(LATE)
    Path("low.py").write_text("from moe_prompt.vision.methods.baselines import LoRA\nmethod = LoRA()")
    Path("falls.py").write_text(
        "from moe_prompt.attention.prompts import ConstantPrompt\n\nclass Falls(ConstantPrompt):\n"
        "    def forward(self, tokens):\n        raise RuntimeError('fallen')\n\n"
        "def prompt(config):\n    return Falls(3, config.dim)\n"
    )
    options = {**({} if "backbone" in options else SIZES), **options}
    with pytest.raises(InputError, match=says):
        view_picture(PHOTO, **options)


def test_report_in_words_and_json():
    report = view_picture(PHOTO, prompt="vpt", **SIZES)
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["prompts"] == 7 and len(numbers["prompt_mass"]) == 3 and numbers["adaptivity"] == [0.0] * 7
    assert numbers["trained"] is False and "\n" not in report.sentence()


@pytest.mark.parametrize("changes", [{"heads": 1}, {"heads": 6}, {"prompt": "vpt"}, {"num_prompts": 1}])
def test_report_can_be_drawn_as_it_is_printed(changes):
    """6.8 inches wide, nothing set in less than 7 points, and in type of 12 or more whether prompts are trained."""
    matplotlib.use("Agg")
    from matplotlib import pyplot, text

    from moe_prompt.plotting.head_view import draw_view

    report = replace(view_picture(PHOTO, **{**SIZES, **changes}), prompt="a $name_with of mine.py")
    for is_trained, words in ((False, "UNTRAINED"), (True, "TRAINED")):
        figure = draw_view(replace(report, trained=is_trained))
        figure.canvas.draw()
        maps = sum(len(axes.images) for axes in figure.axes)
        assert maps == 1 + 1 + 3 * min(3, len(report.gates))  # picture, mass, one gate map per query and head
        written = [found for found in figure.findobj(text.Text) if found.get_text() and found.get_visible()]
        assert figure.get_figwidth() == 6.8 and min(found.get_fontsize() for found in written) >= 7
        large = [found.get_text() for found in written if found.get_fontsize() >= 12]
        assert [found.split()[0] for found in large] == [words]
        assert any(r"a \$name_with of mine.py" in found.get_text() for found in written)
        pyplot.close(figure)


def test_the_bar_of_the_gates_is_read_whatever_the_least_gate_is():
    """One patch in twenty takes nearly all: the others, at 1e-9 of a uniform gate, do not stretch the bar."""
    from moe_prompt.plotting.head_view import gate_span

    relative = np.full((3, 2, 400), 1e-9)
    relative[..., ::20] = 20.0
    assert 1 <= gate_span(relative) <= math.log2(32)
    assert gate_span(np.ones((3, 2, 400))) == 1
