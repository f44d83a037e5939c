"""Tests of several downloads at once: how many, in which order, and how they end."""

import threading
import time
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace

import pytest
from checks import names_in
from fault_server import Fault, FaultServer
from synthetic import make_source

import generators
from data import sources
from data.connections import NUM_QUIET, NUM_REMEMBERED, Connections
from data.sources import Shard, Source
from data.tars import list_members
from generators import Reading, ShardEnd, fetch_ahead, stream_batches
from recipes import Data
from utils import ExpectedError, in_background

SHARDS = [Shard("train", number) for number in range(6)]
NUM_SHARDS = len(SHARDS)
READING = Reading(Data(image_size=24, augment=False), 4, {}.get, num_threads=1)


def wait_until(condition):
    """Waits for something that happens in another thread; fails when it never does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


# --------------------------------------------------------------------------------------- how many


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, as a list of its one time."""
    now = [0.0]
    monkeypatch.setattr("data.connections.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def use(connections, clock, download_s, use_s):
    """Downloads and uses a shard; gives the number of connections from then on."""
    with connections.hold():
        clock[0] += download_s
    connections.adapt(use_s)
    return connections.number


def refuse(connections):
    with connections.hold() as refused:
        refused()
    return connections.number


def test_the_number_follows_from_the_time_to_download_and_the_time_to_use(clock):
    connections = Connections(limit=8)
    # 30 s to come, 10 s to use: 3.9 with something to spare.
    assert [use(connections, clock, 30, 10) for _ in range(4)] == [2, 4, 4, 4]
    # Once the longest of the last four takes 12 s, 1.56 of them do; one less at a time.
    assert [use(connections, clock, 12, 10) for _ in range(6)] == [4, 4, 4, 3, 2, 2]


def test_one_connection_is_enough_where_a_shard_comes_sooner_than_it_is_used(clock):
    connections = Connections(limit=8)
    assert [use(connections, clock, 7, 10) for _ in range(4)] == [1, 1, 1, 1]


def test_one_slow_use_changes_nothing(clock):
    connections = Connections(limit=8, number=4)
    uses = [10, 10, 10, 500, 10, 10]
    assert {use(connections, clock, 30, use_s) for use_s in uses} == {4}


def test_the_limit_holds_however_slow_the_server(clock):
    connections = Connections(limit=3)
    assert [use(connections, clock, 1000, 1) for _ in range(4)] == [2, 3, 3, 3]


def test_shards_in_folders_are_not_fetched_over_connections():
    connections = Connections(limit=8)
    for _ in range(NUM_REMEMBERED):
        connections.adapt(1e-3)
    assert connections.number == 1


def test_a_refusal_halves_the_number_which_then_grows_by_one_at_a_time(clock):
    connections = Connections(limit=8, number=8)
    assert refuse(connections) == 4
    assert refuse(connections) == 2
    found = [use(connections, clock, 1000, 1) for _ in range(2 * NUM_QUIET)]
    assert found == [2] * (NUM_QUIET - 1) + [3] * NUM_QUIET + [4]
    assert [refuse(connections) for _ in range(3)] == [2, 1, 1]


def test_refusals_of_requests_that_were_sent_together_count_once():
    connections = Connections(limit=8, number=8)
    with connections.hold() as one, connections.hold() as other:
        one()
        other()
    assert connections.number == 4


def test_a_refused_download_waits_until_another_has_ended():
    connections = Connections(limit=2, number=2)
    with connections.hold() as refused:
        with connections.hold():
            refused()
        waiting = in_background(lambda: connections.hold().__enter__())
        time.sleep(0.05)
        assert not waiting.done()  # one is held, and there is one now
    waiting.result(timeout=60)


def test_downloads_that_wait_for_a_connection_end_with_their_stream():
    connections = Connections()
    with connections.hold():
        waiting = in_background(lambda: connections.hold().__enter__())
        connections.stopped.set()
        with pytest.raises(CancelledError):
            waiting.result(timeout=60)


# -------------------------------------------------------------------------------- what is on disk


class GatedSource:
    """Stands for a `Source` whose downloads end when a test says so."""

    def __init__(self):
        self.begun, self.on_disk, self.most, self.room = [], set(), 0, 99
        self.gates = {shard: Future() for shard in SHARDS}
        self.lock = threading.Lock()

    def require_space(self, shard):
        pass

    def has_space(self, num_shards):
        return num_shards <= self.room

    def fetch_shard(self, shard, connections):
        with self.lock:
            assert shard not in self.on_disk
            self.begun.append(shard)
            self.on_disk.add(shard)  # as large at once as it will be
            self.most = max(self.most, len(self.on_disk))
        self.gates[shard].result(timeout=60)
        return shard.path

    def discard_shard(self, shard):
        with self.lock:
            self.on_disk.discard(shard)


def open_gates(source, shards):
    for shard in shards:
        source.gates[shard].set_result(None)


def test_shards_that_come_out_of_order_are_used_in_order(monkeypatch):
    monkeypatch.setattr(generators, "list_members", lambda path: [path])
    source = GatedSource()
    paths = fetch_ahead(source, SHARDS, Connections(3, 3))
    first = in_background(next, paths)
    wait_until(lambda: len(source.begun) == 3)
    open_gates(source, SHARDS[:0:-1])  # the last one comes first
    assert not first.done()
    open_gates(source, SHARDS[:1])
    assert [first.result(timeout=60).result(), *(path.result() for path in paths)] == [
        (shard.path, [shard.path]) for shard in SHARDS
    ]


def test_images_of_the_next_shard_are_listed_while_one_is_used(monkeypatch):
    listed = []
    monkeypatch.setattr(generators, "list_members", listed.append)
    source = GatedSource()
    open_gates(source, SHARDS)
    paths = fetch_ahead(source, SHARDS, Connections(1, 1))
    next(paths)  # the first is in use
    wait_until(lambda: listed == [shard.path for shard in SHARDS[:2]])


@pytest.mark.parametrize(("num", "room", "most"), [(1, 99, 2), (3, 99, 4), (3, 2, 3), (3, 0, 2)])
def test_one_shard_more_than_connections_is_on_disk_at_most(num, room, most):
    source = GatedSource()
    source.room = room
    open_gates(source, SHARDS)
    for number, _ in enumerate(fetch_ahead(source, SHARDS, Connections(num, num))):
        ahead = min(number + most, NUM_SHARDS)
        wait_until(lambda: len(source.begun) == ahead)  # noqa: B023 - at once
    assert source.most == most
    assert source.on_disk == set()


def test_a_shard_that_comes_again_is_fetched_again_after_its_use():
    source, plan = GatedSource(), [*SHARDS[:2], *SHARDS[:2]]
    open_gates(source, SHARDS)
    for shard, _ in zip(plan, fetch_ahead(source, plan, Connections(3, 3)), strict=True):
        assert shard in source.on_disk
    assert source.begun == plan


def test_scratch_keeps_room_for_one_shard_more(tmp_path, monkeypatch):
    source = Source("http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(sources, "online_size", lambda url: 1000)
    source.require_space(SHARDS[0])
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: SimpleNamespace(free=3400))
    assert [source.has_space(num) for num in (1, 2, 3)] == [True, True, False]


# -------------------------------------------------------------------------------- over real HTTP


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The tars of a small data set and their md5 files, by path."""
    folder = tmp_path_factory.mktemp("connections")
    made = make_source(folder / "source", train_shards=NUM_SHARDS, per_train_shard=4)
    paths = [path for shard in SHARDS for path in (shard.path, shard.md5_path)]
    return {f"/{path}": (made.folder / path).read_bytes() for path in paths}


@pytest.fixture
def server(files, monkeypatch):
    monkeypatch.setattr(Connections, "pause", lambda *_: None)
    with FaultServer(files) as server:
        yield server


def open_source(server, scratch, number, limit=4):
    """Opens a source whose last stream needed so many connections."""
    source = Source(server.address, scratch, limit)
    source.open_connections().number = number
    return source


def read(source, num_skippable=0):
    plan = [(0, shard) for shard in SHARDS]
    stream = stream_batches(source, plan, READING, num_skippable=num_skippable)
    return [item for item in stream if isinstance(item, ShardEnd)]


def test_a_stream_begins_with_as_many_connections_as_the_last_one_needed(tmp_path):
    source = Source(tmp_path, tmp_path, max_connections=4)
    assert source.open_connections().number == 1
    source._connections.number = 3
    assert source.open_connections().number == 3


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (Fault(status=429, headers={"Retry-After": "1"}), 2),
        (Fault(status=503), 2),
        (Fault(reset_after=100), 2),
        (Fault(corrupt_at=600), 4),  # is not for the many connections
    ],
    ids=["429", "503", "reset", "corrupt"],
)
def test_a_server_that_refuses_is_met_with_fewer_connections(
    server, tmp_path, monkeypatch, fault, number
):
    monkeypatch.setattr(Connections, "adapt", lambda *_: None)  # by the times, which are unknown
    server.faults = {f"/{SHARDS[2].path}": [fault]}
    source = open_source(server, tmp_path, 4)
    connections = source.open_connections()
    paths = [shard.path for shard in SHARDS]
    for path, fetched in zip(paths, fetch_ahead(source, SHARDS, connections), strict=True):
        assert fetched.result() == (tmp_path / path, list_members(tmp_path / path))
    assert connections.number == number


@pytest.mark.parametrize("number", [1, 4])
def test_broken_shards_are_left_out_in_order_up_to_the_budget(server, tmp_path, number):
    for shard in SHARDS[1:4:2]:
        path = f"/{shard.path}"
        content = server.files[path]
        server.files[path] = content[:600] + bytes([content[600] ^ 1]) + content[601:]
    ends = read(open_source(server, tmp_path, number), num_skippable=2)
    assert [end.shard for end in ends] == SHARDS
    assert [bool(end.problem) for end in ends] == [False, True, False, True, False, False]
    source = open_source(server, tmp_path / "again", number)
    with pytest.raises(ExpectedError, match=r"images_003\.tar: md5 differs"):
        read(source, num_skippable=1)
    wait_until(lambda: names_in(tmp_path / "again" / "train") == [])


def test_all_downloads_end_when_nobody_asks_any_more(server, tmp_path):
    server.faults = {f"/{shard.path}": [Fault(drip_after=512)] for shard in SHARDS[1:]}
    before = set(threading.enumerate())
    plan = [(0, shard) for shard in SHARDS]
    stream = stream_batches(open_source(server, tmp_path, 4), plan, READING)
    assert next(stream).shard == SHARDS[0]
    wait_until(lambda: len(names_in(tmp_path / "train")) == 4)  # all on their way
    begun = [
        thread for thread in set(threading.enumerate()) - before if "Server" not in str(thread)
    ]
    stream.close()
    wait_until(lambda: names_in(tmp_path / "train") == [])
    wait_until(lambda: not any("fetch_shard" in t.name and t.is_alive() for t in begun))
