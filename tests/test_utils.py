"""Tests of the helpers: atomic files, stopping, muted libraries, background work."""

import contextlib
import functools
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from checks import names_in, one_line

import utils
from utils import (
    ExpectedError,
    Progress,
    Stop,
    atomic_write,
    file_md5,
    in_background,
    read_at,
    require_free_space,
    say,
)

ROOT = Path(__file__).parent.parent


def test_progress_goes_to_stderr(capsys):
    say("shard 3")
    assert capsys.readouterr() == ("", "shard 3\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host/a: HTTP 404; check it", "http://***@host/a: HTTP 404; check it"),
        ("https://h/train/a.tar?sig=s%3D&se=12:00:00Z: late", "https://h/train/a.tar?***: late"),
        ("https://me:p@ss/word@h:80/, http://h/?x=secret", "https://***@h:80/, http://h/?***"),
        ("socks5://me:secret@127.0.0.1:9", "socks5://***@127.0.0.1:9"),
        ("http://127.0.0.1:80/a, me@host.org?", "http://127.0.0.1:80/a, me@host.org?"),
    ],
)
def test_passwords_and_tokens_of_addresses_are_not_shown(text, shown, capsys):
    assert utils.masked(text) == str(ExpectedError(text)) == shown
    say(text)
    assert capsys.readouterr().err == f"{shown}\n"


# ----------------------------------------------------------------------------------- atomic files


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


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    """Of two machines, too, whatever their names and the numbers of their processes."""
    path = tmp_path / "table.csv"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ended last
    assert names_in(tmp_path) == ["table.csv"]


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
    monkeypatch.setattr("utils.shutil.disk_usage", lambda folder: SimpleNamespace(free=2_048_000))
    require_free_space(tmp_path, 2_048_000, "a shard")
    with pytest.raises(ExpectedError, match=r"0.002048 GB free; expected 0.003000 GB or more"):
        require_free_space(tmp_path, 3_000_000, "a shard")


def test_a_folder_for_free_space_that_cannot_be_made_is_an_expected_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpectedError) as caught:
        require_free_space(tmp_path / "file" / "scratch", 1, "a byte")
    one_line(caught.value)


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


@pytest.mark.parametrize("has_pread", [True, False])
def test_bytes_are_read_at_their_place_by_several_threads(tmp_path, monkeypatch, has_pread):
    content = bytes(range(256)) * 100
    (tmp_path / "file").write_bytes(content)
    if not has_pread:
        monkeypatch.delattr("os.pread")
    with open(tmp_path / "file", "rb") as file:

        def read(start):
            places = range(start, 25_000, 97)
            return all(read_at(file.fileno(), 9, n) == content[n : n + 9] for n in places)

        futures = [in_background(read, start) for start in range(8)]
        assert all(future.result(timeout=30) for future in futures)


# ----------------------------------------------------------------------------------- progress


@pytest.fixture
def still(monkeypatch):
    """A clock that stands still, and no thread that shows anything by itself."""
    now = [100.0]
    monkeypatch.setattr("utils.time.monotonic", lambda: now[0])
    monkeypatch.setattr(utils, "_start_showing", lambda: None)
    return now


def test_the_rate_and_the_time_to_go_leave_the_first_update_out(still):
    with Progress("mini-epoch 1/4", 1000) as job:
        assert job.describe(105.0) == "mini-epoch 1/4: 0 of 1,000 images, 5 s so far"
        still[0] = 120.0  # the first step was compiled
        job.update(100, "loss 2.500")
        still[0] = 122.0
        job.update(100, "loss 2.250")
        told = "mini-epoch 1/4: 200 of 1,000 images, loss 2.250, 50 images/s, 16 s to go"
        assert job.describe(122.0) == told


def test_bytes_are_told_in_megabytes(still):
    with Progress("train/images_007.tar", 500_000_000, "B") as job:
        job.update(1_000_000)
        still[0] += 2
        job.update(99_000_000)
        told = "train/images_007.tar: 100 of 500 MB, 49.5 MB/s, 8 s to go"
        assert job.describe(still[0]) == told


def test_a_pipe_gets_a_line_after_ten_seconds_and_after_25_where_nothing_moves(still, capsys):
    def lines_at(now):
        still[0] = now
        utils._show(now, is_terminal=False)
        return capsys.readouterr().err.count("\n")

    with Progress("reading") as job:
        assert lines_at(109.0) == 0
        job.update()
        assert [lines_at(now) for now in (109.5, 110.5, 111.0, 120.0)] == [0, 1, 0, 0]
        assert [lines_at(now) for now in (135.0, 136.0, 137.0)] == [0, 1, 0]


def test_the_innermost_job_is_shown_and_a_download_where_it_is_waited_for(still, capsys):
    with Progress("images_001.tar", is_ahead=True), Progress("training") as job:
        still[0] += 12
        utils._line["told"] = 0.0
        utils._show(still[0], is_terminal=False)
        waits = "; waiting for images_001.tar: 0 images, 12 s so far"
        assert capsys.readouterr().err == f"training: 0 images, 12 s so far{waits}\n"
        utils._show(still[0], is_terminal=True)  # where it may be cut off: what is waited for first
        assert capsys.readouterr().err == f"\rtraining{waits}"
        utils._clear_line()
        capsys.readouterr()
        job.note("in its first step")  # it has all that it needs
        utils._line["told"] = 0.0
        utils._show(still[0], is_terminal=False)
        told = "training: 0 images, in its first step, 12 s so far\n"
        assert capsys.readouterr().err == told
        job.update(8)
        utils._line["told"] = 0.0
        utils._show(still[0], is_terminal=False)
        assert capsys.readouterr().err == "training: 8 images, 12 s so far\n"


def test_of_several_downloads_the_first_is_told_and_the_rate_of_all(still, capsys):
    with contextlib.ExitStack() as stack:
        names = [f"images_00{number}.tar" for number in (1, 2, 3)]
        jobs = [stack.enter_context(Progress(name, 10**9, "B", is_ahead=True)) for name in names]
        for number in (1, 2, 3):
            for job in jobs:
                job.update(number * 10**7)
            still[0] += 1
        utils._line["told"] = 0.0
        utils._show(still[0] - 1, is_terminal=False)
        first = "images_001.tar: 60 of 1,000 MB, 25.0 MB/s, 38 s to go"
        text = f"{first}; 2 more on the way, 75.0 MB/s in all"
        assert capsys.readouterr().err == f"{text}\n"
        with Progress("training"):
            still[0] += 12
            utils._line["told"] = 0.0
            utils._show(still[0], is_terminal=False)
            waits = "; waiting for images_001.tar: "
            assert capsys.readouterr().err.startswith(f"training: 0 images, 12 s so far{waits}")


def test_a_terminal_gets_one_line_that_moves_and_lines_that_are_said_stay_whole(still, capsys):
    with Progress("describing", 10) as job:
        for _ in range(2):
            job.update(2)
            still[0] += 1
            utils._show(still[0], is_terminal=True)
        say("a line")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "\ra line\n" in told
    assert re.search(r"\r 20% \|.{20}\| describing: 2 of 10 images", told)
    assert re.search(r"\r 40% \|.{20}\| describing: 4 of 10 images", told)


def test_what_cannot_be_counted_tells_its_time_alone(still):
    with Progress("reading train.csv", unit="") as job:
        assert job.describe(112.0) == "reading train.csv: 12 s so far"


def test_jobs_that_follow_each_other_share_one_thread():
    for _ in range(20):
        with Progress("a short job"):
            names = [thread.name for thread in threading.enumerate()]
    assert names.count("progress") == 1


def test_jobs_that_begin_together_share_one_thread(monkeypatch):
    started, all_here = [], threading.Barrier(4)

    @functools.cache
    def start_slowly():
        time.sleep(0.1)
        started.append("progress")

    def job(number):
        all_here.wait(10)
        with Progress("a download", is_ahead=True):
            pass

    monkeypatch.setattr(utils, "_start_showing", start_slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(job, range(4)))
    assert started == ["progress"]


# Two jobs of a second each, the second after the first has ended; a line is said within it.
TWO_JOBS = """
import time, utils
utils.TICK_S, utils.LEAST_S, utils.MOST_S = 0.01, 0.4, 60.0
for name in ("first", "second"):
    with utils.Progress(name, 10) as job:
        for number in range(10):
            time.sleep(0.1)
            job.update()
            if name == "second" and number == 5:
                utils.say("a line")
"""


def test_a_pipe_of_a_process_gets_a_few_plain_lines():
    run = [sys.executable, "-c", TWO_JOBS]
    told = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stderr
    assert "\r" not in told and "a line\n" in told
    lines = told.splitlines()
    counts = [sum(line.startswith(f"{name}: ") for line in lines) for name in ("first", "second")]
    assert all(1 <= count < 10 for count in counts) and len(lines) == sum(counts) + 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_a_terminal_of_a_process_gets_one_line_that_moves():
    import pty

    ours, theirs = pty.openpty()
    run = [sys.executable, "-c", TWO_JOBS]
    with subprocess.Popen(run, cwd=ROOT, stderr=theirs, env=os.environ | {"COLUMNS": "70"}):
        os.close(theirs)
        told = b""
        while piece := read_terminal(ours):
            told += piece
    os.close(ours)
    lines = told.decode().split("\r\n")  # a terminal ends lines so
    assert lines[0].endswith("\ra line") and lines[1].endswith("\r") and len(lines) == 2
    shown = [text for line in lines for text in line.split("\r") if text.strip()]
    assert sum("first: " in text for text in shown) > 2  # it moves
    assert max(map(len, shown)) <= 69  # and never wraps


def read_terminal(descriptor):
    """Reads what a terminal got; nothing once no process writes to it any more."""
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux says so
        return b""
