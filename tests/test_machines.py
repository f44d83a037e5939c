"""Tests of machines as processes on loopback: they agree, train as one, and notice a loss."""

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_source

import recognition
import retrieval
from cluster import machines
from cluster.machines import Machines
from data.arrays import load_arrays
from utils import ExpectedError

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is optional: requirements-cluster.txt"
)
ROOT = Path(__file__).resolve().parent.parent


def free_addresses(number):
    """Gives addresses of ports on loopback that nobody has."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = tuple(f"127.0.0.1:{server.getsockname()[1]}" for server in servers)
    for server in servers:
        server.close()
    return addresses


# --------------------------------------------------------------------------- what they say

MEMBER = """
import sys, time
sys.path[:0] = [{root!r}]
from cluster import machines
from runs.command_line import run_command_line
from utils import ExpectedError, say

machines._require_jax = lambda addresses: None  # without Keras, which loads slowly
machines.LOST_AFTER_S = machines.PATIENCE_S = 10


def main():
    with machines.join(tuple(sys.argv[2].split(",")), int(sys.argv[1])) as joined:
        number = joined.number
        say("met")
        {body}


run_command_line(main)
"""


def start_member(number, addresses, body):
    """Starts the process of a machine, which runs a line of code when all have met."""
    code = MEMBER.format(root=str(ROOT), body=body)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(number), ",".join(addresses)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_members(addresses, body):
    return [start_member(number, addresses, body) for number in range(len(addresses))]


def ends_of(processes):
    """Gives (exit code, what was said after the line before they met) of each process."""
    said = [process.communicate(timeout=120)[1].splitlines()[1:] for process in processes]
    return [(p.returncode, lines) for p, lines in zip(processes, said, strict=True)]


@needs_jax
def test_all_machines_hear_all_in_order():
    body = "say([joined.exchange([number, turn]) for turn in range(3)])"
    expected = str([[[k, turn] for k in range(3)] for turn in range(3)])
    ends = ends_of(start_members(free_addresses(3), body))
    assert ends == [(0, ["met", expected])] * 3


@needs_jax
@pytest.mark.parametrize("number", [0, 1])
def test_a_machine_that_fails_is_named_on_all_others(number):
    body = f"""if number == {number}:
            raise ExpectedError("the disk is full")
        joined.exchange("here")"""
    addresses = free_addresses(3)
    ends = ends_of(start_members(addresses, body))
    assert ends.pop(number) == (1, ["met", "error: the disk is full"])
    told = f"error: machine {number} ({addresses[number]}) ended: the disk is full; expected all 3 "
    told += "machines to the end; run the same command again to continue, with those that are there"
    assert ends == [(1, ["met", told])] * 2


@needs_jax
@pytest.mark.parametrize("killed", [0, 1])
def test_a_machine_that_waits_ends_with_one_line_when_another_is_killed(killed):
    body = f"time.sleep(60 if number == {killed} else 0); joined.exchange('here')"
    processes = start_members(free_addresses(2), body)
    for process in processes:
        assert process.stderr.readline().startswith("waiting for 2 machines at 127.0.0.1:")
        assert process.stderr.readline() == "met\n"
    processes[killed].kill()
    _, said = processes[1 - killed].communicate(timeout=120)
    processes[killed].communicate()
    assert processes[1 - killed].returncode != 0
    assert said == (
        "error: another machine is gone, or silent for 10 s; expected all 2 machines to the end; "
        "run the same command again to continue, with those that are there\n"
    )


@needs_jax
@pytest.mark.parametrize("problem", ["alone", "another list"])
def test_machines_that_do_not_meet_are_one_line(problem):
    addresses = free_addresses(2)
    lists = [addresses, (addresses[0], addresses[1].replace("127.0.0.1", "localhost"))]
    lists = lists[:1] if problem == "alone" else lists
    processes = [start_member(number, each, "pass") for number, each in enumerate(lists)]
    for number, (code, lines) in enumerate(ends_of(processes)):
        assert code != 0 and len(lines) == 1
        assert f"error: machine {number} (" in lines[0]
        assert "the 2 machines did not find one another" in lines[0]


@pytest.mark.parametrize("name", ["margin", "the number and kind of devices"])
def test_machines_that_differ_are_refused(name, monkeypatch):
    one = Machines(("a:1", "b:1"), 0, None)
    monkeypatch.setattr(one, "exchange", lambda facts: [facts, facts | {name: "another"}])
    facts = {"margin": 0.3, "the number and kind of devices": "1 cpu"}
    told = rf"machine 1 \(b:1\): {name} is another, here it is .*; expected the same command and"
    with pytest.raises(ExpectedError, match=told):
        one.require_equal(facts)


@pytest.mark.parametrize(
    ("own", "named", "told"),
    [
        ("10.0.0.1", "10.0.0.1", None),
        ("127.0.0.1", "127.0.1.1", None),  # all on one machine
        ("10.0.0.1", "127.0.1.1", "leads to 127.0.1.1; expected 10.0.0.1"),
        ("10.0.0.1", OSError("no such name"), "leads to nowhere; expected 10.0.0.1"),
    ],
)
def test_a_name_that_others_cannot_reach_is_refused(monkeypatch, own, named, told):
    def look_up(host):
        if isinstance(named, OSError) and host == "node":
            raise named
        return {"node": named, "head": own}[host]

    monkeypatch.setattr(machines.socket, "gethostname", lambda: "node")
    monkeypatch.setattr(machines.socket, "gethostbyname", look_up)
    if told is None:
        machines._require_name("head:7011")
        return
    with pytest.raises(ExpectedError, match=f"node: the name of this machine {told}, where"):
        machines._require_name("head:7011")


@pytest.mark.parametrize("problem", ["taken", "unknown"])
def test_an_address_where_the_first_machine_cannot_listen_is_one_line_at_once(problem):
    address = "no.such.host.invalid:7011" if problem == "unknown" else free_addresses(1)[0]
    host, _, port = address.rpartition(":")
    other = socket.create_server((host, int(port))) if problem == "taken" else None
    with pytest.raises(ExpectedError, match=r"machine 0 \(.*\): cannot listen there"):
        machines._require_free_port(address)
    if other:
        other.close()


def test_spaces_between_addresses_do_no_harm():
    arguments = ["train", "--machines", "a:1, b:1"]
    assert recognition.parse_arguments(arguments).machines == ("a:1", "b:1")


def test_the_command_lines_of_the_page_are_taken():
    page = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    names = {"$H": "10.0.0.1:7011,10.0.0.2:7011", "$SLURM_PROCID": "1"}
    found = re.findall(r"python (recognition|retrieval)\.py ([^\"'\n]*)", page)
    assert len(found) == 6
    for script, rest in found:
        words = [names.get(word, word) for word in shlex.split(rest)]
        module = {"recognition": recognition, "retrieval": retrieval}[script]
        args = module.parse_arguments(words)
        assert getattr(args, "machines", None) or args.scheduler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--machines", "a:1"], "expected HOST:PORT,HOST:PORT, two machines or more"),
        (["train", "--machines", "a:1,a:1"], "two machines or more, each once"),
        (["train", "--machines", "a:1,b:x"], "expected HOST:PORT,HOST:PORT"),
        (["train", "--machines", "[::1]:1,[::1]:2"], "by names or IPv4 addresses"),
        (["train", "--machines", "http://a:1,b:1"], "by names or IPv4 addresses"),
        (["train", "--machines", "a:1,b:1", "--machine", "2"], "--machine: 2; expected 0 to 1"),
        (["train", "--machine", "1"], "--machine: 1; expected --machines beside it"),
        (["train", "--machine", "0"], "--machine: 0; expected --machines beside it"),
        (["--machines", "a:1,b:1"], "--machines go with `recognition.py train`"),
        (["train", "--machines", "a:1,b:1", "--recipe", "frozen"], "a backbone that is trained"),
        (["train", "--machines", "a:1,b:1", "--batch-size", "9"], "a multiple of the 2 machines"),
    ],
)
def test_wrong_uses_of_machines_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        recognition.parse_arguments(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_shards_that_were_trained_together_share_their_time(monkeypatch):
    together = machines.Machines(("a:1", "b:1"), 0, client=None)
    rows = [{"images": n, "seconds": 8.0, "waited_s": 2.0, "images_per_s": 10.0} for n in (80, 76)]
    monkeypatch.setattr(together, "exchange", lambda row: rows)
    shared = {"seconds": 4.0, "waited_s": 1.0, "images_per_s": 20.0}
    assert together.collect(rows[0], 2) == [row | shared for row in rows]
    assert together.collect(rows[0], 1) == [rows[0]]  # the last group may have one shard alone


# ------------------------------------------------------------------------- what they train

MACHINE = """
import runpy, sys
sys.path[:0] = [{root!r}, {tests!r}]
sys.argv[0] = "recognition.py"
from cluster import machines
from tiny_network import in_place_of_backbones
machines.LOST_AFTER_S = 20
with in_place_of_backbones():
    runpy.run_path({root!r} + "/recognition.py", run_name="__main__")
"""

# The same global batches in one process: batch i of every machine's shard, one after another.
ONE_PROCESS = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import numpy as np
import model
from training import loop
import recognition
from functools import partial
from generators import Batch, Reading, stream_batches
from data.landmarks import read_train_labels
from model import set_up_keras, to_numpy
from recipes import Recipe
from runs.session import Session
from data.sources import TRAIN_CSV, Source
from tiny_network import in_place_of_backbones
from data.arrays import save_arrays
from utils import Stop

args = recognition.parse_arguments(sys.argv[3:])
num_machines = int(sys.argv[2])
recipe, output = Recipe.of(vars(args)), Path(sys.argv[1])
source = Source(args.source, output)
table, labels = read_train_labels(source.fetch(TRAIN_CSV), recipe.data.min_images)
shards = source.select_shards("train", *recipe.data.train_shards)
images = loop.TrainImages(table, labels, shards, [])
session = Session(output, source, Stop())
set_up_keras(0)
with in_place_of_backbones():
    num_steps = loop.count_steps(session, recipe, images)
    build = partial(model.build_network, recipe, len(table), num_steps)
    network, _ = loop.begin(session, recipe, images, build)
size = recipe.training.batch_size // num_machines
reading = Reading(recipe.data, size, labels.find, is_training=True, seed=recipe.training.seed)
steps_of_shard = num_steps / len(shards)
losses, accuracies, last = [], [], {{}}
nothing = np.zeros((size, 32, 32, 3), np.uint8), np.zeros(size, np.int32)
for begin in range(0, len(shards), num_machines):
    group = shards[begin : begin + num_machines]
    streams = [list(stream_batches(source, [(0, shard)], reading)) for shard in group]
    batches = [[item for item in stream if isinstance(item, Batch)] for stream in streams]
    pace = loop.Pace(recipe, network, begin, len(shards), steps_of_shard, len(group))
    of_group = []
    for step in range(max(map(len, batches))):
        active = [k for k in range(len(group)) if step < len(batches[k])]
        for k in active:
            last[k] = batches[k][step].images, batches[k][step].class_indices
        parts = [last.get(k, nothing) for k in range(num_machines)]
        weights = [num_machines / len(active) if k in active else 0 for k in range(num_machines)]
        pace.set_for(step)
        x, y = map(np.concatenate, zip(*parts))
        weights = np.repeat(np.array(weights, np.float32), size)
        network.reset_metrics()
        of_group.append(list(map(float, network.train_on_batch(x, y, weights))))
    losses += [np.mean(of_group, axis=0)[0]] * len(group)
    accuracies += [np.mean(of_group, axis=0)[1]] * len(group)
variables = [*network.variables, *network.optimizer.variables]
arrays = {{f"v{{i:05d}}": to_numpy(v) for i, v in enumerate(variables)}}
save_arrays(output / "one.npz", {{"losses": losses, "accuracies": accuracies}}, **arrays)
"""


def start(code, *arguments):
    """Starts a Python process on JAX."""
    code = code.format(root=str(ROOT), tests=str(ROOT / "tests"))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_machines(number, arguments):
    """Starts the processes of machines on loopback."""
    options = ("--machines", ",".join(free_addresses(number)), "--machine")
    return [start(MACHINE, *arguments, *options, k) for k in range(number)]


@needs_jax
@pytest.mark.slow
def test_machines_train_as_one_process_with_the_same_batches(tmp_path):
    number = 3
    made = make_source(tmp_path / "source", train_shards=5, per_train_shard=16)
    # Uneven: 16, 16, 16 and 16 + 3 images; the last group has one shard.
    output = tmp_path / "output"
    arguments = [
        *("train", "--source", made.folder, "--output", output, "--train-shards", "1:5"),
        *("--valid-shards", "0:1", "--min-images", 3, "--backbone", "mobilenet_v2"),
        *("--weights", "none", "--image-size", 32, "--batch-size", 12, "--learning-rate", 0.01),
    ]
    processes = start_machines(number, arguments)
    (tmp_path / "one").mkdir()
    one = start(ONE_PROCESS, tmp_path / "one", number, *arguments)
    said = [process.communicate(timeout=300) for process in (*processes, one)]
    assert [process.returncode for process in (*processes, one)] == [0] * (number + 1), said
    # Nothing of Gloo, which prints to stdout.
    assert [stdout for stdout, _ in said] == [f"{output / 'model.keras'}\n", *[""] * number]
    ours, page = load_arrays(output / "checkpoint" / "training.npz")
    theirs, oracle = load_arrays(tmp_path / "one" / "one.npz")
    rows = page["history"]
    assert [row["shard"] for row in rows] == [1, 2, 3, 4]
    assert [row["images"] for row in rows] == [16, 16, 16, 19]
    np.testing.assert_allclose([row["loss"] for row in rows], oracle["losses"], rtol=1e-4)
    accuracies = [row["accuracy"] for row in rows]
    np.testing.assert_allclose(accuracies, oracle["accuracies"], atol=1e-6)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        least = 1e-3 * np.abs(value).max() + 1e-6
        np.testing.assert_allclose(ours[name], value, rtol=1e-2, atol=least, err_msg=name)


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_a_killed_machine_ends_the_run_and_fewer_continue_it(number, tmp_path):
    made = make_source(tmp_path / "source", train_shards=1 + number, per_train_shard=16)
    output, num_epochs = tmp_path / "output", 24 // number
    arguments = [
        *("train", "--source", made.folder, "--output", output, "--valid-shards", "0:1"),
        *("--train-shards", f"1:{1 + number}", "--min-images", 3, "--backbone", "mobilenet_v2"),
        *("--weights", "none", "--image-size", 32, "--batch-size", 12, "--epochs", num_epochs),
    ]
    first, *others = start_machines(number, arguments)
    for line in first.stderr:
        if line.startswith("mini-epoch 6/"):
            break
    others[0].kill()
    said = [process.communicate(timeout=120)[1].splitlines()[-1] for process in (first, *others)]
    assert 0 not in [first.returncode, *(other.returncode for other in others[1:])]
    for last in (said[0], *said[2:]):
        expected = f"expected all {number} machines to the end"
        assert re.match(rf"error: (machine 1 \(.*\)|another machine) is gone.*; {expected}", last)
    checkpoint = output / "checkpoint" / "training.npz"
    num_done = len(load_arrays(checkpoint)[1]["history"])
    assert 6 <= num_done < 24 and num_done % number == 0
    fewer = start_machines(2, arguments) if number == 3 else [start(MACHINE, *arguments)]
    said = [process.communicate(timeout=300) for process in fewer]
    assert [stdout for stdout, _ in said] == [f"{output / 'model.keras'}\n", ""][: len(fewer)], said
    rows = load_arrays(checkpoint)[1]["history"]
    assert [row["mini_epoch"] for row in rows] == list(range(1, 25))
    assert [row["shard"] for row in rows] == list(range(1, 1 + number)) * num_epochs


@needs_jax
@pytest.mark.slow
def test_sigterm_on_one_machine_stops_all_after_the_same_step(tmp_path):
    made = make_source(tmp_path / "source", train_shards=3, per_train_shard=16)
    arguments = [
        *("train", "--source", made.folder, "--output", tmp_path / "output", "--epochs", 400),
        *("--train-shards", "1:3", "--valid-shards", "0:1", "--min-images", 3, "--weights"),
        *("none", "--backbone", "mobilenet_v2", "--image-size", 32, "--batch-size", 4),
    ]
    first, second = start_machines(2, arguments)
    for line in first.stderr:
        if line.startswith("mini-epoch 2/"):
            break
    second.terminate()
    said = [process.communicate(timeout=120) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [stdout for stdout, _ in said] == ["", ""]
    ends = {stderr.splitlines()[-1] for _, stderr in said}
    assert len(ends) == 1 and "stopped by SIGTERM on machine 1: " in ends.pop()
