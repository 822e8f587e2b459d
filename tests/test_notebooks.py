"""Every notebook runs from top to bottom on the running interpreter, and its logic is the package's."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
FUNCTION_LINES, CLASS_LINES, CELL_LINES = 3, 10, 35


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_runs(path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    pictures = count_pictures(notebook)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this interpreter before any of the user's
    where = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=300, resources=where)
    client.execute()  # raises at the first error
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert count_pictures(notebook) == pictures > 0


@each_notebook
def test_is_stored_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    order = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert order == list(range(1, len(order) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]


@each_notebook
def test_logic_stays_in_the_library(path):
    for source in sources(path):
        assert len(source.splitlines()) <= CELL_LINES, source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                assert lines(node) <= CLASS_LINES, f"class {node.name} belongs in the package"
            elif isinstance(node, ast.FunctionDef) and not is_method(node, source):
                assert lines(node) <= FUNCTION_LINES, f"function {node.name} belongs in the package"


def sources(path):
    """Code cells without IPython's magic lines."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            yield "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def count_pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def lines(node):
    return node.end_lineno - node.lineno + 1


def is_method(function, source):
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return any(node.lineno < function.lineno <= node.end_lineno for node in classes)
