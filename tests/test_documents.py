"""What the pages tell people to type: the real parsers take it; what they link to is there."""

import re
import shlex
from pathlib import Path

import pytest

import gather
import identify
import kernels
import nearest
import recognition
import retrieval
import shrink
from on_kaggle import packing

ROOT = Path(recognition.__file__).resolve().parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
PARSERS = {
    "recognition.py": recognition.parse_arguments,
    "retrieval.py": retrieval.parse_arguments,
    "nearest.py": nearest.parse_arguments,
    "shrink.py": shrink.parse_arguments,
    "identify.py": identify.parse_arguments,
    "gather.py": gather.parse_arguments,
    "kernels.py": kernels.parse_command_line,
}


def commands_of(text):
    """Lists the indented lines that run a script of ours: (script, list of its arguments)."""
    text = text.replace("\\\n", " ")
    for line in re.findall(r"^    python (\w+\.py\b[^\n]*)", text, re.MULTILINE):
        script, *arguments = shlex.split(line, comments=True)
        if script in PARSERS:
            yield script, [word for word in arguments if word != "..."]


def test_the_pages_show_every_script():
    scripts = {script for page in PAGES for script, _ in commands_of(page.read_text())}
    assert scripts == PARSERS.keys()


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_scripts_take_the_commands_of_a_page(page):
    for script, arguments in commands_of(page.read_text()):
        args = PARSERS[script](arguments)
        for entry in packing.ENTRIES if script == "kernels.py" else ():
            packing.parse_arguments(entry, getattr(args, f"{entry}_args", ""))


@pytest.mark.parametrize("script", PARSERS)
def test_a_script_takes_the_commands_of_its_own_first_lines(script):
    text = (ROOT / script).read_text().split('"""')[1]
    commands = re.findall(rf"^    python {script}((?: \S+| \[FILES\])*)", text, re.MULTILINE)
    assert commands
    for words in commands:
        PARSERS[script](words.replace("[FILES]", "").replace("...", "").split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page):
    links = re.findall(r"\]\((?!https?://)([^)#]*)", page.read_text())
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_heading_that_a_page_links_to_is_there(page):
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text()):
        text = ((page.parent / link) if link else page).read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in anchors, f"{link}#{anchor}"
