"""Tests with real processes: killed at any moment, asked to stop, and run again until done."""

import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_source
from tiny_network import in_place_of_backbones

import recognition
from data.arrays import load_arrays
from demo.server import serve
from model import load_recogniser
from runs import kernel
from runs.session import Session
from training.checkpoints import load_checkpoint

ROOT = Path(recognition.__file__).resolve().parent
NUM_KILLS = 2
NUM_MINI_EPOCHS = 4 * 10  # 10 epochs of 4 shards
TIMES = {"seconds", "waited_s", "images_per_s"}  # columns of the history that no two runs share
PATIENCE_S = 120  # for a process; on a busy machine it takes 20 s to import TensorFlow

HEAD = (
    *("--neck", "8", "--sub-centers", "3", "--dynamic-margin", "--margin-ramp", "0.5"),
    *("--class-weights", "--optimizer", "adamw", "--weight-decay", "0.01"),
)
# All that a recipe may have is on: what goes on in another process must be in the checkpoint.
STRONG = (
    *("--recipe", "strong", *HEAD, "--epochs", "10", "--warm-up", "0.1"),
    *("--backbone-rate", "0.5", "--frozen-share", "0.3", "--erase", "0.5", "--geometry", "0.7"),
)
FROZEN = ("--recipe", "frozen", *HEAD, "--epochs", "10", "--batch-size", "16")

# recognition.py as `python recognition.py` runs it, but with a network that compiles in a second.
LAUNCHER = f"""
import runpy, sys
sys.argv[0] = "recognition.py"
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from tiny_network import in_place_of_backbones
with in_place_of_backbones():
    runpy.run_path({str(ROOT / "recognition.py")!r}, run_name="__main__")
"""


@dataclass(frozen=True)
class Job:
    """A training run over HTTP.

    Attributes:
        output: its output folder.
        arguments: list of str, its command line.
    """

    output: Path
    arguments: list

    @property
    def checkpoint(self):
        return self.output / "checkpoint" / "training.npz"

    def history(self):
        """Gives the rows that the checkpoint keeps, without the columns of time."""
        saved = load_checkpoint(Session(self.output, None, None))
        rows = saved[2]["history"] if saved else []
        return [{key: row[key] for key in row.keys() - TIMES} for row in rows]


def make_job(address, output, options=STRONG):
    arguments = [
        *("train", "--source", address, "--output", str(output)),
        *("--train-shards", "1:5", "--valid-shards", "0:1", "--valid-every", "1000"),
        *("--min-images", "5", "--backbone", "mobilenet_v2", "--weights", "none"),
        *("--image-size", "32", "--batch-size", "4", "--seed", "3"),
        *("--learning-rate", "0.003", *options),
    ]
    return Job(output, arguments)


class Process:
    """A process of recognition.py whose stderr is read line by line."""

    def __init__(self, job):
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *job.arguments],
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []

    def wait_for(self, pattern):
        """Reads stderr up to the first line that has `pattern` in it."""
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return
        pytest.fail("ended with " + "\n".join(self.lines))

    def end(self, number=None):
        """Sends a signal, if any, and waits for the end.

        Returns:
            (exit code, stdout, last line of stderr).
        """
        if number is not None:
            self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=PATIENCE_S)
        self.lines += stderr.splitlines()
        return self.process.returncode, stdout, self.lines[-1]


@contextlib.contextmanager
def started(job):
    """Starts a process that does not outlive the block."""
    process = Process(job)
    timer = threading.Timer(PATIENCE_S, process.process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        if process.process.poll() is None:
            process.process.kill()
            process.process.communicate()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Serves a data set of five train shards."""
    folder = tmp_path_factory.mktemp("kill-data") / "source"
    make_source(folder, train_shards=5, per_train_shard=40)
    with serve(folder) as address:
        yield address


@pytest.fixture(scope="module")
def whole(address, tmp_path_factory):
    """A run that nothing interrupts."""
    job = make_job(address, tmp_path_factory.mktemp("whole") / "output")
    with in_place_of_backbones():
        recognition.main(job.arguments)
    assert len(job.history()) == NUM_MINI_EPOCHS
    return job


@dataclass(frozen=True)
class Interrupted:
    """What became of a run that was killed and stopped, and then run until done.

    Attributes:
        job: `Job`.
        num_done: list of int, mini-epochs in the checkpoint after each interruption.
        terminated, interrupted: what `Process.end` gave after SIGTERM and after Ctrl-C.
        finished: what it wrote to stdout when it was left alone.
        scratch_after_kill, scratch_after_stop: what was in the scratch folder then.
    """

    job: Job
    num_done: list
    terminated: tuple
    interrupted: tuple
    finished: str
    scratch_after_kill: list
    scratch_after_stop: list


@pytest.fixture(scope="module")
def killed(address, tmp_path_factory):
    job = make_job(address, tmp_path_factory.mktemp("killed") / "output")
    rng = random.Random(4)
    num_done, scratch = [], job.output / "scratch"

    def left():
        num_done.append(len(job.history()))
        return [path.name for path in scratch.iterdir()]

    # After a mini-epoch of this session, or soon after its start.
    for sign in ("^mini-epoch ", "train images of", "^mini-epoch ")[:NUM_KILLS]:
        with started(job) as process:
            process.wait_for(sign)
            time.sleep(rng.uniform(0, 0.5))
            assert process.end(signal.SIGKILL)[0] == -signal.SIGKILL
        after_kill = left()
    outcomes = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with started(job) as process:
            process.wait_for("^mini-epoch ")
            outcomes.append(process.end(number))
        after_stop = left()
    with in_place_of_backbones(), contextlib.redirect_stdout(io.StringIO()) as stdout:
        recognition.main(job.arguments)
    outcomes.append(stdout.getvalue())
    return Interrupted(job, num_done, *outcomes, after_kill, after_stop)


@pytest.mark.slow
def test_the_interruptions_came_at_different_moments_of_an_unfinished_run(killed):
    assert len(killed.num_done) == NUM_KILLS + 2
    assert killed.num_done == sorted(killed.num_done)
    assert 0 < killed.num_done[-1] < NUM_MINI_EPOCHS
    assert len(set(killed.num_done)) >= 3


@pytest.mark.slow
def test_after_kills_the_history_has_each_mini_epoch_exactly_once(killed, whole):
    rows = killed.job.history()
    assert [row["mini_epoch"] for row in rows] == list(range(1, NUM_MINI_EPOCHS + 1))
    assert rows == whole.history()


@pytest.mark.slow
def test_after_kills_the_weights_are_those_of_a_run_that_was_left_alone(killed, whole):
    ours, theirs = (load_arrays(job.checkpoint)[0] for job in (killed.job, whole))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    for name, variable in theirs.items():
        np.testing.assert_array_equal(ours[name], variable, err_msg=name)


@pytest.mark.slow
def test_a_frozen_backbone_that_is_killed_as_images_stream_ends_as_one_left_alone(
    address, tmp_path, tiny_backbones
):
    whole, killed = (make_job(address, tmp_path / name, FROZEN) for name in ("whole", "killed"))
    with started(killed) as process:
        process.wait_for(r"described \(1/5\)")
        assert process.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert list((killed.output / "features").glob("*.npz")) and not killed.history()
    for job in (killed, whole):
        recognition.main(job.arguments)
    assert killed.history() == whole.history() and len(whole.history()) == 10
    models = [load_recogniser(job.output / "model.keras") for job in (killed, whole)]
    assert models[0].fingerprint == models[1].fingerprint


@pytest.mark.slow
def test_after_kills_the_finished_run_leaves_its_results_and_nothing_else(killed):
    assert killed.finished == f"{killed.job.output / 'model.keras'}\n"
    left = {path.relative_to(killed.job.output).as_posix() for path in killed.job.output.rglob("*")}
    # A kill in the midst of a write may leave a file as in the last test of this page.
    assert {path for path in left if ".writing-" not in path} == {
        "checkpoint",
        "checkpoint/training.npz",
        "checkpoint/previous-training.npz",
        "history.csv",
        "history.png",
        "model.keras",
        "scratch",
    }


@pytest.mark.slow
def test_a_kill_leaves_its_scratch_and_the_next_session_removes_it(killed):
    assert len(killed.scratch_after_kill) == 2  # of the last kill alone: a folder and its lock
    assert killed.scratch_after_stop == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_name", "session", "exit_code"),
    [("SIGTERM", "terminated", 0), ("SIGINT", "interrupted", 130)],
)
def test_a_signal_ends_the_run_cleanly_and_says_what_remains(
    killed, signal_name, session, exit_code
):
    code, stdout, line = getattr(killed, session)
    assert code == exit_code
    assert stdout == ""
    num_done = killed.num_done[{"terminated": -2, "interrupted": -1}[session]]
    assert line == (
        f"stopped by {signal_name}: {num_done} of {NUM_MINI_EPOCHS} mini-epochs done; run the "
        "same command again to continue"
    )


@pytest.mark.slow
def test_a_kernel_continues_the_checkpoint_of_an_earlier_session(
    whole, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(kernel, "FOLDER", tmp_path)
    mounted = tmp_path / "input" / "notebooks" / "someone" / "first-session" / "checkpoint"
    mounted.mkdir(parents=True)
    shutil.copy(whole.checkpoint, mounted)
    place = whole.arguments.index("--output")
    with in_place_of_backbones():
        recognition.main(whole.arguments[:place] + whole.arguments[place + 2 :])
    told = capsys.readouterr().err.splitlines()
    assert f"{mounted / 'training.npz'}: copied from an earlier session" in told
    assert f"training is complete: {NUM_MINI_EPOCHS} mini-epochs" in told
    copied = tmp_path / "working" / "checkpoint" / "training.npz"
    assert copied.read_bytes() == whole.checkpoint.read_bytes()
    assert (tmp_path / "working" / "model.keras").is_file()


def test_a_file_that_a_killed_process_did_not_finish_is_removed_by_the_next(tmp_path):
    path = tmp_path / "training.npz"
    code = (
        "import os, sys; from runs.folders import hold_folder; from utils import atomic_write\n"
        "folder = os.path.dirname(sys.argv[1])\n"
        "with hold_folder(folder, 'a run'), atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half of it')\n"
        "    os.kill(os.getpid(), 9 if sys.argv[2] == 'killed' else 0)\n"
    )
    for fate in ("killed", "spared"):
        subprocess.run([sys.executable, "-c", code, path, fate], cwd=ROOT, check=False)
    assert path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["training.npz"]


def test_every_test_that_the_table_of_faults_names_is_there():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "faults.md").read_text())
    assert len(named) > 50
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()
