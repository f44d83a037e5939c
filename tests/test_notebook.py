"""Tests of `kaggle.ipynb` without Jupyter: that it is clean, and that its commands exist."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nearest
import recognition
import retrieval

PATH = Path(recognition.__file__).with_name("kaggle.ipynb")
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
CODE = [cell["id"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
COMMANDS = [
    command
    for source in CELLS.values()
    for command in re.findall(r"(recognition|nearest|retrieval)\.main\((\[.*?\])\)", source)
]


def test_the_notebook_stores_no_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len(CELLS) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("cell", CODE)
def test_each_code_cell_compiles(cell):
    ast.parse(CELLS[cell])


def test_what_the_notebook_imports_of_the_project_exists():
    imports = [
        (node.module, alias.name)
        for cell in CODE
        for node in ast.walk(ast.parse(CELLS[cell]))
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] != "IPython"
        for alias in node.names
    ]
    assert ("runs.kernel", "is_kernel") in imports
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_each_command_of_the_notebook_parses(script, arguments):
    names = {"output": "working", "quick": [], "model": "resnet50.model", "__builtins__": {}}
    scripts = {"recognition": recognition, "nearest": nearest, "retrieval": retrieval}
    module = scripts[script]
    module.parse_arguments(eval(arguments, names))


def test_the_first_cell_fetches_the_project_where_it_is_named(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "recognition.py").write_text("")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "First"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAGGLE_PREFIX", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    cell = CELLS[CODE[0]]
    with pytest.raises(FileNotFoundError, match="name the PROJECT, or attach it"):
        exec(cell, {})
    exec(cell.replace('PROJECT = ""', f"PROJECT = {str(repository)!r}"), {})
    assert sys.path[0] == str(tmp_path / "project")


def test_the_notebook_runs_both_scripts_on_the_demo_and_tells_of_the_real_job():
    demo, real = [[s for s, text in COMMANDS if ("--demo" in text) is x] for x in (True, False)]
    assert demo == ["recognition", "retrieval"]
    assert set(real) == {"recognition", "nearest", "retrieval"}


def test_the_notebook_shows_both_pictures():
    shown = re.findall(r"Image\(filename=f\"{output}/(.*?)\"", "".join(CELLS.values()))
    assert shown == ["history.png", "neighbors.png"]


def test_the_notebook_ends_with_the_report():
    assert 'Path(output, "report.html")' in CELLS[CODE[-1]]
