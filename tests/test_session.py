"""Tests of what a session finds of itself and of earlier ones."""

import os

import pytest
from checks import one_line

from data.arrays import load_page, save_arrays
from runs import kernel
from runs.session import Session
from utils import ExpectedError

NAME, FACTS = "descriptors/index_000.npz", {"model": "a"}


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session in a kernel that has the outputs of two earlier ones mounted, b the newer."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(kernel, "FOLDER", tmp_path)
    return Session(tmp_path / "working", source=None, stop=None)


def write(folder, facts, minute=0):
    path = folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, facts)
    os.utime(path, (60 * minute, 60 * minute))
    return path


def test_the_own_file_goes_first_then_the_newest_that_fits(session, tmp_path):
    assert session.find_fitting(NAME, FACTS, load_page) is None
    first = write(tmp_path / "input" / "a", FACTS, minute=1)
    newer = write(tmp_path / "input" / "b", FACTS, minute=2)
    assert session.find_fitting(NAME, FACTS, load_page)[0] == newer
    write(tmp_path / "input" / "b", {"model": "other"}, minute=2)
    assert session.find_fitting(NAME, FACTS, load_page)[0] == first
    own = write(session.output, FACTS)
    assert session.find_fitting(NAME, FACTS, load_page)[0] == own


def test_a_damaged_file_is_told_and_passed_over(session, tmp_path, capsys):
    earlier, own = write(tmp_path / "input" / "a", FACTS), write(session.output, FACTS)
    own.write_bytes(b"no arrays")
    assert session.find_fitting(NAME, FACTS, load_page)[0] == earlier
    with pytest.raises(ExpectedError) as caught:
        load_page(own)
    assert capsys.readouterr().err == f"{one_line(caught.value)}: not used\n"


def test_what_an_earlier_session_left_is_copied_into_the_output(session, tmp_path, capsys):
    earlier, own = write(tmp_path / "input" / "a", FACTS), write(session.output, {"model": "b"})
    path, contents = session.find_fitting(NAME, FACTS, load_page, copied=True)
    assert path == own and contents is None
    assert own.read_bytes() == earlier.read_bytes()
    assert capsys.readouterr().err == f"{earlier}: copied from an earlier session\n"
    session.find_fitting(NAME, FACTS, load_page, copied=True)
    assert capsys.readouterr().err == ""


def test_of_parts_in_several_places_the_own_goes_first_then_the_newest(session, tmp_path):
    for folder, minute in (("input/a", 1), ("input/b", 2), ("working", 0)):
        for number in range({"input/a": 3, "input/b": 2, "working": 1}[folder]):
            path = tmp_path / folder / f"part-{number}-of-3.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(folder)
            os.utime(path, (60 * minute, 60 * minute))
    found = session.find_parts("part-*-of-3.npz")
    assert [path.read_text() for path in found] == ["working", "input/b", "input/a"]
