"""The quick run: real digits on disk, a backbone that never saw the classes it is tuned on, and an honest sentence."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from moe_prompt.vision.commands import quick
from moe_prompt.vision.data.layouts.open_task import open_task
from moe_prompt.vision.tuning.recipes import Grid
from moe_prompt.vision.tuning.run_table import read_rows
from moe_prompt.vision.tuning.searches import GridSearch


@pytest.fixture
def shortened(monkeypatch):
    """One epoch, one trial, one seed."""
    monkeypatch.setattr(quick, "PRETRAINING", replace(quick.PRETRAINING, epochs=1, warmup=0))
    monkeypatch.setattr(quick, "TUNING", replace(quick.TUNING, epochs=1, warmup=0))
    monkeypatch.setattr(quick, "QUICK_SEARCH", GridSearch(Grid("one", "sgd", (1.0,), (0.0,), "ours", "a test")))
    monkeypatch.setattr(quick, "QUICK_SEEDS", (42,))


def test_the_whole_path(tmp_path, shortened):
    threads = torch.get_num_threads()
    made = quick.demonstrate(tmp_path / "out")
    assert Counter(row.label for row in made.rows) == {"linear": 2, "vpt-deep": 2, "vapt": 2}
    assert all(row.accuracy is not None and not row.failed for row in made.rows)
    assert set(made.rows) == set(read_rows(tmp_path / "out"))
    text = made.text()
    assert "It is no evidence on VPT against VAPT" in text and "536 others to test on" in text
    assert all(f"\n{label} " in text for label in ("linear", "vpt-deep", "vapt"))
    assert torch.get_num_threads() == threads
    assert quick.demonstrate(tmp_path / "out").rows == made.rows  # read, not trained


def test_pictures_are_the_digits(tmp_path):
    """Every digit once, no class in both tasks, splits that share no picture, bytes that scale to the original."""
    pictures, digits = load_digits(return_X_y=True)
    found = Counter()
    for name, classes in zip(quick.DIGIT_SPLITS, (quick.SOURCE, quick.TARGET), strict=True):
        quick._digits(tmp_path, name, classes)
        task = open_task(tmp_path / name)
        for split in quick.DIGIT_SPLITS[name]:
            part = task.split(split)
            assert len(part) == quick.DIGIT_SPLITS[name][split]
            shares = np.bincount(part.labels) / len(part)
            assert np.abs(shares - 0.2).max() < 0.03
            for index, label in enumerate(part.labels.tolist()):
                grey = np.asarray(part.pictures[index])[..., 0]
                found[(classes[label], np.rint(grey * (16 / 255)).astype(int).tobytes())] += 1
    original = Counter((int(d), p.astype(int).tobytes()) for d, p in zip(digits, pictures, strict=True))
    assert found == original and found.total() == 1797


def test_all_methods_have_as_many_trials():
    assert quick.QUICK_SEARCH.trials == 6
    assert set(quick.SOURCE).isdisjoint(quick.TARGET)


@pytest.mark.slow
def test_it_needs_no_extra_and_no_network(tmp_path):
    """In a process where optional packages cannot be imported and sockets are refused; under two minutes of CPU."""
    blocked = ("optuna", "onnx", "onnxruntime", "tensorboard", "pyarrow", "huggingface_hub", "transformers")
    blocked += ("timm", "torchvision")
    script = f"""
import sys, socket
for name in {blocked!r}:
    sys.modules[name] = None
def refuse(*args, **kwargs):
    raise OSError("no network")
socket.socket.connect = refuse
from moe_prompt.vision.commands.quick import demonstrate
print(demonstrate({str(tmp_path / "out")!r}).text())
"""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert "It is no evidence on VPT against VAPT" in done.stdout
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 27 and not any(row.failed for row in rows)
    accuracy = {
        label: [r.accuracy for r in rows if (r.label, r.purpose) == (label, "final")] for label in quick.COMPARED
    }
    assert all(min(each) > 50 for each in accuracy.values())  # chance is 20
    assert after.children_user - before.children_user < 120
