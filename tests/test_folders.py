"""Tests of what a run holds: one at a time in an output folder, and a scratch folder of its own."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checks import names_in, one_line

from runs.folders import hold_folder, scratch_folder
from utils import ExpectedError, run_ahead

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def another_run(block):
    """A process, numbered 1, in a `with` block of `runs.folders` until it is killed at the end.

    Yields:
        What the block gave to the process, as text.
    """
    code = (
        "import os, time\nos.getpid = lambda: 1\nfrom runs.folders import *\n"
        f"with {block} as given:\n    print(given, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def holder(folder, name):
    return another_run(f"hold_folder({str(folder)!r}, {name!r})")


def hold_error(folder, name):
    with pytest.raises(ExpectedError) as caught, hold_folder(folder, name):
        pass
    return one_line(caught.value)


def refuse_locks(monkeypatch, number):
    def refuse(lock, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)


# ------------------------------------------------------------------------------ one run at a time


def test_a_second_run_is_told_that_the_folder_is_in_use(tmp_path):
    with holder(tmp_path, "recognition") as started:
        assert started == "None"
        told = hold_error(tmp_path, "recognition")
        assert told == (
            f"{tmp_path}: in use by another run; expected one run at a time in a folder; "
            "wait for its end, or choose another folder"
        )
        assert hold_error(tmp_path, "recognition") == told  # the first refusal took nothing away
        with hold_folder(tmp_path, "part-0"), hold_folder(tmp_path, "part-1"):
            pass


def test_a_folder_is_held_within_a_process_too(tmp_path):
    with hold_folder(tmp_path, "recognition"):
        assert "in use by another run" in hold_error(tmp_path, "recognition")


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    with holder(tmp_path, "recognition"):
        pass
    assert names_in(tmp_path) == [".running-recognition"]
    with hold_folder(tmp_path, "recognition"):
        pass
    assert names_in(tmp_path) == []


def test_a_folder_is_free_again_after_a_failure(tmp_path):
    with pytest.raises(ValueError, match="no"), hold_folder(tmp_path / "new", "recognition"):
        raise ValueError("no")
    assert names_in(tmp_path / "new") == []


def test_a_folder_that_knows_no_locks_is_used_without(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.ENOLCK)
    with hold_folder(tmp_path, "recognition"):
        pass
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_held_is_an_expected_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert hold_error(tmp_path / "file", "recognition").endswith("choose another --output")
    refuse_locks(monkeypatch, errno.EACCES)
    assert "(Permission denied); expected" in hold_error(tmp_path, "recognition")


@pytest.fixture
def half_written(tmp_path):
    """What killed runs left: (folder, the one name in it that is a result)."""
    for name in ("results.csv", ".writing-1a-results.csv", "features/.writing-2b-train_000.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    return tmp_path


def files_in(folder):
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not path.startswith(".running-"))


def test_what_killed_runs_were_writing_is_removed(half_written):
    (half_written / ".running-part-0").write_text("")  # of a killed run, too
    with hold_folder(half_written, "recognition"):
        assert files_in(half_written) == ["results.csv"]


def test_what_another_run_is_writing_stays(half_written):
    with holder(half_written, "part-0"):
        assert files_in(half_written) == ["results.csv"]
        (half_written / ".writing-3c-part.npz").write_text("half")
        with hold_folder(half_written, "part-1"):
            assert files_in(half_written) == [".writing-3c-part.npz", "results.csv"]


def test_nothing_is_removed_where_the_folder_knows_no_locks(half_written, monkeypatch):
    files = files_in(half_written)
    (half_written / ".running-part-0").write_text("")
    refuse_locks(monkeypatch, errno.ENOLCK)
    with hold_folder(half_written, "recognition"):
        assert files_in(half_written) == files


# ---------------------------------------------------------------------------------- scratch folders


def test_a_scratch_folder_is_of_this_run_alone_and_removed(tmp_path):
    parent = tmp_path / "new" / "scratch"
    with scratch_folder(parent) as folder, scratch_folder(parent) as another:
        assert folder.parent == another.parent == parent and folder != another
        (folder / "shard.tar").write_bytes(b"x")
        assert folder.is_dir() and names_in(another) == []
    assert names_in(parent) == []


def test_a_scratch_folder_is_removed_after_a_failure(tmp_path):
    with pytest.raises(ValueError, match="no"), scratch_folder(tmp_path) as folder:
        (folder / "shard.tar").write_bytes(b"x")
        raise ValueError("no")
    assert names_in(tmp_path) == []


def test_a_run_of_the_same_process_id_and_host_keeps_its_scratch(tmp_path, monkeypatch):
    """As in two containers that share the folder."""
    with another_run(f"scratch_folder({str(tmp_path)!r})") as other:
        Path(other, "shard.tar").write_bytes(b"x")
        monkeypatch.setattr("os.getpid", lambda: 1)
        with scratch_folder(tmp_path) as folder:
            assert str(folder) != other
        assert names_in(Path(other)) == ["shard.tar"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    with another_run(f"scratch_folder({str(tmp_path)!r})") as other:
        Path(other, "train").mkdir()
        Path(other, "train", "images_000.tar").write_bytes(b"x")
    (tmp_path / "demo-world").mkdir()
    with scratch_folder(tmp_path) as folder:
        lock = folder.with_suffix(".lock")
        assert names_in(tmp_path) == sorted(["demo-world", folder.name, lock.name])


def test_no_scratch_is_removed_where_the_folder_knows_no_locks(tmp_path, monkeypatch):
    with another_run(f"scratch_folder({str(tmp_path)!r})") as other:
        refuse_locks(monkeypatch, errno.ENOLCK)
        with scratch_folder(tmp_path):
            assert Path(other).is_dir()


def test_nothing_is_written_into_a_scratch_folder_after_its_end(tmp_path):
    def write_on(folder):
        for number in range(10**6):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.tar").write_bytes(b"a shard")
            yield number

    with scratch_folder(tmp_path) as folder:
        shards = run_ahead(lambda: write_on(folder / "train"), 4)
        assert [next(shards) for _ in range(20)] == list(range(20))
    assert list(tmp_path.iterdir()) == []
    del shards  # held until here, as a traceback holds it


def test_a_scratch_folder_that_cannot_be_made_is_an_expected_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpectedError) as caught, scratch_folder(tmp_path / "file"):
        pass
    assert one_line(caught.value).endswith("; free some space or choose another --scratch")


def test_files_are_held_without_what_only_unix_has(tmp_path):
    """By a file of its own that filelock makes, as long as there is no other way."""
    code = (
        "import sys\nfor name in ('fcntl', 'pwd', 'grp', 'resource', 'termios'):\n"
        "    sys.modules[name] = None\n"
        "from runs.folders import *\n"
        f"with hold_folder({str(tmp_path)!r}, 'recognition'), scratch_folder({str(tmp_path)!r}):\n"
        f"    with hold_folder({str(tmp_path)!r}, 'recognition'):\n        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "in use by another run" in done.stderr.splitlines()[-1]
    assert names_in(tmp_path) == []
