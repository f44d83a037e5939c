"""Tests of machines on loopback: they find one another, agree, and notice when one is gone."""

import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import recognition
import retrieval
from cluster import machines
from cluster.machines import Machines
from utils import ExpectedError

ROOT = Path(__file__).resolve().parent.parent


def free_addresses(number):
    """Gives addresses of ports on loopback that nobody has."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = tuple(f"127.0.0.1:{server.getsockname()[1]}" for server in servers)
    for server in servers:
        server.close()
    return addresses


def on_all(addresses, function):
    """Runs a function of (`Machines`) for each machine in a thread; gives what came of it."""
    results = [None] * len(addresses)

    def run(number):
        try:
            results[number] = function(Machines(addresses, number))
        except ExpectedError as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(addresses))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_all_machines_hear_all_in_order():
    def talk(machine):
        said = [machine.exchange([machine.number, turn]) for turn in range(3)]
        machine.finish()
        return said

    for said in on_all(free_addresses(3), talk):
        assert said == [[[k, turn] for k in range(3)] for turn in range(3)]


def test_a_machine_that_fails_is_named_on_all_others():
    def fail(machine):
        if machine.number == 1:
            machine.fail("the disk is full")
            return None
        try:
            machine.exchange("here")
        finally:
            machine._is_closed = True  # else the process would be ended after a while

    addresses = free_addresses(3)
    first, _, third = on_all(addresses, fail)
    for error in (first, third):
        assert f"machine 1 ({addresses[1]}) ended: the disk is full; expected all 3" in str(error)


def test_a_loss_is_told_once_even_if_the_first_machine_ends_before_it_has_told_it():
    def lose(machine):
        if machine.number == 1:
            machine._is_closed = True
            machine._peers[0].connection.shutdown(socket.SHUT_RDWR)  # as if killed
            return None
        real = machine._send

        def send(other, message):
            if machine.number == 0 and threading.current_thread().name == "machines":
                time.sleep(0.5)
            real(other, message)

        machine._send = send
        try:
            machine.exchange("here")
        except ExpectedError as error:
            machine.fail(str(error))
            raise

    addresses = free_addresses(3)
    first, _, third = on_all(addresses, lose)
    assert str(first).startswith(f"machine 1 ({addresses[1]}) is gone; expected all 3 machines")
    assert str(third) == str(first)


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
        machines.require_name("head:7011")
        return
    with pytest.raises(ExpectedError, match=f"node: the name of this machine {told}, where"):
        machines.require_name("head:7011")


def test_another_list_of_machines_is_refused():
    addresses = free_addresses(2)
    other = (addresses[0], addresses[1].replace("127.0.0.1", "localhost"))
    results = [None, None]

    def join(number, names):
        with pytest.raises(ExpectedError, match="expected the same list") as caught:
            Machines(names, number)
        results[number] = str(caught.value)

    threads = [threading.Thread(target=join, args=pair) for pair in ((0, addresses), (1, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(results)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("problem", ["taken", "unknown"])
def test_an_address_where_this_machine_cannot_listen_is_one_line_at_once(number, problem):
    addresses = list(free_addresses(2))
    if problem == "unknown":
        addresses[number] = "no.such.host.invalid:7011"
    host, _, port = addresses[number].rpartition(":")
    other = socket.create_server((host, int(port))) if problem == "taken" else None
    with pytest.raises(ExpectedError, match=rf"machine {number} \(.*\): cannot listen there"):
        Machines(addresses, number)
    if other:
        other.close()


def test_spaces_between_addresses_do_no_harm():
    arguments = ["train", "--machines", "a:1, b:1"]
    assert recognition.parse_arguments(arguments).machines == ("a:1", "b:1")


def test_a_machine_that_does_not_come_is_one_line(monkeypatch):
    monkeypatch.setattr(machines, "PATIENCE_S", 0.3)
    for number in (0, 1):
        with pytest.raises(ExpectedError, match=r"machine \d .*did not come within 0 s"):
            Machines(free_addresses(2), number)


WAITING = """
import sys, time
sys.path.insert(0, sys.argv[1])
from cluster import machines
from network import loading
machines.GRACE_S = 0.5
one = machines.Machines(sys.argv[3].split(","), int(sys.argv[2]))
with loading.muted_stderr():  # as where JAX looks for the devices of all machines
    print("met", flush=True)
    time.sleep(60)  # as in a step that never ends
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_a_machine_that_waits_in_a_step_ends_with_one_line_when_another_is_killed(killed):
    addresses = free_addresses(2)
    command = [sys.executable, "-c", WAITING, str(ROOT)]
    processes = [
        subprocess.Popen(
            [*command, str(k), ",".join(addresses)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for k in range(2)
    ]  # fmt: skip
    assert [process.stdout.readline() for process in processes] == ["met\n"] * 2
    processes[killed].kill()
    _, stderr = processes[1 - killed].communicate(timeout=30)
    processes[killed].communicate()
    assert processes[1 - killed].returncode == 1
    assert stderr.splitlines()[1:] == [
        f"error: machine {killed} ({addresses[killed]}) is gone; expected all 2 machines to the "
        "end; run the same command again to continue, with those that are there"
    ]


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
