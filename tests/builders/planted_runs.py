"""Rows of runs with planted numbers."""

import json

from moe_prompt.vision.tuning.run_table import FINAL, SEARCH, RunRow

ROW = {
    "key": "k",
    "purpose": FINAL,
    "task": "svhn",
    "label": "vapt",
    "method": '{"name": "vapt", "num_prompts": 10}',
    "backbone": "small",
    "backbone_sha": "0123",
    "height": 224,
    "width": 224,
    "training": "train800val200",
    "evaluation": "test",
    "share": 1.0,
    "optimizer": "sgd",
    "base_lr": 5.0,
    "weight_decay": 0.001,
    "seed": 42,
    "epochs": 100,
    "batch": 64,
    "precision": "float32",
    "classes": 10,
    "training_images": 1000,
    "evaluation_images": 26032,
    "accuracy": 80.0,
    "train_loss": 0.1,
    "failed": False,
    "message": "",
    "seconds": 12.0,
    "seconds_test": 3.0,
    "peak_memory_mb": 500.0,
    "memory_kind": "resident",
    "tuned_parameters": 31_866,
    "head_parameters": 7690,
    "backbone_parameters": 85_798_656,
    "flops_forward": 3.5e10,
    "flops_step": 1e11,
    "finished_utc": "2025-01-01 00:00:00",
    "spec": "{}",
    "made_with": "{}",
}


def planted(**changes) -> RunRow:
    """A row like the one above; `method` may be the options alone."""
    if isinstance(changes.get("method"), dict):
        changes["method"] = json.dumps(changes["method"])
    return RunRow(**{**ROW, **changes})


def trial(accuracy, base_lr: float = 5.0, weight_decay: float = 0.001, **changes) -> RunRow:
    """A search trial; accuracy None: it failed."""
    given = {"purpose": SEARCH, "training": "train800", "evaluation": "val200", "accuracy": accuracy}
    given |= {"failed": accuracy is None, "message": "" if accuracy is not None else "the loss is nan"}
    key = f"{changes.get('label', 'vapt')} {base_lr} {weight_decay}"
    return planted(**{"key": key, "base_lr": base_lr, "weight_decay": weight_decay, **given, **changes})


def finals(accuracies, label: str = "vapt", task: str = "svhn", **changes) -> list[RunRow]:
    """Final runs of the five seeds with these accuracies."""
    seeds = (42, 44, 82, 100, 800)
    method = {"name": label, "num_prompts": 10}
    same = {"task": task, "label": label, "method": method}
    rows = []
    for seed, accuracy in zip(seeds, accuracies, strict=False):
        own = {"key": f"{task} {label} {seed}", "seed": seed, "accuracy": accuracy, "failed": accuracy is None}
        rows.append(planted(**{**same, **own, **changes}))
    return rows
