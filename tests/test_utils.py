"""Tests of the helpers: exit codes, atomic files, background work, stopping, scratch folders."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checks import names_in, one_line

import utils
from command_line import CommandLine, run_command_line
from on_kaggle import kernel
from utils import (
    Column,
    ExpectedError,
    MissingFileError,
    Stop,
    StoppedError,
    atomic_write,
    check_arrays,
    file_md5,
    hold_folder,
    in_background,
    load_arrays,
    loading_keras,
    muted_stderr,
    require_free_space,
    run_ahead,
    save_arrays,
    say,
    scratch_folder,
)

ROOT = Path(utils.__file__).parent


# ------------------------------------------------------------------------------- the command line


def leave(main):
    """Runs a command line that is expected to end the process; gives the exit code."""
    with pytest.raises(SystemExit) as caught:
        run_command_line(main)
    return caught.value.code


def raising(error):
    def main():
        raise error

    return main


def test_a_command_that_is_done_returns_without_a_word(capsys):
    assert run_command_line(lambda: None) is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [ExpectedError, MissingFileError])
def test_an_expected_error_is_one_line_and_exit_code_1(capsys, kind):
    assert leave(raising(kind("a.tar: gone; expected a file; check --source"))) == 1
    assert capsys.readouterr() == ("", "error: a.tar: gone; expected a file; check --source\n")


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    assert leave(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == (
        "",
        "error: interrupted by Ctrl-C; run the same command again to continue\n",
    )


def test_a_run_that_stopped_at_its_time_limit_is_done(capsys):
    stop = Stop(max_hours=1)
    assert leave(raising(StoppedError(stop, "12 of 490 mini-epochs done"))) == 0
    assert capsys.readouterr() == (
        "",
        "stopped by the time limit: 12 of 490 mini-epochs done; run the same command again to "
        "continue\n",
    )


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_run_that_stopped_on_a_signal_tells_which(capsys, number, exit_code):
    with Stop() as stop:
        signal.raise_signal(number)
    assert leave(raising(StoppedError(stop, "nothing done"))) == exit_code
    assert f"stopped by {number.name}: nothing done; run " in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command_line(lambda: 1 // 0)


def run_into_closed_pipe(code):
    """Runs code whose reader of stdout has left; gives (exit code, stderr)."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
        timeout=60,
    )
    os.close(write_end)
    return done.returncode, done.stderr.decode()


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    code = "import command_line; command_line.run_command_line(lambda: print('x' * 100_000))"
    assert run_into_closed_pipe(code) == (1, "")


def test_a_reader_that_leaves_before_the_last_line_ends_the_command_quietly():
    code = "import command_line; command_line.run_command_line(lambda: print('short'))"
    assert run_into_closed_pipe(code) == (1, "")


def test_a_path_of_any_bytes_can_be_printed():
    code = "import command_line; command_line.run_command_line(lambda: print('out\\udcff'))"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == b"out\\udcff\n"


def test_wrong_use_is_one_line_and_exit_code_2(capsys):
    parser = CommandLine(prog="tool.py")
    parser.add_argument("--epochs", type=int, default=1)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--epochs", "many"])
    assert caught.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: argument --epochs: invalid int value: 'many'; see tool.py --help\n",
    )


def test_flags_are_not_abbreviated(capsys):
    parser = CommandLine(prog="tool.py")
    parser.add_argument("--epochs", type=int, default=1)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--epo", "2"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: unrecognized arguments: --epo 2; see tool.py --help\n"
    )


def test_the_help_shows_defaults(capsys):
    parser = CommandLine(prog="tool.py")
    parser.add_argument("--epochs", type=int, default=17, help="passes over the data")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    assert caught.value.code == 0
    assert "passes over the data (default: 17)" in capsys.readouterr().out


def test_progress_goes_to_stderr(capsys):
    say("shard 3")
    assert capsys.readouterr() == ("", "shard 3\n")


def test_kaggle_is_known_by_its_environment(monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert not kernel.is_kernel()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert kernel.is_kernel()


# ----------------------------------------------------------------------------------- atomic files


def dead_process_id():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_atomic_file_appears_whole_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("rows")
        assert (temporary.parent, temporary.suffix) == (path.parent, ".csv")
        assert not path.exists()
        inode = temporary.stat().st_ino
    assert path.read_text() == "rows"
    assert path.stat().st_ino == inode  # renamed, not copied
    assert names_in(path.parent) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, ExpectedError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_passes_through(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error("no")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["table.csv"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("two\nlines"), "two lines"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_write_that_fails_is_an_expected_error(tmp_path, error, reason):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ExpectedError) as caught, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert one_line(caught.value).startswith(f"{path}: cannot be written ({reason}); expected ")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["table.csv"]


def test_a_file_in_the_place_of_the_folder_is_an_expected_error(tmp_path):
    (tmp_path / "output").write_text("a file")
    with pytest.raises(ExpectedError) as caught, atomic_write(tmp_path / "output" / "table.csv"):
        pass
    assert "cannot be written (File exists)" in one_line(caught.value)


def test_a_block_that_writes_nothing_is_an_expected_error(tmp_path):
    with pytest.raises(ExpectedError), atomic_write(tmp_path / "table.csv"):
        pass
    assert names_in(tmp_path) == []


def test_the_file_that_a_running_process_is_writing_stays(tmp_path):
    """What a dead one left goes."""
    host = socket.gethostname()
    names = {
        number: f".writing-{number}-{host}-table.csv"
        for number in (os.getppid(), dead_process_id())
    }
    for name in names.values():
        (tmp_path / name).write_text("half")
    with atomic_write(tmp_path / "table.csv") as temporary:
        temporary.write_text("rows")
    assert names_in(tmp_path) == [names[os.getppid()], "table.csv"]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []

    def fsync(number):
        done.append(("fsync", os.fstat(number).st_ino))

    def replace(source, target, real=os.replace):
        done.append(("replace", os.stat(source).st_ino))
        real(source, target)

    monkeypatch.setattr("utils.os.fsync", fsync)
    monkeypatch.setattr("utils.os.replace", replace)
    with atomic_write(tmp_path / "table.csv") as temporary:
        temporary.write_text("rows")
    inode = (tmp_path / "table.csv").stat().st_ino
    assert done == [("fsync", inode), ("replace", inode)]


def test_the_md5_of_a_file_covers_all_its_chunks(tmp_path):
    content = bytes(range(256)) * (utils.CHUNK_BYTES // 256) + b"and a rest"
    (tmp_path / "file").write_bytes(content)
    assert file_md5(tmp_path / "file") == hashlib.md5(content).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    assert file_md5(tmp_path / "empty") == "d41d8cd98f00b204e9800998ecf8427e"


def test_free_space_that_is_there_is_enough(tmp_path):
    require_free_space(tmp_path / "new", 1, "a byte")
    assert (tmp_path / "new").is_dir()


def test_a_disk_too_small_is_an_expected_error(tmp_path):
    with pytest.raises(ExpectedError) as caught:
        require_free_space(tmp_path, 10**18, "two shards")
    message = one_line(caught.value)
    assert message.startswith(f"{tmp_path}: ")
    assert " GB free; expected 1000000000.00 GB or more for two shards; " in message


def test_a_small_disk_is_told_in_digits_that_differ(tmp_path, monkeypatch):
    stats = SimpleNamespace(f_bavail=500, f_frsize=4096)
    monkeypatch.setattr("utils.os.statvfs", lambda folder: stats)
    with pytest.raises(ExpectedError, match=r"0.002048 GB free; expected 0.003000 GB or more"):
        require_free_space(tmp_path, 3_000_000, "a shard")


def test_what_only_root_may_fill_is_not_free(tmp_path, monkeypatch):
    stats = SimpleNamespace(f_bavail=5, f_bfree=1000, f_frsize=4096)
    monkeypatch.setattr("utils.os.statvfs", lambda folder: stats)
    require_free_space(tmp_path, 5 * 4096, "a shard")
    with pytest.raises(ExpectedError):
        require_free_space(tmp_path, 5 * 4096 + 1, "a shard")


def test_a_folder_for_free_space_that_cannot_be_made_is_an_expected_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpectedError) as caught:
        require_free_space(tmp_path / "file" / "scratch", 1, "a byte")
    one_line(caught.value)


# ------------------------------------------------------------------------------ files of arrays

PAGE = {"model": "0123abcd", "rate": 0.1, "shards": [1, 2], "left_out": None}
ARRAYS = {"ids": np.arange(5, dtype=np.uint64), "weights": np.linspace(0, 1, 6).reshape(2, 3)}


def arrays_error(path):
    with pytest.raises(ExpectedError) as caught:
        load_arrays(path)
    message = one_line(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(
        "; expected a whole file written by this project; write or copy it again"
    )
    return message


def test_arrays_and_their_page_come_back(tmp_path):
    save_arrays(tmp_path / "a.npz", PAGE, **ARRAYS)
    arrays, page = load_arrays(tmp_path / "a.npz")
    assert page == PAGE
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_the_same_arrays_and_page_make_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_arrays(tmp_path / name, PAGE, **ARRAYS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def edit(path, **changed):
    """Writes a file of arrays as anybody could: with all that it has, but for what is changed."""
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | changed)


EDITS = {
    "a value": {"ids": np.array([0, 1, 2, 3, 5], np.uint64)},
    "a dtype": {"ids": np.arange(5)},
    "a shape": {"weights": ARRAYS["weights"].reshape(3, 2)},
    "two arrays in each other's place": {"ids": ARRAYS["weights"], "weights": ARRAYS["ids"]},
    "one more": {"more": np.arange(2)},
}


@pytest.mark.parametrize("changed", EDITS.values(), ids=EDITS)
def test_an_edited_array_is_found_out_by_the_digest(tmp_path, changed):
    save_arrays(tmp_path / "a.npz", PAGE, **ARRAYS)
    edit(tmp_path / "a.npz")
    load_arrays(tmp_path / "a.npz")  # written by another, but the same
    edit(tmp_path / "a.npz", **changed)
    assert "it was changed after it was written (its digest differs)" in arrays_error(
        tmp_path / "a.npz"
    )


def test_an_edited_page_is_found_out_by_the_digest(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, PAGE, **ARRAYS)
    with np.load(path) as file:
        page = json.loads(str(file["page"]))
    edit(path, page=json.dumps(page | {"model": "another"}))
    assert "its digest differs" in arrays_error(path)


def test_a_file_of_before_there_was_a_digest_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", page=json.dumps(PAGE), **ARRAYS)
    assert load_arrays(tmp_path / "a.npz")[1] == PAGE


@pytest.mark.parametrize("page", [None, [], "text", 3, [[1, 2], [3, 4]]])
def test_a_page_that_is_no_table_is_an_expected_error(tmp_path, page):
    np.savez(tmp_path / "a.npz", page=json.dumps(page))
    assert f"its page is {json.dumps(page)}, not a table" in arrays_error(tmp_path / "a.npz")


def header(shape):
    """The bytes of an array of no values that claims a shape."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content", [header((1 << 62,)), header((1 << 40,)), header("("), b"", b"text"]
)
def test_an_array_that_cannot_be_is_an_expected_error(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("ids.npy", content)
    arrays_error(tmp_path / "a.npz")


def test_an_archive_that_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "MAX_COMPRESSED_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(10_000), page="{}")
    assert "MB that claim to hold 0.1 MB" in arrays_error(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(1000), page="{}")
    load_arrays(tmp_path / "a.npz")


COLUMNS = {
    "ids": Column("uint64", ("images",), order="increasing"),
    "rows": Column("float32 float16", ("images", 2), at_least=0),
    "ends": Column("int64", ("queries",), at_least=0, order="ascending"),
    "positions": Column("int32", ("found",), at_least=0, below="images"),
}


def good_columns():
    return {
        "ids": np.array([3, 5, 2**63], np.uint64),
        "rows": np.ones((3, 2), np.float16),
        "ends": np.array([2, 2, 4]),
        "positions": np.array([0, 2, 1, 2], np.int32),
    }


@pytest.mark.parametrize("num_images", [0, 3])
def test_arrays_that_are_as_they_should_be_pass(num_images):
    arrays = good_columns()
    arrays |= {"ids": arrays["ids"][:num_images], "rows": arrays["rows"][:num_images]}
    if not num_images:
        arrays |= {"positions": arrays["positions"][:0]}
    check_arrays("a.npz", arrays, COLUMNS)


WRONG_COLUMNS = {
    "ids is int64, not uint64": ("ids", np.arange(3)),
    "rows is float64, not float32 or float16": ("rows", np.ones((3, 2))),
    "ids has the shape (3, 1), not (images)": ("ids", np.ones((3, 1), np.uint64)),
    "ids has the shape (), not (images)": ("ids", np.uint64(7)),
    "rows has the shape (2, 2), not (3, 2)": ("rows", np.ones((2, 2), np.float32)),
    "rows has the shape (3, 3), not (3, 2)": ("rows", np.ones((3, 3), np.float32)),
    "rows has the shape (3), not (3, 2)": ("rows", np.ones(3, np.float32)),
    "rows has -1.0, not 0 or more": ("rows", np.full((3, 2), -1, np.float16)),
    "rows has values that are no finite numbers": ("rows", np.full((3, 2), np.nan, np.float32)),
    "ends has -1, not 0 or more": ("ends", np.array([-1, 2, 4])),
    "ends is not ascending": ("ends", np.array([2, 1, 4])),
    "ids is not increasing": ("ids", np.array([3, 3, 5], np.uint64)),
    "positions has 3, not numbers below the 3 of images": ("positions", np.array([3], np.int32)),
}


@pytest.mark.parametrize(("told", "change"), WRONG_COLUMNS.items(), ids=WRONG_COLUMNS)
def test_an_array_that_is_not_as_it_should_be_is_named(told, change):
    with pytest.raises(ExpectedError) as caught:
        check_arrays("a.npz", good_columns() | dict([change]), COLUMNS)
    assert one_line(caught.value) == (
        f"a.npz: {told}; expected ids, rows, ends, positions as this project writes them; "
        "write it again"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_in_any_block(monkeypatch, value):
    monkeypatch.setattr(utils, "BLOCK_ROWS", 2)
    arrays = good_columns()
    arrays["rows"][2, 1] = value
    with pytest.raises(ExpectedError, match="rows has values that are no finite numbers"):
        check_arrays("a.npz", arrays, COLUMNS)


def test_arrays_of_other_names_are_listed():
    arrays = good_columns()
    del arrays["ids"]
    with pytest.raises(ExpectedError, match="a.npz: it holds ends, positions, rows; expected ids,"):
        check_arrays("a.npz", arrays, COLUMNS)


# ---------------------------------------------------------------------------------- in background


def test_background_work_gives_its_result():
    assert in_background(divmod, 17, 5).result(timeout=30) == (3, 2)


def test_background_work_gives_its_exception():
    future = in_background(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError):
        future.result(timeout=30)


@pytest.mark.parametrize("num_ahead", [1, 2, 100])
def test_run_ahead_keeps_the_order(num_ahead):
    assert list(run_ahead(lambda: (n * n for n in range(50)), num_ahead)) == [
        n * n for n in range(50)
    ]


def test_run_ahead_takes_none_for_an_item():
    assert list(run_ahead(lambda: (item for item in (None, 1, None)), 2)) == [None, 1, None]


def test_run_ahead_of_nothing_is_nothing():
    assert list(run_ahead(lambda: (item for item in ()), 2)) == []


def test_an_exception_passes_through_run_ahead_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise ExpectedError("third")

    received = []
    with pytest.raises(ExpectedError, match="third"):
        for item in run_ahead(items, 1):
            received.append(item)
    assert received == [1, 2]


def test_run_ahead_works_in_another_thread():
    def items():
        yield threading.current_thread()

    (thread,) = run_ahead(items, 1)
    assert thread is not threading.current_thread()


def test_run_ahead_closes_the_iterator_when_the_consumer_leaves_early():
    closed, made = threading.Event(), []

    def items():
        try:
            for item in range(1000):
                made.append(item)
                yield item
        finally:
            closed.set()

    ahead = run_ahead(items, 2)
    assert next(ahead) == 0
    assert not closed.is_set()
    ahead.close()
    assert closed.wait(timeout=30)
    assert len(made) <= 1 + 2 + 1


def test_run_ahead_closes_the_iterator_at_its_end():
    closed = threading.Event()

    def items():
        try:
            yield 1
        finally:
            closed.set()

    assert list(run_ahead(items, 2)) == [1]
    assert closed.wait(timeout=30)


def test_run_ahead_starts_nothing_before_the_first_item_is_asked_for():
    started = []
    ahead = run_ahead(lambda: started.append(1) or iter(()), 2)
    ahead.close()
    assert started == []


def test_run_ahead_is_bounded():
    made = []

    def items():
        for item in range(40):
            made.append(item)
            yield item

    for item in run_ahead(items, 3):
        time.sleep(0.002)  # time in which an unbounded thread would run away
        assert len(made) - (item + 1) <= 3 + 1  # those held, and one that waits for its place


def test_run_ahead_yields_none_when_stopped_with_nothing_ready():
    more, stopped = threading.Event(), threading.Event()

    def items():
        yield 1
        more.wait(30)
        yield 2

    ahead = run_ahead(items, 2, stopped.is_set)
    assert next(ahead) == 1
    stopped.set()
    assert [next(ahead), next(ahead)] == [None, None]
    more.set()
    assert [item for item in ahead if item is not None] == [2]


def test_run_ahead_waits_for_slow_items_unless_stopped():
    def items():
        for item in range(2):
            time.sleep(0.3)  # longer than it waits before it looks whether to stop
            yield item

    assert list(run_ahead(items, 2)) == [0, 1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_iterator_that_cannot_be_made_raises_in_the_consumer():
    def cannot():
        raise ExpectedError("no iterator")

    result = in_background(lambda: list(run_ahead(cannot, 1)))
    with pytest.raises(ExpectedError, match="no iterator"):
        result.result(timeout=2)


# --------------------------------------------------------------------------------- stopping in time


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it: [seconds]."""
    now = [1000.0]
    monkeypatch.setattr("utils.time.monotonic", lambda: now[0])
    return now


def test_a_stop_without_a_limit_is_never_requested(clock):
    with Stop() as stop:
        clock[0] += 1e9
        assert not stop.requested(needed_s=1e9)


def test_a_stop_is_requested_when_the_next_step_would_pass_the_limit(clock):
    with Stop(max_hours=0.5) as stop:
        assert not stop.requested()
        assert not stop.requested(needed_s=1800)
        assert stop.requested(needed_s=1801)
        clock[0] += 1500
        assert not stop.requested(needed_s=300)
        assert stop.requested(needed_s=301)
        clock[0] += 301
        assert stop.requested()
        assert stop.reason() == "the time limit"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_the_stop_and_is_told(capsys, number):
    with Stop(max_hours=1) as stop:
        assert not stop.requested()
        signal.raise_signal(number)
        assert stop.requested()
        assert stop.reason() == number.name
    assert capsys.readouterr().err == f"{number.name}: stopping after this batch\n"


def test_a_second_ctrl_c_interrupts_at_once():
    with Stop():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_the_signal_handlers_are_restored(number):
    def handlers():
        return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    before = handlers()
    with pytest.raises(ValueError, match="in the block"), Stop():
        assert handlers() != before
        if number is not None:
            signal.raise_signal(number)
        raise ValueError("in the block")
    assert handlers() == before


def test_a_stop_in_a_thread_leaves_the_signals_alone():
    def requested():
        with Stop(max_hours=1) as stop:
            return stop.requested()

    before = signal.getsignal(signal.SIGTERM)
    assert in_background(requested).result(timeout=30) is False
    assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------------------------- scratch folders


def test_a_scratch_folder_is_of_this_process_alone_and_removed(tmp_path):
    with scratch_folder(tmp_path / "new" / "scratch") as folder:
        assert folder.parent == tmp_path / "new" / "scratch"
        assert str(os.getpid()) in folder.name
        (folder / "shard.tar").write_bytes(b"x")
    assert names_in(tmp_path / "new" / "scratch") == []


def test_a_scratch_folder_is_removed_after_a_failure(tmp_path):
    with pytest.raises(ValueError, match="no"), scratch_folder(tmp_path) as folder:
        (folder / "shard.tar").write_bytes(b"x")
        raise ValueError("no")
    assert names_in(tmp_path) == []


def test_what_a_dead_process_left_is_removed(tmp_path):
    leftover = tmp_path / f"{socket.gethostname()}-{dead_process_id()}"
    (leftover / "train").mkdir(parents=True)
    (leftover / "train" / "images_000.tar").write_bytes(b"x")
    with scratch_folder(tmp_path) as folder:
        assert names_in(tmp_path) == [folder.name]


def test_what_is_no_leftover_stays(tmp_path):
    host = socket.gethostname()
    strangers = sorted(
        [
            f"{host}-{os.getppid()}",  # a process that runs
            f"another-{host}-{dead_process_id()}",  # of another machine
            f"{host}-notes",
            f"{host}-99999999999999999999",
            "demo-world",
        ]
    )
    for name in strangers:
        (tmp_path / name).mkdir()
    with scratch_folder(tmp_path):
        pass
    assert names_in(tmp_path) == strangers


def test_nothing_is_written_into_a_scratch_folder_after_its_end(tmp_path):
    def write_on(folder):
        for number in range(10**6):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.tar").write_bytes(b"a shard")
            yield number

    with utils.scratch_folder(tmp_path) as folder:
        shards = utils.run_ahead(lambda: write_on(folder / "train"), 4)
        assert [next(shards) for _ in range(20)] == list(range(20))
    assert list(tmp_path.iterdir()) == []
    del shards  # held until here, as a traceback holds it


def test_the_scratch_of_a_machine_with_a_longer_name_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.socket.gethostname", lambda: "gpu")
    stranger = f"gpu-2-{dead_process_id()}"  # dead here, but it is the machine gpu-2 that counts
    (tmp_path / stranger).mkdir()
    with scratch_folder(tmp_path):
        pass
    assert names_in(tmp_path) == [stranger]


def test_a_scratch_folder_that_cannot_be_made_is_an_expected_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpectedError) as caught, scratch_folder(tmp_path / "file"):
        pass
    assert one_line(caught.value).endswith("; free some space or choose another --scratch")


# ------------------------------------------------------------------------------ one run at a time


@contextlib.contextmanager
def holder(folder, name):
    """A process that holds a folder until it is killed at the end of the block."""
    code = (
        f"import time, utils\nwith utils.hold_folder({str(folder)!r}, {name!r}):\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def hold_error(folder, name):
    with pytest.raises(ExpectedError) as caught, hold_folder(folder, name):
        pass
    return one_line(caught.value)


def test_a_second_run_is_told_who_holds_the_folder(tmp_path):
    with holder(tmp_path, "recognition") as process:
        told = hold_error(tmp_path, "recognition")
        assert re.fullmatch(
            rf"{tmp_path}: in use by process {process.pid} on {socket.gethostname()} since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d; expected one run at a time in a folder; "
            "wait for its end, or choose another folder",
            told,
        )
        assert hold_error(tmp_path, "recognition") == told  # the first refusal took nothing away
        with hold_folder(tmp_path, "part-0"), hold_folder(tmp_path, "part-1"):
            pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with holder(tmp_path, "recognition"):
        pass
    assert names_in(tmp_path) == [".running-recognition"]
    with hold_folder(tmp_path, "recognition"):
        assert f"process {os.getpid()} on " in hold_error(tmp_path, "recognition")
    assert names_in(tmp_path) == []


def test_a_folder_is_free_again_after_a_failure(tmp_path):
    with pytest.raises(ValueError, match="no"), hold_folder(tmp_path / "new", "recognition"):
        raise ValueError("no")
    assert names_in(tmp_path / "new") == []
    with hold_folder(tmp_path / "new", "recognition"):
        pass


def test_a_lock_that_its_holder_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    path, real, seen = tmp_path / ".running-recognition", fcntl.flock, []

    def flock(file, operation):
        real(file, operation)
        seen.append(os.fstat(file.fileno()).st_ino)
        if len(seen) == 1:
            path.rename(tmp_path / "removed")

    monkeypatch.setattr("utils.fcntl.flock", flock)
    with hold_folder(tmp_path, "recognition"):
        assert len(seen) == 2 and path.stat().st_ino == seen[1] != seen[0]


def test_a_folder_that_knows_no_locks_is_used_without(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("utils.fcntl.flock", flock)
    with hold_folder(tmp_path, "recognition"):
        pass
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_held_is_an_expected_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert hold_error(tmp_path / "file", "recognition").endswith("choose another --output")


# ------------------------------------------------------------------------------------ muted stderr


def test_native_chatter_is_swallowed(capfd):
    with muted_stderr():
        os.write(2, b"chatter\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_native_chatter_is_shown_when_the_block_fails(capfd):
    with pytest.raises(ImportError), muted_stderr():
        os.write(2, b"why it failed\n")
        raise ImportError("no")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "why it failed\nafter\n"


def test_muting_leaves_stdout_alone(capfd):
    with muted_stderr():
        os.write(1, b"result\n")
    assert capfd.readouterr().out == "result\n"


def test_ctrl_c_interrupts_a_muted_block_at_once_inside_of_a_stop_too(capfd):
    with Stop() as stop:
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), muted_stderr():
            os.write(2, b"chatter\n")
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
        assert not stop.requested()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [None, ImportError])
def test_ctrl_c_that_a_library_swallows_interrupts_at_the_end_of_the_muted_block(capfd, error):
    with pytest.raises(KeyboardInterrupt), muted_stderr():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if error:
                raise error("cannot import it") from None
    assert capfd.readouterr().err == ""


def test_muting_in_a_thread_leaves_the_signals_alone():
    def mute():
        with muted_stderr():
            return signal.getsignal(signal.SIGINT)

    assert in_background(mute).result(timeout=30) is signal.getsignal(signal.SIGINT)


def test_ctrl_c_while_keras_is_imported_is_one_line(data_set, tmp_path):
    """With a stand-in for Keras that takes for ever, and swallows what interrupts it."""
    (tmp_path / "keras.py").write_text(
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(600)\nexcept BaseException:\n    pass\n"
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "recognition.py", "--source", str(data_set.folder)),
            *("--output", str(tmp_path / "output")),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (
        "",
        "error: interrupted by Ctrl-C; run the same command again to continue\n",
    )
    assert process.returncode == 130


# ------------------------------------------------------------------------------------------- Keras


def test_keras_is_loaded_with_onednn_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    with loading_keras():
        assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    with loading_keras():
        assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"


@pytest.mark.parametrize("module", ["model", "replicas", "training", "describe"])
def test_the_setting_is_there_before_a_module_imports_keras(module, tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os\nprint(os.environ['TF_ENABLE_ONEDNN_OPTS'], flush=True)\nos._exit(0)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module}"
    clean = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr


def test_a_package_that_is_there_is_not_installed(monkeypatch):
    monkeypatch.setattr(kernel.subprocess, "run", lambda *args, **kwargs: pytest.fail("installed"))
    kernel.require_package("json", "json")


def test_a_missing_package_is_named_with_what_to_do(monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    with pytest.raises(ExpectedError, match="no_such_module is missing; .*pip install no-such;?"):
        kernel.require_package("no_such_module", "no-such")


def test_a_kernel_installs_a_missing_package(monkeypatch, tmp_path):
    def install(command, check):
        assert command[-2:] == ["--no-deps", "made-up"]
        (tmp_path / "made_up_package.py").write_text("")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(kernel.subprocess, "run", install)
    kernel.require_package("made_up_package", "made-up")


def test_a_kernel_without_internet_installs_from_a_wheel_in_a_data_set(monkeypatch, tmp_path):
    """With the real pip, into another folder."""
    wheel = (
        tmp_path / "input" / "datasets" / "somebody" / "wheels" / "shipped_one-1-py3-none-any.whl"
    )
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("shipped_one.py", "")
        archive.writestr(
            "shipped_one-1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: shipped-one\nVersion: 1\n",
        )
        archive.writestr(
            "shipped_one-1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("shipped_one-1.dist-info/RECORD", "")
    (tmp_path / "packages").mkdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "packages"))
    monkeypatch.setattr(kernel, "FOLDER", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    kernel.require_package("shipped_one", "shipped-one")
    assert (tmp_path / "packages" / "shipped_one.py").exists()
