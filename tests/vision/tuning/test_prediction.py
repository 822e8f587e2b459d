"""New pictures are seen as training saw them: probabilities against numbers computed by hand with Pillow and NumPy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from moe_prompt.errors import InputError
from moe_prompt.vision.checkpoints.loading import load_backbone
from moe_prompt.vision.data.pictures import FilePictures
from moe_prompt.vision.data.preprocessing import FGVC, VTAB
from moe_prompt.vision.methods.by_name import method_named
from moe_prompt.vision.methods.classifier import Classifier
from moe_prompt.vision.methods.tuned_file import save_tuned
from moe_prompt.vision.methods.user_file import method_from_file
from moe_prompt.vision.tuning.prediction import open_predictor
from tests.builders.planted_tasks import pixels, save
from tests.builders.small_files import CONFIG, vit_file
from tests.vision.methods.test_user_file import OWN, written

CLASSES = ("oak", "elm", "ash", "fir", "yew")


def tuned(folder, method, preprocessing=None, **notes):
    """A tuned file on `vit.safetensors`, and the classifier that was saved."""
    vit, _ = load_backbone(vit_file(folder / "vit.safetensors"), 24)
    classifier = Classifier(vit, method, len(CLASSES), torch.Generator().manual_seed(3))
    if preprocessing is not None:
        notes["preprocessing"] = json.dumps(preprocessing.to_dict())
    return save_tuned(folder / "tuned.safetensors", classifier, CLASSES, notes), classifier.eval()


def photographs(folder, count=7):
    """Pictures of different shapes."""
    paths = [save(folder / f"{index}.png", pixels(index, 30 + 7 * index, 41)) for index in range(count)]
    return FilePictures("", [str(path) for path in paths])


def softmax_of(classifier, array):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    numbers = ((array / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(numbers)[None])[0].double().numpy()
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


@pytest.mark.parametrize("batch", [3, 64])
def test_probabilities_by_hand(tmp_path, batch):
    path, classifier = tuned(tmp_path, method_named("vpt-deep", num_prompts=3), VTAB((24, 24)))
    predictor, report = open_predictor(path, tmp_path / "vit.safetensors")
    pictures = photographs(tmp_path)
    found = list(predictor(pictures, batch))
    assert [each.picture for each in found] == list(pictures.paths) and "4 x 4 to 6 x 6" in report.sentence()
    for index, each in enumerate(found):
        resized = np.asarray(pictures[index].resize((24, 24), Image.Resampling.BILINEAR))
        expected = softmax_of(classifier, resized)
        assert np.abs(np.array(each.probabilities) - expected).max() < 1e-6
        assert each.name == CLASSES[int(expected.argmax())] and each.probability == max(each.probabilities)
    assert np.ptp([each.probabilities for each in found], axis=0).max() > 1e-3  # pictures are told apart


def test_a_random_crop_is_the_centre_and_dropout_is_off(tmp_path):
    path, classifier = tuned(tmp_path, method_named("vapt", num_prompts=3), FGVC((24, 24)))
    predictor, _ = open_predictor(path, tmp_path / "vit.safetensors")
    predictor.classifier.train()
    (tmp_path / "one").mkdir()
    pictures = FilePictures("", [str(save(tmp_path / "one" / "a.png", pixels(5, 27, 37)))])
    (found,) = predictor(pictures)
    array = np.asarray(pictures[0])  # the shorter side is 27, 256 / 224 of 24, already
    expected = softmax_of(classifier, array[2:26, 6:30])
    assert np.abs(np.array(found.probabilities) - expected).max() < 1e-6
    assert list(predictor(pictures)) == [found]


def test_a_method_of_ones_own(tmp_path):
    own = method_from_file(written(tmp_path, OWN))
    path, classifier = tuned(tmp_path, own, VTAB((24, 24)))
    predictor, _ = open_predictor(path, tmp_path / "vit.safetensors", own)
    found = predictor.classifier.learned()
    assert all(torch.equal(found[name], tensor) for name, tensor in classifier.learned().items())
    with pytest.raises(InputError, match=r"tuned.safetensors was tuned with 'scaled', a method of its author's own"):
        open_predictor(path, tmp_path / "vit.safetensors")


def test_what_cannot_be_used(tmp_path):
    path, _ = tuned(tmp_path, method_named("linear"))
    with pytest.raises(InputError, match=r"tuned.safetensors does not say how its pictures were preprocessed"):
        open_predictor(path, tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match=r"vit.safetensors is not a tuned prompt set"):
        open_predictor(tmp_path / "vit.safetensors", tmp_path / "vit.safetensors")
    path, _ = tuned(tmp_path, method_named("linear"), VTAB((24, 24)))
    other = vit_file(tmp_path / "other.safetensors", CONFIG, seed=1)
    with pytest.raises(InputError, match=r"tuned.safetensors was tuned on another backbone"):
        open_predictor(path, other)
    with pytest.raises(InputError, match=r"absent is not a file"):
        open_predictor(tmp_path / "absent", other)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(InputError, match=r"text is not a readable safetensors file"):
        open_predictor(tmp_path / "text", other)


def test_pictures_before_a_broken_one_are_told(tmp_path):
    path, _ = tuned(tmp_path, method_named("linear"), VTAB((24, 24)))
    predictor, _ = open_predictor(path, tmp_path / "vit.safetensors")
    pictures = photographs(tmp_path, 5)
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:-50])
    told = predictor(pictures, batch=2)
    assert [next(told).picture for _ in range(4)] == list(pictures.paths[:4])
    with pytest.raises(InputError, match=r"4.png cannot be read as a picture"):
        next(told)
