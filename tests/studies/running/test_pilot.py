"""Which rows suffice for a plan, and a pilot whose rows are the study's own."""

from dataclasses import replace

import pytest

from moe_prompt.studies.analysis.cells import cells_of
from moe_prompt.studies.analysis.planning import plan_study
from moe_prompt.studies.running import archive, runner
from moe_prompt.studies.running.database import Results
from moe_prompt.studies.running.pilot import known_basis, pilot, pilot_basis, sufficient
from tests.builders.planted_rows import planted_rows
from tests.builders.small_study import study
from tests.cli.test_main import stored
from tests.studies.running.test_runner import assert_same_rows

ROWS = planted_rows(study)


def plan(of, rows, done):
    return plan_study(of, cells_of(of, rows, {}), done)


def test_rows_suffice_when_every_cell_has_two_sizes():
    assert sufficient(study, ROWS) and not sufficient(study, ROWS[:0])
    assert not sufficient(study, ROWS[ROWS.n == 61]) and sufficient(study, ROWS[ROWS.n < 157])
    own = (ROWS.truth == "vpt") & (ROWS.estimator == "vapt")
    assert not sufficient(study, ROWS[~own])
    assert sufficient(study, ROWS[ROWS.replicate < 4]) and not sufficient(study, ROWS[ROWS.replicate < 3])
    assert sufficient(replace(study, replicates=3), ROWS[ROWS.replicate < 3])
    assert not sufficient(replace(study, window=(61, 157)), ROWS[ROWS.n < 157])


def test_basis_names_where_it_is_from(tmp_path):
    assert known_basis(study, tmp_path) is None and not list(tmp_path.iterdir())
    stored(tmp_path)
    found = known_basis(study, tmp_path)
    assert len(found.rows) == len(found.done) == 60 and "60 rows of" in found.source and "small.sqlite" in found.source
    archive.export(study, tmp_path)
    archive.database(tmp_path, "small").unlink()
    found = known_basis(study, tmp_path)
    assert len(found.rows) == 60 and "small.csv" in found.source
    assert found.done == set(zip(ROWS.truth, ROWS.estimator, ROWS.n, ROWS.replicate, strict=True))
    assert not archive.database(tmp_path, "small").exists()


def exported(folder, rows=ROWS):
    """A folder with an export and no database, as a clone has it."""
    archive.export(study, stored(folder, rows))
    archive.database(folder, "small").unlink()
    return folder


def test_exported_rows_need_not_be_computed(tmp_path):
    """A plan counts what a run leaves to be done after it took them over, whether it starts with the study or more."""
    exported(tmp_path)
    more = replace(study, replicates=7)
    forecasts = [plan(s, *known_basis(s, tmp_path)[:2]) for s in (study, more)]
    results = Results(archive.database(tmp_path, "small"), study.columns)
    assert archive.restore(study, tmp_path, results) == 60
    left = [sum(len(b.replicates) for b in runner.missing_batches(s, results.done(s.key))) for s in (study, more)]
    results.close()
    assert [f.left for f in forecasts] == left == [0, 4 * 3 * 2] and forecasts[0].core_hours == 0
    assert [f.left for f in (plan(s, *known_basis(s, tmp_path)[:2]) for s in (study, more))] == left


def test_a_database_with_rows_of_its_own_hides_the_export(tmp_path):
    """Nothing is taken over there, so that the rest is still to be computed."""
    exported(tmp_path)
    stored(tmp_path, ROWS[ROWS.n < 157])
    assert len(known_basis(study, tmp_path).done) == 40


def test_a_pilot_starts_from_exported_rows(tmp_path):
    """Too few for a plan, they are kept as they were and not computed again."""
    few = ROWS[ROWS.replicate < 2].assign(objective=123.0)
    basis = pilot_basis(study, exported(tmp_path, few))
    old = basis.rows.objective == 123.0
    assert old.sum() == 24 and (basis.rows.replicate[old] < 2).all() and set(basis.rows.n[old]) == {23, 61, 157}
    assert sufficient(study, basis.rows) and (~old).sum() == 4 * 2 * 3 and len(basis.done) >= 48


@pytest.fixture(scope="module")
def piloted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pilot")
    return folder, pilot_basis(replace(study, replicates=9), folder)


def test_a_pilot_runs_two_small_sizes_and_keeps_them(piloted):
    folder, basis = piloted
    assert sorted(basis.rows.n.unique()) == [23, 61] and "pilot at n = 23, 61" in basis.source
    assert sorted(basis.rows.replicate.unique()) == list(range(9)) and len(basis.done) == len(basis.rows) == 4 * 2 * 9
    assert sufficient(study, basis.rows) and known_basis(study, folder) is not None


def test_its_rows_are_the_study_s_own(piloted, tmp_path):
    folder, _ = piloted
    many = replace(study, replicates=9)
    there, whole = (Results(path, study.columns) for path in (folder / "small.sqlite", tmp_path / "whole.sqlite"))
    assert len(runner.missing_batches(many, there.done(study.key))) == 4  # the largest size of every cell
    runner.run(replace(many, sizes=(23, 61)), whole)
    assert_same_rows(there.frame(study.key), whole.frame(study.key))
    there.close()
    whole.close()


def test_rows_that_were_there_took_none_of_its_time(monkeypatch, tmp_path):
    """An hour of old rows, at other replicates, does not make the next ones look dear."""
    many, ran = replace(study, replicates=200), []
    monkeypatch.setattr(runner, "run", lambda few, results, progress: ran.append(few.replicates))
    results = Results(
        archive.database(stored(tmp_path, ROWS.assign(cpu_seconds=60.0, replicate=ROWS.replicate + 50)), "small"),
        study.columns,
    )
    pilot(many, results, seconds=40.0)
    assert ran == [6, 25]
    results.close()


def test_a_pilot_ends_in_time(monkeypatch, tmp_path):
    """No second for more than the first few replicates; with a minute the most there are."""
    many, ran = replace(study, replicates=200), []
    monkeypatch.setattr(runner, "run", lambda few, results, progress: ran.append(few.replicates))
    results = Results(tmp_path / "a.sqlite", study.columns)
    pilot(many, results, seconds=-1.0)
    assert ran == [6]
    pilot(many, results, seconds=60.0)
    assert ran == [6, 6, 25]
    results.close()
