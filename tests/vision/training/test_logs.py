"""Logs that go on from a position without a row twice."""

import builtins
import csv

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.training.logs import EPOCH_COLUMNS, STEP_COLUMNS, ResumableTable, RunLogs


def rows(path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def step(number: int) -> dict:
    return dict(zip(STEP_COLUMNS, (number, 1, 0.5, 1 / number, 0.25, 0.125, 64.0), strict=True))


def epoch(number: int, test: float | None) -> dict:
    return dict(zip(EPOCH_COLUMNS, (number, 1.5, 0.5, test, test, test, 9.0), strict=True))


def test_rows_after_the_position_are_cut_off(tmp_path):
    path = tmp_path / "log.csv"
    first = ResumableTable(path, ("step", "loss"))
    first.add({"step": 1, "loss": 0.123456789})
    position = first.position()
    first.add({"step": 2, "loss": 5.0})
    first.add({"step": 3, "loss": 5.0})  # and the process is killed: not even closed
    second = ResumableTable(path, ("step", "loss"), position)
    second.add({"step": 2, "loss": 7.0})
    assert rows(path) == [{"step": "1", "loss": "0.1234568"}, {"step": "2", "loss": "7"}]
    first.close()
    second.close()


def test_without_a_position_a_log_begins_anew(tmp_path):
    path = tmp_path / "log.csv"
    for loss in (1.0, 2.0):
        table = ResumableTable(path, ("step", "loss"))
        table.add({"step": 1, "loss": loss})
        table.close()
    assert rows(path) == [{"step": "1", "loss": "2"}]


def test_a_log_that_was_deleted_begins_anew(tmp_path):
    table = ResumableTable(tmp_path / "log.csv", ("step",), position=1000)
    table.add({"step": 41})
    table.close()
    assert rows(tmp_path / "log.csv") == [{"step": "41"}]


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "steps.csv").mkdir()
    with pytest.raises(InputError, match=r"steps\.csv cannot be written"):
        RunLogs(tmp_path)


def test_tables_of_steps_and_epochs(tmp_path):
    logs = RunLogs(tmp_path)
    logs.step(step(1))
    logs.epoch(epoch(1, None))
    positions = logs.positions()
    logs.close()
    logs = RunLogs(tmp_path, positions=positions)
    logs.step(step(2))
    logs.epoch(epoch(2, 0.75))
    logs.close()
    assert [row["step"] for row in rows(tmp_path / "steps.csv")] == ["1", "2"]
    assert [row["test_accuracy"] for row in rows(tmp_path / "epochs.csv")] == ["", "0.75"]


def test_nothing_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logs = RunLogs(None, tensorboard=True)
    logs.step(step(1))
    logs.epoch(epoch(1, 0.5))
    logs.close()
    assert logs.positions() == [0, 0] and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_shows_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = RunLogs(tmp_path, tensorboard=True)
    for number in (1, 2, 3, 4):
        logs.step(step(number))
    logs.close()
    logs = RunLogs(tmp_path, tensorboard=True, positions=[0, 0], step=2)
    for number in (3, 4):
        logs.step(step(number) | {"loss": 9.0})
    logs.epoch(epoch(1, 0.5))
    logs.epoch(epoch(2, None))
    logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [(1, 1.0), (2, 0.5), (3, 9.0), (4, 9.0)]
    assert [e.step for e in events.Scalars("epoch/test_accuracy")] == [1]
    assert [e.step for e in events.Scalars("epoch/train_loss")] == [1, 2]


def test_tensorboard_that_is_missing_is_told(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'moe-prompt\[vision\]'"):
        RunLogs(tmp_path, tensorboard=True)
