"""A state is whole at any moment, known by what it is of, and no pickle."""

import os
import pickle
import signal

import pytest
import torch

from moe_prompt.errors import InputError
from moe_prompt.vision.training.state import (
    StateFile,
    data_key,
    learned_tensors,
    made,
    model_key,
    put_back,
)
from tests.builders.small_training import Network, Pictures

IDENTITY = {"recipe": {"base_lr": 0.5, "batch": 64}, "model": "abc", "number of processes": 1}


def test_what_is_saved_comes_back(tmp_path):
    file = StateFile(tmp_path / "state.pt", IDENTITY)
    assert file.read() is None
    file.save({"learned": {"w": torch.arange(5.0)}, "standing": {"epoch": 3, "best": None}})
    state = file.decode(file.read())
    assert torch.equal(state["learned"]["w"], torch.arange(5.0)) and state["standing"] == {"epoch": 3, "best": None}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": {"base_lr": 0.25, "batch": 64}}, r"another recipe \(base_lr was 0.5 and is 0.25 now\)"),
        ({"model": "abd"}, "another model"),
        ({"number of processes": 2}, "another number of processes"),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path, changes, says):
    path = tmp_path / "state.pt"
    StateFile(path, IDENTITY).save({})
    other = StateFile(path, IDENTITY | changes)
    with pytest.raises(InputError, match=says) as raised:
        other.decode(other.read())
    assert str(path) in str(raised.value)


class Bomb:
    def __reduce__(self):
        return os.kill, (os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["truncated", "text", "pickle", "other tensors"])
def test_what_is_no_state_is_refused_and_never_run(tmp_path, how):
    path = tmp_path / "state.pt"
    file = StateFile(path, IDENTITY)
    if how == "truncated":
        file.save({"learned": torch.arange(1000.0)})
        path.write_bytes(path.read_bytes()[:900])
    elif how == "text":
        path.write_text("no state")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"w": torch.ones(3)}, path)
    with pytest.raises(InputError, match=r"state\.pt is not"):
        file.decode(file.read())


def test_a_full_disk_keeps_what_was_saved(tmp_path, monkeypatch):
    file = StateFile(tmp_path / "state.pt", IDENTITY)
    file.save({"step": 1})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        file.save({"step": 2})
    assert file.decode(file.read())["step"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_learned_tensors_are_small_and_go_back():
    """What is frozen is left out, what two layers share is there once, and buffers are there."""
    model = Network()
    model.register_buffer("running", torch.zeros(3))
    names = set(learned_tensors(model))
    assert names == {
        "shared.weight", "shared.bias", "head.weight", "head.bias", "second.0.weight", "second.0.bias", "prompt",
        "idle", "running",
    }  # fmt: skip
    kept = {name: tensor.clone() + 1 for name, tensor in learned_tensors(model).items()}
    put_back(model, kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in learned_tensors(model).items())


def test_a_model_is_known_by_what_is_frozen_in_it():
    key = model_key(Network())
    assert model_key(Network()) == key
    other = Network()
    with torch.no_grad():
        other.prompt.add_(1)
    assert model_key(other) == key  # what is learned comes out of the state
    with torch.no_grad():
        other.embed.weight[0, 0, 0, 0] += 1e-3
    assert model_key(other) != key
    assert model_key(Network(dropout=0.2)) != key
    assert model_key(Network(fixed=True)) != key


def test_data_are_known_by_labels_pictures_and_preprocessing():
    key = data_key(Pictures())
    assert data_key(Pictures()) == key
    changed = Pictures()
    changed.images[0, 0, 0, 0] ^= 1
    relabelled = Pictures()
    relabelled.labels[20] = (relabelled.labels[20] + 1) % 5
    cropped = Pictures()
    cropped.preprocessing = "FGVC"
    others = [Pictures(seed=9), Pictures(count=52), Pictures(random=True), changed, relabelled, cropped]
    assert len({key, *(data_key(other) for other in others)}) == 7


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        made(tmp_path / "file" / "run")
