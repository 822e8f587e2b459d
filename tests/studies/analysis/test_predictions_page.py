"""The page of predictions and measurements: from planted rows, and as it lies in docs/ from the committed ones."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest

from moe_prompt.cli import main
from moe_prompt.errors import InputError
from moe_prompt.studies import loading as studies
from moe_prompt.studies.analysis.blocks import study_block
from moe_prompt.studies.analysis.predictions_page import document, measured
from moe_prompt.studies.analysis.rate_fit import fit_rate
from moe_prompt.studies.base import Quantity, Relation, Study
from moe_prompt.studies.named import contaminated
from moe_prompt.studies.running.database import columns_of
from moe_prompt.theory import families
from moe_prompt.theory.report import FamilyReport
from tests.builders.pages import tables
from tests.builders.planted_rows import NOTES, planted_rows
from tests.builders.small_study import study

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "theory.md"


def report(family, rate="n^-1/4", sigma=0.0123, rank=7, gauge=0, exact="n^-1/2", reason="because |x| is"):
    return FamilyReport(
        family, 7, rank, gauge, None, 3.0, (1.0, 0.0), (), 543.21, exact, sigma, sigma, rate, None, reason
    )


REPORTS = [
    report("VPT, B injective"),
    report("VAPT, tanh", rank=5, gauge=2, exact="n^-1/2 up to gauge 2"),
    report("prefix, non-shared", "not identifiable", 1e-17),
    report("VAPT, relu", "-", None),
    report("VPT, B singular", exact="not identifiable", rank=5),
]


class Over(Study):
    """Two families with an atom too many; nobody fits them."""

    cells = (("VAPT, tanh, L = 2", "L' = 3"), ("prefix, non-shared, L = 1", "L' = 3"), ("VAPT, tanh, L = 2", "VPT"))
    content = "planted"
    columns = {"d": "REAL", "t": "REAL"}  # noqa: RUF012

    def quantities(self, truth, estimator):
        smooth = truth.startswith("VAPT")
        return (
            Quantity("d", "D", -0.5 if smooth else None, "c", "median", short="D"),
            Quantity("t", "split", -0.25 if smooth else None, short="split"),
        )

    def relation(self, truth, estimator):
        atoms = 2 if truth.startswith("VAPT") else 1
        return Relation(atoms, 3, estimator != "VPT", truth.rsplit(", L =", 1)[0])

    def limits(self, truth, estimator):
        raise NotImplementedError

    def fit_batch(self, truth, estimator, n, replicates, limits):
        raise NotImplementedError


FAMILIES = {"vpt": "VPT, B injective", "vapt": "VAPT, tanh"}
named = replace(study, truths={name: replace(truth, family=FAMILIES[name]) for name, truth in study.truths.items()})
OVER = Over(name="over", claim="splits err as planted", sizes=(100, 1000, 10_000), replicates=3, window=(100, 10_000))


def exported(folder, of, rows, notes):
    """An export as `archive` writes it."""
    kept = [name for name in columns_of(of.columns) if name != "study"]
    rows.reindex(columns=kept).to_csv(folder / f"{of.name}.csv", index=False)
    (folder / f"{of.name}.json").write_text(json.dumps({"key": of.key, "fits": len(rows), "notes": notes}))
    return measured(of, folder)


def over_rows():
    """D = 4 n^-0.5 and split n^-0.25 in the first cell, no fall in the second, 10 n^-1 in the one of another family."""
    planted = {0: lambda n: (4 * n**-0.5, n**-0.25), 1: lambda n: (2.0, 0.7), 2: lambda n: (10 / n, 10 / n)}
    rows = [
        {"truth": t, "estimator": e, "n": n, "replicate": r, "objective": 1.0, "converged": 1, "at_boundary": 0}
        | dict(zip("dt", planted[i](n), strict=True))
        for i, (t, e) in enumerate(OVER.cells)
        for n in OVER.sizes
        for r in range(3)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def small(tmp_path):
    return exported(tmp_path, named, planted_rows(named), NOTES)


@pytest.fixture
def over(tmp_path):
    return exported(tmp_path, OVER, over_rows(), {"limits VAPT, tanh, L = 2 L' = 3": {"c": 3.2}})


def told(page):
    """Every Markdown table as a list of dictionaries; a cell that breaks a row does not pass."""
    heads = [block.split("\n")[0].strip("| ").split(" | ") for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.M)]
    return [[dict(zip(head, row, strict=True)) for row in body] for head, body in zip(heads, tables(page), strict=True)]


# ------------------------------------------------------------------------------------------------ planted rows


def test_families_are_shown_with_the_studies_that_measure_them(small, over):
    """And with those alone: a cell in which another family is fitted is none of its own."""
    families, *_ = told(document(REPORTS, [small, over], "rows", "../pictures"))
    assert [row["family"] for row in families] == [r.family for r in REPORTS]
    measured_in = [row["measured in"] for row in families]
    both = "[small](#small), [over](#over)"
    assert measured_in == ["[small](#small)", both, "[over](#over)", "not measured", "not measured"]


def test_conditions_and_rates_are_those_of_the_reports():
    page = document(REPORTS, [], "rows", "f")
    (families,) = told(page)
    assert [row["rank"] for row in families] == ["7", "5", "7", "7", "5"]
    assert [row["gauge"] for row in families] == ["0", "2", "0", "0", "0"]
    assert {row["parameters"] for row in families} == {"7"}
    assert [row["sigma_2"] for row in families] == ["0.012", "0.012", "0", "-", "0.012"]
    assert [row["rate, L' = L"] for row in families] == [r.rate_exact for r in REPORTS]
    assert [row["rate, L' > L"] for row in families] == [r.rate for r in REPORTS]
    assert [row["n MSE / s^2 at least"] for row in families] == ["543"] * 4 + ["-"]
    assert all(f"- **{r.family}**: {r.reason}" in page for r in REPORTS)


def test_cells_beside_their_predictions(small, over):
    """A cell of another family's estimator is not there; constants are compared at the largest n."""
    page = document(REPORTS, [small, over], "rows", "f")
    _, first, second = told(page)
    assert [row["truth"] for row in first] == ["vpt", "vapt"] and set(first[0]) == {
        *("truth", "fitted model", "parameter", "excess_risk")
    }
    rows = planted_rows(named)
    own = rows[(rows.truth == "vpt") & (rows.estimator == "vpt")]
    fit = fit_rate({n: group.excess_risk.to_numpy() for n, group in own.groupby("n")}, named.window)
    (vpt,) = [cell["excess_risk"] for cell in small.cells if cell.truth == cell.estimator == "vpt"]
    assert first[0]["excess_risk"] == f"{fit.slope:.3f} ± {fit.stderr:.3f} (-1; {vpt.over_prediction:.2f})"
    assert [(row["truth"], row["fitted model"]) for row in second] == list(OVER.cells[:2])
    assert second[0]["D"] == f"-0.500 ± 0.000 median (-0.5; {4 / 3.2:.2f})"
    assert second[0]["split"] == "-0.250 ± 0.000 (-0.25)" and second[1]["split"].endswith("0.000 ± 0.000 (-)")
    assert f"### over\n\nClaim: {OVER.claim}. [Figure](f/over.png)." in page


def test_one_replicate_has_no_error_and_one_size_no_slope(tmp_path):
    rows = over_rows()
    single = exported(tmp_path, OVER, rows[rows.replicate == 0], {})
    assert told(document(REPORTS, [single], "rows", "f"))[1][0]["split"] == "-0.250 (-0.25)"
    short = exported(tmp_path, OVER, rows[rows.n == 100], {})
    assert told(document(REPORTS, [short], "rows", "f"))[1][0]["split"] == "no slope (-0.25)"


def test_studies_without_rows_are_shown_as_such(tmp_path):
    """And likelihood studies say themselves what they predict."""
    likelihood = contaminated.build()
    page = document(REPORTS, [measured(OVER, tmp_path), measured(likelihood, tmp_path)], "rows", "f")
    families, regression, likelihoods = told(page)
    assert {row["measured in"] for row in families} == {"not measured"} and "(f/" not in page
    assert regression[0]["split"] == "not measured (-0.25)" and regression[1]["split"] == "not measured (-)"
    for (truth, estimator), row in zip(likelihood.cells, likelihoods, strict=True):
        shown = {q.name: f"not measured ({q.slope:g})" for q in likelihood.quantities(truth, estimator)}
        absent = dict.fromkeys(set(row) - {"truth", "fitted model", *shown}, "")
        assert row == {"truth": truth, "fitted model": estimator} | shown | absent
    assert any("" in row.values() for row in likelihoods)
    assert "## Likelihood models" in page and "## Likelihood models" not in document(REPORTS, [], "rows", "f")


def test_rows_of_another_content_are_not_taken_for_the_study_s(tmp_path):
    exported(tmp_path, OVER, over_rows(), {})
    other = type("Other", (Over,), {"content": "other"})(**{f.name: getattr(OVER, f.name) for f in fields(OVER)})
    with pytest.raises(InputError, match="no rows of study over"):
        measured(other, tmp_path)


# ------------------------------------------------------------------------------------------------ the page


def committed(reports):
    found = [measured(studies.load(name), ROOT / "experiments" / "results") for name in studies.NAMES]
    return document(reports, found, "experiments/results", "../figures")


def test_slopes_of_the_page_are_those_of_the_committed_rows():
    """After the table of families, which takes long; a stale page is made again by `moe-prompt theory`."""
    behind = "## Studies in"
    assert PAGE.read_text(encoding="utf-8").split(behind)[1] == committed([]).split(behind)[1]


@pytest.mark.slow
def test_the_page_is_made_from_the_committed_rows():
    assert PAGE.read_text(encoding="utf-8") == committed(families.table())


def test_command_writes_the_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    exported(tmp_path / "rows", named, planted_rows(named), NOTES)
    monkeypatch.setattr(studies, "NAMES", {"small": "small"})
    monkeypatch.setattr(studies, "load", lambda name: named)
    monkeypatch.setattr(families, "table", lambda: REPORTS)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["moe-prompt", "theory", *words])
        with pytest.raises(SystemExit) as left:
            main.main()
        return left.value.code or 0, capsys.readouterr()

    code, shown = call("--rows", "rows", "--out", "a/b/page.md")
    assert code == 0 and shown.out == "a/b/page.md\n"
    page = (tmp_path / "a" / "b" / "page.md").read_text(encoding="utf-8")
    assert "[Figure](../../figures/small.png)" in page and "rows in `rows`" in page
    (tmp_path / "README.md").write_text("a\n<!-- begin small -->\nold\n<!-- end small -->\nb")
    code, shown = call("--rows", "rows", "--out", "page.md")
    assert code == 0 and shown.out == "page.md\nREADME.md\n"
    made = (tmp_path / "README.md").read_text(encoding="utf-8")
    block = study_block(measured(named, tmp_path / "rows").cells)
    assert made == f"a\n<!-- begin small -->\n{block}\n<!-- end small -->\nb" and "1.0" in block
    (tmp_path / "other.md").write_text("<!-- begin large -->\n<!-- end large -->")
    code, shown = call("--rows", "rows", "--out", "page.md", "--page", "other.md")
    assert code == 2 and "other.md has a table of large" in shown.err and shown.err.count("\n") == 1
    code, shown = call("--rows", "rows", "--out", "page.md", "--page", "none.md")
    assert code == 2 and "no page none.md" in shown.err
    code, shown = call("--rows", "nothing")
    assert code == 2 and shown.err == "moe-prompt: no folder nothing of exported rows: name one with --rows.\n"
    (tmp_path / "file").write_text("")
    code, shown = call("--rows", "rows", "--out", "file/page.md")
    assert code == 2 and "cannot write file/page.md" in shown.err and shown.err.count("\n") == 1
