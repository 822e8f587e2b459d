"""The house: folders import from folders above them only, without a circle, and the wheel stands alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moe_prompt"
ORDER = [
    "errors",
    "basics",
    "attention",
    "measures",
    "models",
    "theory",
    "estimation",
    "likelihood",
    "inference",
    "regressors",
    "studies",
    "plotting",
    "vision",
    "cli",
]
"""Each imports only from those before it."""
ON_REQUEST = {("studies.running.result", "plotting.study_figure")}
"""A result draws itself when it is asked to: the one import that points down."""
VISION = [
    "runtime",
    "vit",
    "methods",
    "downloads",
    "checkpoints",
    "data",
    "training",
    "tuning",
    "diagnosis",
    "report",
    "commands",
]
ENTRIES = 12  # of a folder; the list of named studies may be longer
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """The dotted name of a file within the package: "" for the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in SOURCES}


def imported(file: Path) -> set[str]:
    """Every dotted name that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def own(file: Path) -> set[str]:
    """Modules of the package among them; a folder's `__init__` where a name comes from there."""
    names = {name.removeprefix("moe_prompt.") for name in imported(file) if name.startswith("moe_prompt.")}
    return {name for name in names if name in MODULES and MODULES[name].name != "__init__.py"}


GRAPH = {name: own(file) for name, file in MODULES.items()}


def reached(name: str) -> set[str]:
    """Everything that importing a module brings with it, lazily or not."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = GRAPH[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_the_graph_is_read():
    assert "studies.base" in GRAPH["studies.kinds.rates"] and {"errors", "attention.prompts"} <= reached(
        "studies.named.gates"
    )
    assert "plotting.rates" in reached("cli.study")  # imported inside a function


def test_every_folder_is_in_the_list():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__", "__main__"} <= set(ORDER)
    assert {path.name for path in (PACKAGE / "vision").iterdir() if (path / "__init__.py").exists()} <= set(VISION)


@pytest.mark.parametrize("name", sorted(set(GRAPH) - {""}))
def test_imports_point_up(name):
    place = ORDER.index(name.split(".")[0])
    below = {used for used in GRAPH[name] if ORDER.index(used.split(".")[0]) > place}
    assert {(name, used) for used in below} <= ON_REQUEST, f"{name} imports from below: {sorted(below)}"


@pytest.mark.parametrize("name", sorted(name for name in GRAPH if name.startswith("vision.")))
def test_imports_within_vision_point_up(name):
    place = VISION.index(name.split(".")[1])
    inside = {used for used in GRAPH[name] if used.startswith("vision.")}
    below = {used for used in inside if VISION.index(used.split(".")[1]) > place}
    assert not below, f"{name} imports from folders below its own: {sorted(below)}"


@pytest.mark.parametrize("name", GRAPH)
def test_no_circle(name):
    assert name not in reached(name)


@pytest.mark.parametrize("folder", sorted({file.parent for file in SOURCES}), ids=lambda path: path.name)
def test_a_folder_says_what_it_is_and_is_small(folder):
    entries = [
        path for path in folder.iterdir() if path.name not in ("__init__.py", "__init__.pyi", "__pycache__", "py.typed")
    ]
    assert len(entries) <= ENTRIES or folder.name == "named", sorted(p.name for p in entries)
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


def test_tests_mirror_the_folders():
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests"}
    there = {folder.relative_to(ROOT / "tests") for folder in folders} - {Path("benchmarks")}
    assert {folder for folder in there if not (PACKAGE / folder).is_dir()} == set()


def test_only_plotting_imports_matplotlib_and_seaborn():
    for name, file in MODULES.items():
        users = [used for used in imported(file) if used.startswith(("matplotlib", "seaborn"))]
        typing_only = "if TYPE_CHECKING:\n    from matplotlib" in file.read_text()
        assert not users or name.startswith("plotting") or typing_only, name


@pytest.mark.parametrize("name", MODULES)
def test_the_wheel_stands_alone(name):
    """No import of the folders beside the package, and no path into them but the command line's defaults."""
    assert not {used for used in imported(MODULES[name]) if used.split(".")[0] in ("experiments", "notebooks", "tests")}
    tree = ast.parse(MODULES[name].read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    words = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    paths = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words
    ]
    found = [path for path in paths if re.match(r"(.*/)?(experiments|notebooks|figures|demo)(/|$)", path)]
    assert found == (["experiments/results", "figures"] if name == "cli.output" else [])


def test_every_library_is_declared():
    declared = {
        re.split(r"[\[><=]", line)[0].lower()
        for line in re.findall(r'^  "([^"]+)",$', (ROOT / "pyproject.toml").read_text(), re.M)
    } | {"dask"}
    called = {"PIL": "pillow", "sklearn": "scikit-learn", "distributed": "dask", "huggingface_hub": "huggingface-hub"}
    called |= {"lazy_loader": "lazy-loader"}
    for name, file in MODULES.items():
        outside = {used.split(".")[0] for used in imported(file)} - set(sys.stdlib_module_names) - {"moe_prompt"}
        assert {called.get(used, used) for used in outside} <= declared, name


@pytest.mark.parametrize("module", ["moe_prompt", "moe_prompt.vision", "moe_prompt.cli.main"])
def test_import_does_not_wait_for_torch(module):
    slow = "{'torch', 'pandas', 'scipy', 'matplotlib', 'sklearn'}"
    program = f"import sys, {module}; print(sorted({slow} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_writes_and_prints_nothing(tmp_path):
    modules = ", ".join(f"moe_prompt.{name}" for name in MODULES if name)
    run = subprocess.run([sys.executable, "-W", "error", "-c", f"import {modules}"], cwd=tmp_path, capture_output=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"") and not list(tmp_path.iterdir())
