"""Tests of what imports what: modules know only those below them, and few know a framework."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import those after it; the first three are scripts and never import each other.
SCRIPTS = ("recognition", "retrieval", "kernels")
ORDER = (
    *SCRIPTS,
    "on_kaggle.chain",
    "on_kaggle.packing",
    "on_kaggle.client",
    "training",
    "describe",
    "generators",
    "model",
    "replicas",
    "neighbors",
    "merging",
    "search",
    "descriptions",
    "metrics",
    "submissions",
    "command_line",
    "session",
    "demo",
    "demo.overview",
    "demo.world",
    "demo.art",
    "demo.server",
    "landmarks",
    "tables",
    "sources",
    "on_kaggle.kernel",
    "download",
    "utils",
)
FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}
WITHOUT_FRAMEWORK = (
    "on_kaggle.chain", "on_kaggle.packing", "on_kaggle.client", "demo", "session", "generators",
    "neighbors", "merging", "search", "descriptions", "metrics", "submissions", "landmarks",
    "tables", "sources", "on_kaggle.kernel", "download", "utils",
)  # fmt: skip
PRESENT = ORDER


def path_of(name):
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def parse(name):
    return ast.parse(path_of(name).read_text(), path_of(name).name)


def imports_below(node):
    """Names the modules of the project and the packages that are imported below a syntax tree."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            names |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            names |= {part.module, *(f"{part.module}.{alias.name}" for alias in part.names)}
    return {name for name in names if name in ORDER} | {name.partition(".")[0] for name in names}


@functools.cache
def imports_of(name):
    return imports_below(parse(name))


@functools.cache
def imports_at_start(name):
    """Names what is imported when the module is, and not only when a function is called."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    statements = [part for part in parse(name).body if not isinstance(part, functions)]
    return set().union(*map(imports_below, statements))


def closure(name, imports):
    """Names all that a module imports, and what that imports, and so on."""
    found, left = set(), [name]
    while left:
        new = imports(left.pop()) - found
        found |= new
        left += new & set(PRESENT)
    return found


def test_every_module_of_the_project_has_its_place_in_the_order():
    paths = [*ROOT.glob("*.py"), *ROOT.glob("demo/*.py"), *ROOT.glob("on_kaggle/*.py")]
    assert {path for path in paths if not path.stem.startswith("__")} <= set(map(path_of, ORDER))


@pytest.mark.parametrize("name", PRESENT)
def test_a_module_imports_only_those_below_it(name):
    allowed = set(ORDER[ORDER.index(name) + 1 :]) - set(SCRIPTS)
    assert imports_of(name) & set(ORDER) <= allowed | {name.partition(".")[0]}


@pytest.mark.parametrize("name", PRESENT)
def test_no_module_imports_all_names_of_another(name):
    stars = [
        node.module
        for node in ast.walk(parse(name))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


@pytest.mark.parametrize("name", [name for name in PRESENT if name in WITHOUT_FRAMEWORK])
def test_the_data_and_the_scores_know_no_deep_learning_framework(name):
    assert not closure(name, imports_of) & FRAMEWORKS


@pytest.mark.parametrize("name", [name for name in PRESENT if name in SCRIPTS])
def test_a_script_answers_before_it_loads_a_framework(name):
    slow = {"faiss", "matplotlib", "pandas", "pyarrow"}
    slow -= {"matplotlib"} if name == "retrieval" else set()  # it draws neighbors
    assert not closure(name, imports_at_start) & (FRAMEWORKS | slow)


def test_the_kaggle_side_runs_without_the_modules_that_it_packs():
    modules = closure("kernels", imports_at_start) & set(ORDER)
    assert not modules & {"training", "describe", "model", "search", "generators", "demo"}


def test_only_the_search_knows_faiss():
    assert [name for name in PRESENT if "faiss" in imports_of(name)] in ([], ["search"])
