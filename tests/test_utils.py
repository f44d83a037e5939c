"""Tests of the helpers: atomic files, stopping, scratch folders, one run at a time."""

import contextlib
import fcntl
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checks import names_in, one_line

import utils
from utils import (
    ExpectedError,
    Stop,
    atomic_write,
    file_md5,
    hold_folder,
    in_background,
    loading_keras,
    muted_stderr,
    require_free_space,
    run_ahead,
    say,
    scratch_folder,
)

ROOT = Path(__file__).parent.parent


def test_progress_goes_to_stderr(capsys):
    say("shard 3")
    assert capsys.readouterr() == ("", "shard 3\n")


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
        shards = run_ahead(lambda: write_on(folder / "train"), 4)
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


@pytest.mark.parametrize("module", ["model", "devices", "training", "describe"])
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
