"""Tests of jobs on a Dask cluster: the same files as without, also when a worker is killed."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from tiny_network import in_place_of_backbones

import nearest
import retrieval
import shrink
from cluster import dask_workers
from data.sources import Source
from runs.session import Session
from utils import ExpectedError, Stop

pytestmark = pytest.mark.usefixtures("tiny_models")

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None,
    reason="Dask is optional: requirements-cluster.txt",
)


def count_connections(session, _):
    return session.source.max_connections


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
    pytest.importorskip("distributed", reason="Dask is optional: requirements-cluster.txt")
    from distributed import Client, WorkerPlugin

    class TinyModels(WorkerPlugin):
        def setup(self, worker):
            self.patch = in_place_of_backbones()
            self.patch.__enter__()

    with dask_workers._start_here(2) as cluster, Client(cluster, set_as_default=False) as client:
        client.register_plugin(TinyModels())
        yield cluster


def open_session(folder, source):
    return Session(folder, Source(source, folder / "scratch"), Stop())


def test_a_job_whose_worker_was_killed_is_done_by_another(cluster, data_set, tmp_path, capsys):
    session = open_session(tmp_path, data_set.folder)
    address = cluster.scheduler_address
    with dask_workers.open_workers(address, session, tmp_path / "scratch") as workers:
        assert workers.run(add_or_fail, list(range(6)), "numbers") == [1, 2, 3, 4, 5, 6]
        assert capsys.readouterr().err.splitlines()[-1] == "6 of 6 numbers"
        with pytest.raises(ExpectedError, match="job 99 is bad; expected a good one") as caught:
            workers.run(add_or_fail, [1, 99], "numbers")
    assert caught.value.setting == "source"


def test_without_dask_a_scheduler_is_refused_in_one_line(data_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    session = open_session(tmp_path, data_set.folder)
    opening = dask_workers.open_workers("local:2", session, tmp_path)
    with pytest.raises(ExpectedError, match="optional packages of requirements-cluster"), opening:
        pass


def test_the_gpus_of_workers_are_those_that_this_process_may_use(monkeypatch):
    for chosen, gpus in (("1,3", ["1", "3"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert dask_workers._visible_gpus() == gpus


@needs_dask
def test_a_scheduler_outside_of_the_projects_folder_is_refused(data_set, tmp_path):
    command = [sys.executable, "-P", "-m", "dask", "scheduler", "--host", "127.0.0.1"]
    options = ["--port", "0", "--dashboard-address", "127.0.0.1:0", "--no-dashboard"]
    file = tmp_path / "scheduler.json"
    process = subprocess.Popen(
        [*command, *options, "--scheduler-file", file], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        while not file.exists():
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        session = open_session(tmp_path, data_set.folder)
        opening = dask_workers.open_workers(address, session, tmp_path)
        with pytest.raises(ExpectedError, match="the scheduler: this project cannot be"), opening:
            pass
    finally:
        process.terminate()
        process.wait(30)


@needs_dask
def test_nobody_at_the_address_is_one_line(data_set, tmp_path, monkeypatch):
    session = open_session(tmp_path, data_set.folder)
    monkeypatch.setattr(dask_workers, "PATIENCE_S", 1)
    opening = dask_workers.open_workers("tcp://127.0.0.1:9", session, tmp_path)
    with pytest.raises(ExpectedError, match="no Dask scheduler answers there"), opening:
        pass


@needs_dask
def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ExpectedError, match="local:2: 1 GPUs here"):
        dask_workers._start_here(2)


@needs_dask
def test_a_worker_has_its_share_of_the_cores_and_of_the_connections(
    data_set, tmp_path, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    session = open_session(tmp_path, data_set.folder)
    with dask_workers.open_workers("local:2", session, tmp_path / "scratch") as workers:
        found = workers.client.run(os.getenv, "OMP_NUM_THREADS")
        (connections,) = workers.run(count_connections, [None], "counted")
    assert list(found.values()) == ["3", "3"]
    assert connections == 4  # half of the 8 of this process
    assert "OMP_NUM_THREADS" not in os.environ


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


def files_of(folder, pattern):
    """Gives the files of a folder: dict, name -> bytes."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob(pattern))}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def test_nearest_train_images_are_found_on_workers_as_without(
    cluster, data_set, recognition_run, tmp_path, capsys
):
    ours, alone = tmp_path / "ours", tmp_path / "alone"
    arguments = ["--source", data_set.folder, "--model", recognition_run.output / "model.keras",
                 "--parts", 2, "--batch-size", 8]  # fmt: skip
    said = {}
    for output, more in ((ours, ["--scheduler", cluster.scheduler_address]), (alone, [])):
        nearest.main([str(word) for word in (*arguments, "--output", output, *more)])
        captured = capsys.readouterr()
        said[output] = captured.out.replace(str(output), "")
        assert ("4 of 4 train shards described" in captured.err) == (output == ours)
    assert said[ours] == said[alone]
    made = {path: files_of(path, "*.npz") | files_of(path, "*.csv") for path in (ours, alone)}
    assert {"recognition_submission.csv", "names.npz", "gallery-part-1-of-2.npz",
            "descriptors/train_000.npz"} <= made[ours].keys()  # fmt: skip
    assert made[ours] == made[alone]


def shrink_to(output, data_set, *more):
    arguments = ["--source", data_set.folder, "--output", output, "--pixels", 32, *more]
    shrink.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("labels", ["full", "clean"])
def test_shards_are_shrunk_on_workers_as_without(cluster, data_set, tmp_path, labels, capsys):
    ours, alone = tmp_path / "ours", tmp_path / "alone"
    labels = ("--labels", labels)
    shrink_to(ours, data_set, *labels, "--scheduler", cluster.scheduler_address)
    assert "7 of 7 shards shrunk" in capsys.readouterr().err
    shrink_to(alone, data_set, *labels)
    made = {path: files_of(path, "*") for path in (ours, alone)}
    for files in made.values():
        # The times and the picture differ from run to run.
        rows = files.pop("shrink.csv").decode().splitlines()
        files["rows"] = [row.split(",")[:5] for row in rows]
        assert files.pop("shrunk.png")
        for name in [name for name in files if name.endswith(".lock")]:
            del files[name]  # of the workers, which are still there
    assert made[ours] == made[alone]
    before = {name: (ours / name).stat().st_mtime_ns for name in made[ours] if "images_" in name}
    shrink_to(ours, data_set, *labels, "--scheduler", cluster.scheduler_address)
    assert before == {name: (ours / name).stat().st_mtime_ns for name in before}


@pytest.fixture
def spoilt(data_set, tmp_path):
    """The data set with two shards that are no tars."""
    folder = shutil.copytree(data_set.folder, tmp_path / "spoilt")
    for number in (1, 2):
        data = b"no tar" * 1000
        (folder / f"train/images_00{number}.tar").write_bytes(data)
        md5 = hashlib.md5(data).hexdigest()
        (folder / f"md5sum/train/md5.images_00{number}.txt").write_text(f"{md5}  x\n")
    return SimpleNamespace(folder=folder)


def test_one_broken_shard_may_be_left_out_on_workers_and_two_may_not(
    cluster, data_set, spoilt, tmp_path, capsys
):
    address = ("--scheduler", cluster.scheduler_address)
    with pytest.raises(ExpectedError, match="expected a whole uncompressed tar") as caught:
        shrink_to(tmp_path / "two", spoilt, *address, "--skip-bad-shards")
    assert caught.value.setting == "skip_bad_shards"
    name = "train/images_002.tar"
    shutil.copy(data_set.folder / name, spoilt.folder / name)
    md5 = "md5sum/train/md5.images_002.txt"
    shutil.copy(data_set.folder / md5, spoilt.folder / md5)
    capsys.readouterr()
    shrink_to(tmp_path / "one", spoilt, *address, "--skip-bad-shards")
    assert "left out: train/images_001.tar" in capsys.readouterr().err
    with pytest.raises(ExpectedError, match="expected a whole uncompressed tar"):
        shrink_to(tmp_path / "none", spoilt, *address)


def test_an_output_that_becomes_too_large_is_refused_on_workers(cluster, data_set, tmp_path):
    with pytest.raises(ExpectedError, match="in the end, as far as can be told") as caught:
        shrink_to(tmp_path / "ours", data_set, "--scheduler", cluster.scheduler_address,
                  "--max-gb", 1e-5)  # fmt: skip
    assert caught.value.setting == "parts"
