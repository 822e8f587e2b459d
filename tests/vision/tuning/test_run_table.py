"""Rows of runs, read back as they were from the database and from an export."""

import multiprocessing
import sqlite3
from contextlib import closing
from dataclasses import asdict

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.tuning.run_table import RunTable, read_rows, write_rows
from tests.builders.planted_runs import planted


def awkward_rows():
    return [
        planted(key="a", message='a "quoted", comma\nand a line', accuracy=1 / 3, train_loss=None),
        planted(key="b", accuracy=None, failed=True, message="loss is nan", flops_forward=12345678.0),
        planted(key="c", task="ärger", share=0.01, seed=800, base_lr=0.1),
    ]


def test_rows_come_back_as_they_were(tmp_path):
    table = RunTable(tmp_path / "deep" / "runs.sqlite")
    rows = [table.add(row) for row in awkward_rows()]
    assert rows == awkward_rows()
    assert sorted(table.rows(), key=lambda row: row.key) == awkward_rows()
    assert table.get("b") == awkward_rows()[1] and table.get("none") is None
    assert type(table.get("b").failed) is bool


def test_the_first_row_under_a_key_stays(tmp_path):
    table = RunTable(tmp_path / "runs.sqlite")
    first = table.add(planted(key="a", accuracy=70.0))
    assert table.add(planted(key="a", accuracy=99.0)) == first
    assert table.rows() == (first,)


def test_export_and_back(tmp_path):
    path = write_rows(tmp_path / "runs.csv", awkward_rows())
    assert list(read_rows(path)) == awkward_rows()
    assert list(read_rows(tmp_path)) == awkward_rows()
    again = write_rows(tmp_path / "again.csv", read_rows(path))
    assert again.read_bytes() == path.read_bytes()


def test_two_processes_lose_no_row(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(str(tmp_path / "runs.sqlite"), name)) for name in "xy"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    found = {row.key for row in RunTable(tmp_path / "runs.sqlite").rows()}
    assert found == {f"{name}{number}" for name in "xy" for number in range(23)}


def add_many(path, name):
    from pathlib import Path

    for number in range(23):
        RunTable(Path(path)).add(planted(key=f"{name}{number}"))


def test_unusable_files_are_named(tmp_path):
    broken = tmp_path / "runs.sqlite"
    broken.write_text("no database, but long enough to have the header of one " * 40)
    with pytest.raises(InputError, match=r"runs\.sqlite is not a usable database"):
        RunTable(broken)
    assert broken.read_text().startswith("no database")
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE runs (key TEXT)")
    connection.close()
    with pytest.raises(InputError, match="other columns"):
        RunTable(other)
    with pytest.raises(InputError, match="has no runs"):
        read_rows(tmp_path / "nowhere")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"rows\.csv needs the columns"):
        read_rows(tmp_path / "rows.csv")
    text = write_rows(tmp_path / "good.csv", [planted()]).read_text()
    (tmp_path / "bad.csv").write_text(text.replace(",42,", ",forty-two,", 1))
    with pytest.raises(InputError, match=r"bad\.csv cannot be read"):
        read_rows(tmp_path / "bad.csv")


def test_a_database_of_an_earlier_version_is_read_and_written(tmp_path):
    """Its primary key stands beside its column, and its columns may have another order."""
    first, second = planted(key="a", accuracy=70.0), planted(key="b", failed=True, accuracy=None)
    kept = dict(reversed(asdict(first).items()))
    columns = ", ".join(f'"{name}"' + " TEXT PRIMARY KEY" * (name == "key") for name in kept)
    with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as db, db:
        db.execute(f"CREATE TABLE runs ({columns})")
        db.execute(f"INSERT INTO runs VALUES ({', '.join('?' for _ in kept)})", tuple(kept.values()))
    table = RunTable(tmp_path / "runs.sqlite")
    assert table.get("a") == first and table.add(second) == second and table.add(planted(key="a")) == first
    assert set(table.rows()) == {first, second}
