"""The database: a row once, as it was written; damaged, foreign and unwritable files are sentences."""

import math
import sqlite3

import pytest

from moe_prompt.errors import InputError
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.running.database import KEY, Results, columns_of
from tests.builders.planted_rows import planted_rows
from tests.builders.small_study import study


def row(replicate: int = 0, **changes):
    where = {"study": "abc", "truth": "t", "estimator": "e", "n": 23, "replicate": replicate}
    return (
        dict.fromkeys(columns_of(RateStudy.columns))
        | where
        | {"excess_risk": 0.1, "converged": True, "message": "fine"}
        | changes
    )


@pytest.fixture
def results(tmp_path):
    opened = Results(tmp_path / "deep" / "rows.sqlite", RateStudy.columns)
    yield opened
    opened.close()


def filled(path):
    """A database of 60 planted rows, closed."""
    results = Results(path, RateStudy.columns)
    results.add(planted_rows(study).astype(object).to_dict("records"))
    results.note(study.key, "environment", {"packages": {}})
    results.close()
    return path


def test_rows_come_back_in_the_order_of_their_coordinates(results):
    results.add([row(5), row(2, n=29), row(2), row(0, study="other")])
    frame = results.frame("abc")
    assert frame[["n", "replicate"]].to_numpy().tolist() == [[23, 2], [23, 5], [29, 2]]
    assert list(frame.columns) == list(columns_of(RateStudy.columns)) and frame.excess_risk.tolist() == [0.1] * 3
    assert results.done("abc") == {("t", "e", 23, 5), ("t", "e", 29, 2), ("t", "e", 23, 2)}
    assert results.done("nobody") == set() and len(results.frame("nobody")) == 0


@pytest.mark.parametrize("coordinate", KEY)
def test_a_row_stays_as_it_was_first_written(results, coordinate):
    other = "x" if isinstance(row()[coordinate], str) else 7
    results.add([row()])
    results.add([row(excess_risk=9.0), row(excess_risk=0.7, **{coordinate: other})])
    kept = results.connection.execute("SELECT excess_risk FROM fits ORDER BY rowid").fetchall()
    assert kept == [(0.1,), (0.7,)]


def test_numbers_that_are_none_survive(results):
    results.add([row(excess_risk=math.nan, objective=math.inf, efficiency=1e-300)])
    found = results.frame("abc").iloc[0]
    assert {results.frame("abc")[name].dtype.kind for name in ("excess_risk", "objective", "parameter_loss")} == {"f"}
    assert math.isnan(found.excess_risk) and found.objective == math.inf and found.efficiency == 1e-300


def test_a_batch_is_written_whole_or_not_at_all(results):
    with pytest.raises(InputError, match="not a usable database"):
        results.add([row(0), row(1, truth=None)])
    assert results.done("abc") == set()


def test_notes_belong_to_a_study_and_the_last_counts(results):
    results.note("abc", "limits", {"floor": 0.1})
    results.note("abc", "limits", {"floor": 1 / 3})
    results.note("other", "limits", None)
    assert results.notes("abc") == {"limits": {"floor": 1 / 3}} and results.notes("nobody") == {}


def test_two_runs_share_a_file(tmp_path):
    first, second = (
        Results(tmp_path / "rows.sqlite", RateStudy.columns),
        Results(tmp_path / "rows.sqlite", RateStudy.columns),
    )
    for replicate in range(6):
        (first, second)[replicate % 2].add([row(replicate), row(0, excess_risk=9.0)])
    assert first.frame("abc").equals(second.frame("abc"))
    assert first.frame("abc").replicate.tolist() == list(range(6)) and first.frame("abc").excess_risk[0] == 0.1
    first.close()
    second.close()


def garbage(raw: bytes) -> bytes:
    return bytes(range(256)) * 8


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) * 2 // 3]


def holed(raw: bytes) -> bytes:
    """The header and the last page are left, what is between is noise."""
    page = int.from_bytes(raw[16:18], "big")
    return raw[:page] + b"\xa5" * (len(raw) - 2 * page) + raw[-page:]


@pytest.mark.parametrize("damage", [garbage, cut, holed])
def test_damaged_files_are_refused_and_left_alone(tmp_path, damage):
    path = filled(tmp_path / "rows.sqlite")
    bad = damage(path.read_bytes())
    path.write_bytes(bad)
    with pytest.raises(InputError, match=r"rows\.sqlite is not a usable database .*: move it away"):
        Results(path, RateStudy.columns)
    assert path.read_bytes() == bad


USES = {
    "add": lambda results: results.add([row()]),
    "done": lambda results: results.done("abc"),
    "frame": lambda results: results.frame("abc"),
    "note": lambda results: results.note("abc", "limits", 1),
    "notes": lambda results: results.notes("abc"),
}


@pytest.mark.parametrize("use", USES)
def test_files_that_break_or_are_locked_meanwhile_are_a_sentence(tmp_path, use):
    path = filled(tmp_path / "rows.sqlite")
    results, other = Results(path, RateStudy.columns), sqlite3.connect(path, isolation_level=None)
    results.connection.execute("PRAGMA busy_timeout = 1")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match=r"rows\.sqlite is in use by another program .*locked\): wait for that to end"):
        USES[use](results)
    other.execute("ROLLBACK")
    USES[use](results)
    other.close()
    path.write_bytes(garbage(path.read_bytes()))
    with pytest.raises(InputError, match=r"rows\.sqlite is not a usable database .*: move it away"):
        USES[use](results)
    results.close()


@pytest.mark.parametrize("change", ["ALTER TABLE fits ADD COLUMN more REAL", "ALTER TABLE fits DROP COLUMN offset"])
def test_other_columns_are_refused_and_left_alone(tmp_path, change):
    path = filled(tmp_path / "rows.sqlite")
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="other columns than this version writes"):
        Results(path, RateStudy.columns)
    assert path.read_bytes() == before


def test_a_folder_that_is_none_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file" / "rows.sqlite", tmp_path / "file" / "sub" / "rows.sqlite"):
        with pytest.raises(InputError, match=r"cannot write .*: name a folder you may write to with --out\."):
            Results(path, RateStudy.columns)
    (tmp_path / "rows.sqlite").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        Results(tmp_path / "rows.sqlite", RateStudy.columns)
