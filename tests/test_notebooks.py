"""Every notebook runs from top to bottom, what it shows is what is committed, and its numbers are those of the rows."""

import ast
import base64
import json
import math
import os
import re
import struct
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

import moe_prompt as mp

FOLDER = Path(__file__).parent.parent / "notebooks"
RESULTS = FOLDER.parent / "experiments" / "results"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MOST_LINES = {ast.FunctionDef: 3, ast.ClassDef: 10}
CELL_LINES, BYTES = 35, 500_000
NUMBER = r"(-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)"
WIDTHS = (3.3, 6.8)  # inches, as printed
COLUMNS = {
    "D": "parameter_loss",
    "parameter": "parameter_loss",
    "split": "split_error",
    "moments": "first_moment_error",
    "function": "function_error",
    "boundary": "boundary_error",
}


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@each_notebook
def test_a_fresh_run_gives_the_committed_outputs(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=os.pathsep)  # the package beside the notebooks
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this interpreter before any of the user's
    fresh, committed = read(path), read(path)
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(fresh, kernel_name="python3", timeout=600, resources=where).execute()  # raises at the first error
    for now, then in zip(code(fresh), code(committed), strict=True):
        assert len(pictures(now)) == len(pictures(then)), now.source
        for kind in ("stdout", "stderr", "text/plain", "text/html"):
            assert differences(texts(now, kind), texts(then, kind)) == [], f"{kind} of the cell\n{now.source}"
    assert any(pictures(cell) for cell in code(fresh))


@pytest.mark.parametrize(
    "text, other, same",
    [
        ("slope -0.498 +- 0.009", "slope  -0.498\n+- 0.009", True),
        ("slope -0.498 +- 0.009", "slope -0.499 +- 0.009", True),
        ("slope -0.498 +- 0.009", "slope -0.500 +- 0.009", False),
        ("5,200 fits", "5,201 fits", False),
        ("error 3.0000001e-16", "error 3.0e-16", True),
        ("error 3.1e-16", "error 3.0e-16", False),
        ("rate n^-1/2", "rate n^-1/4", False),
        ("as predicted", "not as predicted", False),
        ("one 1", "one 1 2", False),
    ],
)
def test_texts_are_the_same_up_to_spaces_and_rounding(text, other, same):
    assert (differences(text, other) == []) is same


@each_notebook
def test_is_stored_as_it_ran(path):
    cells = code(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert path.stat().st_size < BYTES
    shown = "".join(texts(cell, kind) for cell in cells for kind in ("stdout", "stderr", "text/plain", "text/html"))
    assert not re.search(r"site-packages|/(home|root|tmp|usr|Users)/|\d{4}-\d\d-\d\d", shown)


@each_notebook
def test_figures_are_as_wide_as_in_print(path):
    for cell in code(read(path)):
        for picture in pictures(cell):
            width = struct.unpack(">I", picture[16:20])[0]
            per_metre = struct.unpack(">I", picture[picture.index(b"pHYs") + 4 :][:4])[0]
            assert any(abs(width / (per_metre * 0.0254) - printed) < 0.02 for printed in WIDTHS)


@pytest.mark.parametrize(
    "notebook, study",
    [("02", "vpt-vs-vapt"), ("02", "vpt-vs-vapt-patches"), ("04", "over-specified"), ("04", "non-identifiable")],
)
def test_as_many_fits_as_rows(notebook, study):
    found = re.findall(r"^([\d,]+) fits", stdout(notebook), re.M)
    assert len(rows_of(study)) in [int(count.replace(",", "")) for count in found]


@pytest.mark.parametrize("notebook, study, lines", [("02", "vpt-vs-vapt", 6), ("04", "gates-top-k", 3)])
def test_slopes_of_tables_are_those_of_the_rows(notebook, study, lines):
    line = re.compile(r"^(\S+) +(\S+) +(\S+) +(mean|median) +(-?[\d.]+) ±", re.M)
    found = line.findall(stdout(notebook))
    assert len(found) == lines
    for truth, estimator, loss, statistic, slope in found:
        assert abs(float(slope) - slope_of(study, truth, estimator, loss, statistic)) < 6e-4


def test_slopes_on_two_windows_are_those_of_the_rows():
    line = re.compile(r"^n = +([\d,]+) to ([\d,]+): (\S+) fitted to (\S+) data +(\S+) \+-", re.M)
    found = line.findall(stdout("02"))
    assert len(found) == 4
    for low, high, estimator, truth, slope in found:
        window = int(low.replace(",", "")), int(high.replace(",", ""))
        computed = slope_of("vpt-vs-vapt-patches", truth, estimator, "parameter", "mean", window)
        assert abs(float(slope) - computed) < 6e-4


def test_slopes_of_splits_are_those_of_the_rows():
    found = table_with("04", "split", "moments", "D")
    assert len(found) == rows_of("over-specified").truth.nunique() == 10
    for truth, shown in found.items():
        for loss in ("D", "function", "moments", "split"):
            slope = float(shown[loss].split()[0])
            assert abs(slope - slope_of("over-specified", truth, None, loss, "mean")) < 6e-4


def test_splits_that_no_sample_tells_are_those_of_the_rows():
    found, rows = table_with("04", "median, n = 1000", "slope, moments"), rows_of("non-identifiable")
    assert len(found) == rows.truth.nunique() == 6
    for truth, shown in found.items():
        for name in ("moments", "function"):
            computed = slope_of("non-identifiable", truth, None, name, "mean")
            assert abs(float(shown[f"slope, {name}"]) - computed) < 6e-3
        for n in (1000, 100_000):
            splits = rows.split_error[(rows.truth == truth) & (rows.n == n)]
            assert abs(float(shown[f"median, n = {n}"]) - splits.median()) < 6e-3
            assert abs(float(shown[f"quantile_90, n = {n}"]) - splits.quantile(0.9)) < 6e-3


def test_errors_of_the_boundary_are_those_of_the_rows():
    found, rows = table_with("04", "median error of the boundary"), rows_of("gates-top-k")
    assert sorted(map(int, found)) == sorted(rows.n.unique())
    for n, shown in found.items():
        own = rows[rows.n == int(n)]
        assert abs(float(shown["median error of the boundary"]) - own.boundary_error.median()) < 6e-7
        assert (int(shown["missed"]), int(shown["fits"])) == (own.missed.sum(), len(own))


@each_notebook
def test_logic_stays_in_the_library(path):
    for source in sources(path):
        assert len(source.splitlines()) <= CELL_LINES, source
        for node in ast.parse(source).body:
            most = MOST_LINES.get(type(node), CELL_LINES)
            assert node.end_lineno - node.lineno < most, f"{ast.unparse(node)} belongs in the package"


@each_notebook
def test_notebooks_use_the_door(path):
    """What `moe_prompt` offers is taken from there; a notebook for users imports the package from nowhere else."""
    trees = [ast.walk(ast.parse(source)) for source in sources(path)]
    imports = [node for tree in trees for node in tree if isinstance(node, (ast.Import, ast.ImportFrom))]
    whole = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    parts = {node.module: {name.name for name in node.names} for node in imports if isinstance(node, ast.ImportFrom)}
    assert "moe_prompt" in whole
    assert not any(names & set(mp.__all__) for module, names in parts.items() if module.startswith("moe_prompt"))
    if path.stem.startswith("03"):
        assert not parts and whole <= {"moe_prompt", "torch", "numpy", "matplotlib"}


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell, kind):
    """What a cell shows in one kind of text, as one piece; a picture's stand-in is none."""
    streams = [output.text for output in cell.outputs if output.get("name") == kind]
    shown = [o.data.get(kind, "") for o in cell.outputs if "data" in o and "image/png" not in o.data]
    return "\n".join(streams + shown) if kind.startswith("text") else "".join(streams)


def pictures(cell):
    data = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [base64.b64decode(picture) for picture in data]


def differences(text, other):
    """Pairs of pieces in which two texts differ; numbers may by a relative 1e-6 or a last digit, spaces at will."""
    one, two = (re.split(NUMBER, " ".join(words.split())) for words in (text, other))
    if len(one) != len(two):
        return [(text, other)]
    return [(a, b) for k, (a, b) in enumerate(zip(one, two, strict=True)) if not (near(a, b) if k % 2 else a == b)]


def near(a, b):
    """Equal to 1e-6, or the last digit of a rounded number apart: another processor may round the other way."""
    x, y = (float(number.replace(",", "")) for number in (a, b))
    mantissa, _, power = a.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    last_digit = 10.0 ** (int(power or 0) - decimals) if decimals >= 2 else 0.0
    return math.isclose(x, y, rel_tol=1e-6) or abs(x - y) <= 1.01 * last_digit


@cache
def stdout(number):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    return "\n".join(texts(cell, "stdout") for cell in code(read(path)))


def table_with(number, *columns):
    """Rows of the only table of a notebook with these columns: first cell -> column -> text."""
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    shown = [texts(cell, "text/html") for cell in code(read(path))]
    tables = [table for text in shown for table in re.findall(r"<table.*?</table>", text, re.S)]
    (table,) = [table for table in tables if all(f"<th>{column}</th>" in table for column in columns)]
    head = re.findall(r"<th>([^<]*)</th>", re.search(r"<thead>.*?</tr>", table, re.S)[0])[1:]
    body = re.findall(r"<th>([^<]+)</th>\s*((?:<td>[^<]*</td>\s*)+)", table)
    return {name: dict(zip(head, re.findall(r"<td>([^<]*)</td>", cells), strict=True)) for name, cells in body}


@cache
def rows_of(study):
    return pd.read_csv(RESULTS / f"{study}.csv")


def slope_of(study, truth, estimator, loss, statistic, window=None):
    """The slope of a committed study's rows, from the file alone."""
    rows = rows_of(study)
    low, high = window or json.loads((RESULTS / f"{study}.json").read_text())["window"]
    own = (rows.truth == truth) & (rows.estimator.eq(estimator) | (estimator is None)) & rows.n.between(low, high)
    errors = rows[own].groupby("n")[COLUMNS.get(loss, loss)].agg(statistic)
    return np.polyfit(np.log(errors.index), np.log(errors), 1)[0]


def sources(path):
    """Code cells without IPython's magic lines."""
    for cell in code(read(path)):
        yield "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
