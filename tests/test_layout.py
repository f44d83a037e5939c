"""Tests of what imports what: units know only those below them, and few know a framework.

A unit is a file or a folder of the top level; the folders' first lines list their modules.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("recognition", "retrieval", "nearest", "shrink", "identify", "gather", "kernels")
# From below: a unit may import those on the lines before its own.
FLOORS = (
    ("utils", "recipes"),
    ("data", "network"),
    ("demo", "generators", "model"),
    ("runs",),
    ("metrics", "descriptors", "cluster", "shrinking", "gathering", "on_kaggle"),
    ("search", "training"),
    ("report",),
    SCRIPTS,
)
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}
WITH_FRAMEWORK = {"network", "model", "descriptors", "training"}  # in all of their modules, or most
ALONE_WITH_FRAMEWORK = {
    "cluster.machines",
    "search.in_parts",
    "search.parts",
    "search.on_gpu",
    "report.photo_answer",
    "report.take_away",
    "report.untrained",
}
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for unit in FLOOR_OF
    for path in (ROOT / unit).parent.glob(f"{unit}.py")
} | {
    f"{path.parent.name}.{path.stem}": path
    for unit in FLOOR_OF
    for path in (ROOT / unit).glob("*.py")
    if path.stem != "__init__"
}


def imports_below(node):
    """Names the modules of the project and the packages that are imported below a syntax tree."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            names |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            names |= {part.module, *(f"{part.module}.{alias.name}" for alias in part.names)}
    return {name for name in names if name in MODULES} | {name.partition(".")[0] for name in names}


@functools.cache
def imports_of(name):
    return imports_below(ast.parse(MODULES[name].read_text()))


@functools.cache
def imports_at_start(name):
    """Names what is imported when the module is, and not only when a function is called."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    statements, found = ast.parse(MODULES[name].read_text()).body, set()
    for part in statements:
        if isinstance(part, ast.ClassDef):
            statements += part.body
        elif not isinstance(part, functions):
            found |= imports_below(part)
    return found


def closure(name, imports):
    """Names all that a module imports, and what that imports, and so on."""
    found, left = set(), [name]
    while left:
        new = imports(left.pop()) - found
        found |= new
        left += new & MODULES.keys()
    return found


def test_every_unit_of_the_top_level_has_its_floor():
    files = {path.stem for path in ROOT.glob("*.py")}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert files | folders == FLOOR_OF.keys()
    assert len(files) <= 12 and not files & folders


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_is_below_it(name):
    unit = name.partition(".")[0]
    # A scheduler's workers find a script's functions by its own name.
    others = (imports_of(name) & FLOOR_OF.keys()) - {unit}
    assert not [other for other in others if FLOOR_OF[other] >= FLOOR_OF[unit]]


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("*/__init__.py")))
def test_the_first_lines_of_a_folder_list_its_modules(folder):
    (lines,) = ast.parse((folder / "__init__.py").read_text()).body
    text = ast.literal_eval(lines.value)
    listed = re.findall(r"^ *(\w+)  +", text, re.MULTILINE)
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    assert sorted(listed) == sorted(modules)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in MODULES
        if name.partition(".")[0] not in WITH_FRAMEWORK | {*SCRIPTS}
        and name not in ALONE_WITH_FRAMEWORK
    ],
)
def test_the_data_and_the_scores_know_no_deep_learning_framework(name):
    # The exact search asks a GPU, and loads Keras for that, only where there is much to search.
    assert not closure(name, lambda name: imports_of(name) - {"search.on_gpu"}) & FRAMEWORKS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_answers_before_it_loads_a_framework(name):
    slow = {"faiss", "matplotlib", "pandas", "pyarrow"}
    slow -= {"matplotlib"} if name == "retrieval" else set()  # it draws neighbors
    assert not closure(name, imports_at_start) & (FRAMEWORKS | slow)


def test_the_kaggle_side_runs_without_the_modules_that_it_packs():
    units = {name.partition(".")[0] for name in closure("kernels", imports_at_start)}
    assert not units & {"training", "descriptors", "model", "search", "generators", "demo"}


def test_only_the_exact_search_knows_faiss():
    assert [name for name in MODULES if "faiss" in imports_of(name)] == ["search.exact"]
