"""Exports: what comes back says the same; what does not belong to the study, or is not whole, is not used."""

import json
import os
import subprocess
from dataclasses import replace

import pandas as pd
import pytest

from moe_prompt.basics.provenance import _commit, environment
from moe_prompt.errors import InputError
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.cells import all_summaries, cells_of
from moe_prompt.studies.kinds.rates import RateStudy
from moe_prompt.studies.running.archive import database, export, load_rows, restore
from moe_prompt.studies.running.database import Results, columns_of
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study


def stored(folder, rows: pd.DataFrame | None = None, notes=NOTES):
    rows = planted_rows(study) if rows is None else rows
    results = Results(database(folder, "small"), RateStudy.columns)
    results.add(rows.astype(object).where(rows.notna(), None).to_dict("records"))
    for name, value in notes.items():
        results.note(study.key, name, value)
    results.close()
    return folder


@pytest.fixture
def folder(tmp_path):
    return stored(tmp_path / "results")


def exported(folder, format: str = "csv"):
    """The folder with an export and no database."""
    export(study, folder, format)
    database(folder, "small").unlink()
    return folder


def test_csv_and_json_say_what_the_database_says(folder):
    before = load_rows(study, folder)
    after = load_rows(study, exported(folder))
    assert before.source == folder / "small.sqlite" and after.source == folder / "small.csv"
    assert len(after.rows) == len(before.rows) == 60 and set(columns_of(study.columns)) - set(after.rows) == {"study"}
    assert after.notes == before.notes == NOTES
    old, new = (cells_of(study, found.rows, found.notes) for found in (before, after))
    for one, other in zip(all_summaries(old), all_summaries(new), strict=True):
        left, right = one.to_dict(), other.to_dict()
        for a, b in zip([left, *left.pop("by_size")], [right, *right.pop("by_size")], strict=True):
            assert a.keys() == b.keys()
            for name, value in a.items():
                close = pytest.approx(value, rel=1e-6, abs=1e-7) if isinstance(value, float) else value
                assert b[name] == close, name
    assert caption(study, old) == caption(study, new)


def test_the_same_rows_export_to_the_same_bytes(folder, tmp_path):
    other = stored(tmp_path / "other", planted_rows(study)[::-1])
    first, second = ([path.read_bytes() for path in export(study, where)] for where in (folder, other))
    assert first == second
    again = [path.read_bytes() for path in export(study, folder)]
    assert again == first


def test_a_run_goes_on_from_an_export(folder):
    """Every row of the export is there, to its eight digits, with the notes; rows that are there already stay."""
    exported(folder)
    results = Results(database(folder, "small"), study.columns)
    assert restore(study, folder, results) == 60 and restore(study, folder, results) == 0
    frame, notes = results.frame(study.key), results.notes(study.key)
    results.close()
    told = load_rows(study, folder, exported=True)
    shared = [name for name in told.rows if name != "message"]
    pd.testing.assert_frame_equal(frame[shared], told.rows[shared], check_dtype=False, rtol=1e-7)
    assert notes == told.notes


def test_nothing_is_taken_over_from_another_study(folder):
    exported(folder)
    other = replace(study, seed=1)
    results = Results(database(folder, "small"), study.columns)
    assert restore(other, folder, results) == 0 and not results.done(other.key)
    results.close()


def test_provenance(folder):
    _, about = export(study, folder)
    told = json.loads(about.read_text(), parse_constant=pytest.fail)
    assert (told["study"], told["key"], told["seed"], told["claim"]) == ("small", study.key, 0, study.claim)
    assert (told["sizes"], told["replicates"], told["window"]) == ([23, 61, 157], 5, [23, 157])
    assert told["fits"] == 60 and told["notes"] == NOTES


def test_parquet_or_a_sentence(folder):
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"Parquet needs pyarrow: pip install pyarrow .* or export as csv"):
            export(study, folder, "parquet")
        assert not (folder / "small.json").exists()
        return
    table, _ = export(study, folder, "parquet")
    pd.testing.assert_frame_equal(
        pd.read_parquet(table), load_rows(study, folder).rows.drop(columns="study"), check_dtype=False
    )


def test_only_the_sizes_and_replicates_of_the_study(folder):
    quick = study.quick()
    for where in (folder, exported(folder)):
        rows = load_rows(quick, where).rows
        assert set(rows.n) == {23, 61} and set(rows.replicate) == {0, 1, 2} and len(rows) == 24
        assert rows.index.tolist() == list(range(24))


@pytest.mark.parametrize("form", ["database", "export"])
def test_rows_of_another_content_are_not_used(folder, form):
    where = exported(folder) if form == "export" else folder
    with pytest.raises(InputError, match=r"no rows of study small \(seed 1\)"):
        load_rows(replace(study, seed=1), where)


def test_the_database_goes_before_an_export_unless_asked(folder):
    export(study, folder)
    rows = pd.read_csv(folder / "small.csv")
    rows["excess_risk"] *= 2
    rows.to_csv(folder / "small.csv", index=False)
    half, whole = (load_rows(study, folder, exported=flag).rows.excess_risk for flag in (False, True))
    assert (whole / half).tolist() == pytest.approx([2] * 60, rel=1e-6)


def drop_rows(folder):
    text = (folder / "small.csv").read_text().splitlines(keepends=True)
    (folder / "small.csv").write_text("".join(text[:-7]))


def drop_column(folder):
    pd.read_csv(folder / "small.csv").drop(columns="missed").to_csv(folder / "small.csv", index=False)


DAMAGE = {
    "rows lost": drop_rows,
    "a column lost": drop_column,
    "no table": lambda folder: (folder / "small.csv").write_bytes(bytes(range(256))),
    "an empty table": lambda folder: (folder / "small.csv").write_text(""),
    "no JSON": lambda folder: (folder / "small.json").write_text("{"),
    "another JSON": lambda folder: (folder / "small.json").write_text("[1, 2]"),
    "JSON without notes": lambda folder: (folder / "small.json").write_text(json.dumps({"key": study.key, "fits": 60})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_exports_are_a_sentence(folder, damage):
    DAMAGE[damage](exported(folder))
    with pytest.raises(InputError, match="export the study again"):
        load_rows(study, folder)


@pytest.mark.parametrize("name", ["small.csv", "small.json"])
def test_half_an_export_is_none(folder, name):
    (exported(folder) / name).unlink()
    with pytest.raises(InputError, match="no rows of study small"):
        load_rows(study, folder)


def test_what_cannot_be_exported(folder, tmp_path):
    with pytest.raises(InputError, match="unknown format 'xml': choose one of csv, parquet"):
        export(study, folder, "xml")
    with pytest.raises(InputError, match="run it first"):
        export(study, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (folder / "small.csv").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        export(study, folder)


def test_environment_names_versions_and_machine():
    told = environment()
    assert json.loads(json.dumps(told)) == told
    assert told["packages"]["moe-prompt"] and told["machine"]["cores"] == os.cpu_count()


def test_commit_is_none_where_git_is_not(monkeypatch):
    def missing(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert _commit() is None
