"""Who imports whom: read from the source, so that nothing points back and the wheel stands alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "moe_prompt"
SOURCES = {str(f.relative_to(PACKAGE).with_suffix("")).replace("/", "."): f for f in sorted(PACKAGE.rglob("*.py"))}
NAMES = {name.removesuffix(".__init__"): file for name, file in SOURCES.items()}
DRAWN = {"plotting", "plotting_over", "plotting_profiles", "plotting_sequences", "plotting_view", "plotting_windows"}
WRITERS = {"cli", "drawing", "progress", "vision.training_progress"} | DRAWN
MAY_IMPORT = {
    "errors": set(),
    "activations": {"errors"},
    "prompts": {"activations", "errors"},
    "gates": {"activations", "errors"},
    "measures": {"errors"},
    "rows": {"errors"},
    "quadrature": set(),
    "quartic": set(),
    "secant": set(),
    "tensor_files": {"errors"},
    "blocks": {"errors", "tensor_files"},
    "attention": {"blocks", "errors", "gates", "prompts", "rows"},
    "results": {"errors"},
}


def imported(file: Path) -> set[str]:
    """Every dotted module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def own(file: Path) -> set[str]:
    """Modules of the package among them."""
    names = {name.removeprefix("moe_prompt.") for name in imported(file) if name.startswith("moe_prompt.")}
    return names & set(NAMES)


GRAPH = {name: own(file) for name, file in NAMES.items()}


def reached(name: str) -> set[str]:
    """Everything that importing a module brings with it."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = GRAPH[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_the_graph_is_read():
    assert {"rates", "studies", "studies.vpt_vs_vapt"} <= set(GRAPH) and "estimators" in GRAPH["rates"]
    assert {"errors", "activations", "prompts", "regression"} <= reached("rates")


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_the_vocabulary_imports_what_it_may(name):
    assert GRAPH[name] <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", GRAPH)
def test_nothing_points_back(name):
    assert name not in reached(name)


@pytest.mark.parametrize(
    "low, high",
    [
        ("attention", "regression"),
        ("regression", "initializers"),
        ("regression", "estimators"),
        ("estimators", "rates"),
        ("initializers", "rates"),
        ("measures", "losses"),
        ("measures", "regression"),
        ("covariates", "regression"),
        ("regression", "identifiability"),
        ("asymptotics", "rates"),
        ("study", "rates"),
        ("study", "runner"),
        ("newton", "over_specified"),
        ("split_law", "over_specified"),
        ("results", "runner"),
        ("study", "summaries"),
        ("summaries", "plotting"),
        ("rates", "studies.vpt_vs_vapt"),
    ],
)
def test_left_is_imported_by_right_and_never_the_other_way(low, high):
    assert low in reached(high) and high not in reached(low)


@pytest.mark.parametrize("name", sorted(set(GRAPH) - {"cli", "vision.commands"}))
def test_only_the_command_line_uses_what_writes_and_the_studies(name):
    allowed = {"studies"} if name.startswith("studies") else DRAWN if name in WRITERS else set()
    used = {part for part in GRAPH[name] if part.split(".")[0] in (WRITERS | {"studies"}) - allowed}
    assert not used


def test_only_plotting_imports_matplotlib_and_seaborn():
    users = {
        name for name, file in NAMES.items() for used in imported(file) if used.startswith(("matplotlib", "seaborn"))
    }
    assert users - {"cli", "drawing"} == DRAWN
    typing_only = (PACKAGE / "cli.py").read_text().split("if TYPE_CHECKING:")[1].split("\napp =")[0]
    lines = [line for line in (PACKAGE / "cli.py").read_text().splitlines() if "matplotlib" in line]
    assert lines and all(line in typing_only for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_the_wheel_stands_alone(name):
    """No import of the folders beside the package, and no path into them but the command line's defaults."""
    assert not {used for used in imported(NAMES[name]) if used.split(".")[0] in ("experiments", "notebooks", "tests")}
    tree = ast.parse(NAMES[name].read_text())
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
    assert found == (["experiments/results", "figures"] if name == "cli" else [])


def test_every_library_is_declared():
    declared = {
        re.split(r"[\[><=]", line)[0].lower()
        for line in re.findall(r'^  "([^"]+)",$', (ROOT / "pyproject.toml").read_text(), re.M)
    } | {"dask"}
    called = {"PIL": "pillow", "sklearn": "scikit-learn", "distributed": "dask", "huggingface_hub": "huggingface-hub"}
    for name, file in NAMES.items():
        outside = {used.split(".")[0] for used in imported(file)} - set(sys.stdlib_module_names) - {"moe_prompt"}
        assert {called.get(used, used) for used in outside} <= declared, name


def test_help_does_not_wait_for_torch():
    slow = "{'torch', 'pandas', 'scipy', 'matplotlib', 'sklearn'}"
    program = f"import sys, moe_prompt.cli.main; print(sorted({slow} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_writes_and_prints_nothing(tmp_path):
    modules = ", ".join(f"moe_prompt.{name}" for name in NAMES if name != "__init__")
    run = subprocess.run([sys.executable, "-W", "error", "-c", f"import {modules}"], cwd=tmp_path, capture_output=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"") and not list(tmp_path.iterdir())


def test_the_core_never_imports_the_images():
    users = {name for name, used in GRAPH.items() if any(part.split(".")[0] == "vision" for part in used)}
    assert {name for name in users if not name.startswith("vision")} == {"cli"}
