"""Tests of what imports what: modules know only those below them, and few know a framework."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def order_of_the_readme():
    """Reads the list of files: module names, in its order."""
    section = README.partition("\n## Files\n")[2].partition("\n## ")[0]
    paths = re.findall(r"^    ([\w/]+)\.py ", section, re.MULTILINE)
    return tuple(path.removesuffix("/__init__").replace("/", ".") for path in paths)


# A module may import those after it; the scripts never import each other.
ORDER = order_of_the_readme()
SCRIPTS = ("recognition", "retrieval", "nearest", "shrink", "kernels", "identify")
FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}
WITH_FRAMEWORK = {
    *("training.frozen", "training.loop", "training.checkpoints", "descriptors.describe"),
    *("search.parts", "search.on_gpu", "model_files", "model"),
    *("network.layers", "network.optimizers", "network.backbones", "network.devices"),
    *("photo_naming",),
}
PACKAGES = sorted(
    path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name not in ("tests",)
)


def path_of(name):
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_a_docstring(path):
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


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
        left += new & set(ORDER)
    return found


def test_the_readme_lists_every_module_once_scripts_first():
    paths = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in ROOT.glob(f"{name}/*.py"))]
    unlisted = {ROOT / "demo/__main__.py"}
    unlisted |= {path for path in paths if path.name == "__init__.py" and is_a_docstring(path)}
    assert set(paths) - unlisted == set(map(path_of, ORDER))
    assert len(set(ORDER)) == len(ORDER)
    assert ORDER[: len(SCRIPTS)] == SCRIPTS


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_those_below_it(name):
    allowed = set(ORDER[ORDER.index(name) + 1 :]) - set(SCRIPTS)
    assert imports_of(name) & set(ORDER) <= allowed | {name.partition(".")[0]}


@pytest.mark.parametrize(
    "name", [name for name in ORDER if name not in WITH_FRAMEWORK | set(SCRIPTS)]
)
def test_the_data_and_the_scores_know_no_deep_learning_framework(name):
    assert not closure(name, imports_of) & FRAMEWORKS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_answers_before_it_loads_a_framework(name):
    slow = {"faiss", "matplotlib", "pandas", "pyarrow"}
    slow -= {"matplotlib"} if name == "retrieval" else set()  # it draws neighbors
    assert not closure(name, imports_at_start) & (FRAMEWORKS | slow)


def test_the_kaggle_side_runs_without_the_modules_that_it_packs():
    modules = closure("kernels", imports_at_start) & set(ORDER)
    heavy = {"training.loop", "descriptors.describe", "model", "search.exact", "generators", "demo"}
    assert not modules & heavy


def test_only_the_search_knows_faiss():
    assert [name for name in ORDER if "faiss" in imports_of(name)] in ([], ["search.exact"])
