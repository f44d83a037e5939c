"""Tests of jobs on a Dask cluster: the same files as without, also when a worker is killed."""

import contextlib
import io
import os
import shutil
import signal
import threading
import time

import pytest

import retrieval
import scheduler
from session import Session
from sources import Source
from utils import ExpectedError, Stop

pytest.importorskip("distributed", reason="dask is optional: requirements-cluster.txt")


def add_or_fail(session, job):
    """A job for the tests: files as marks of what happened."""
    mark = session.output / f"begun-{job}"
    if job == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 99:
        raise ExpectedError("job 99 is bad; expected a good one; take another", setting="source")
    mark.touch()
    return job + 1


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    with scheduler._start_here(2) as cluster:
        yield cluster


def open_session(folder, source):
    return Session(folder, Source(source, folder / "scratch"), Stop())


def test_a_job_whose_worker_was_killed_is_done_by_another(cluster, data_set, tmp_path, capsys):
    session = open_session(tmp_path, data_set.folder)
    address = cluster.scheduler_address
    with scheduler.open_workers(address, session, tmp_path / "scratch") as workers:
        assert workers.run(add_or_fail, list(range(6)), "numbers") == [1, 2, 3, 4, 5, 6]
        assert capsys.readouterr().err.splitlines()[-1] == "6 of 6 numbers"
        with pytest.raises(ExpectedError, match="job 99 is bad; expected a good one") as caught:
            workers.run(add_or_fail, [1, 99], "numbers")
    assert caught.value.setting == "source"


def test_nobody_at_the_address_is_one_line(data_set, tmp_path, monkeypatch):
    session = open_session(tmp_path, data_set.folder)
    monkeypatch.setattr(scheduler, "PATIENCE_S", 1)
    opening = scheduler.open_workers("tcp://127.0.0.1:9", session, tmp_path)
    with pytest.raises(ExpectedError, match="no Dask scheduler answers there"), opening:
        pass


def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ExpectedError, match="local:2: 1 GPUs here"):
        scheduler._start_here(2)


def search(model_output, output, data_set, *more):
    """Runs the whole of retrieval.py; gives the bytes of its files."""
    arguments = ["--source", data_set.folder, "--model", model_output / "model.keras",
                 "--output", output, "--parts", 2, "--batch-size", 8, *more]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        retrieval.main([str(argument) for argument in arguments])
    names = ("retrieval_submission.csv", "part-0-of-2.npz", "part-1-of-2.npz")
    return [(output / name).read_bytes() for name in names], stdout.getvalue()


def test_a_search_whose_worker_is_killed_gives_the_same_bytes(
    cluster, data_set, recognition_run, tmp_path
):
    from distributed import Client

    address, output = cluster.scheduler_address, tmp_path / "on-workers"

    def kill_in_the_middle():
        # After the first file: some shards are described, none is searched.
        while not list(output.glob("descriptors/*.npz")):
            time.sleep(0.05)
        with Client(address, set_as_default=False) as client:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
            killed.append(True)

    killed = []
    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    ours = search(recognition_run.output, output, data_set, "--scheduler", address)
    killer.join(60)
    assert killed
    alone = search(recognition_run.output, tmp_path / "alone", data_set)
    assert ours[0] == alone[0]
    assert ours[1].replace(str(output), str(tmp_path / "alone")) == alone[1]
    shutil.rmtree(output)
