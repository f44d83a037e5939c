"""Do several connections end the wait for shards? Epoch time against their number.

    python benchmarks/connections.py [--rate 10] [--shards 14] [--rounds 3]

A server on this machine, a process of its own, limits each connection (a token bucket); shards go
through the real stream, which decodes a quarter of their pictures; a step is a sleep. Ideal is the
longer of download / connections and of use where the server has no limit. The first shards, while
the number grows, are left out of all but the last column. One fixed connection is as before.
"""

import contextlib
import hashlib
import multiprocessing
import statistics
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import common
from common import print_table, print_verdict

from data.connections import MAX_CONNECTIONS, Connections
from data.sources import Shard, Source
from generators import Reading, ShardEnd, stream_batches
from recipes import Data

FIXED = (1, 2, 4, 8)
NUM_FIRST = 6  # shards
ADAPTIVE = f"measured, up to {MAX_CONNECTIONS}"
BATCH, PIXELS, SHARE = 4, 96, 4  # one picture of SHARE is decoded
BURST_BYTES = 1 << 16


def serve_limited(pipe, tar, bytes_per_s):
    """Serves one tar under all names, so many bytes a second over each connection."""
    content = tar.read_bytes()
    digest = hashlib.md5(content).hexdigest().encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):  # noqa: N802 - named by the standard library
            self.answer(b"", len(content))

        def do_GET(self):  # noqa: N802
            body = content if self.path.endswith(".tar") else digest
            self.answer(body, len(body))

        def answer(self, body, length):
            self.send_response(200)
            self.send_header("Content-Length", length)
            self.end_headers()
            begin = time.monotonic()
            for at in range(0, len(body), BURST_BYTES):
                if bytes_per_s:
                    time.sleep(max(0.0, begin + at / bytes_per_s - time.monotonic()))
                self.wfile.write(body[at : at + BURST_BYTES])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(f"http://127.0.0.1:{server.server_port}/")
    pipe.recv()


@contextlib.contextmanager
def limited_server(tar, bytes_per_s):
    """Runs `serve_limited` in a process; gives the address."""
    pipe, far_end = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_limited, args=(far_end, tar, bytes_per_s))
    server.start()
    yield pipe.recv()
    pipe.send("stop")
    server.join()


def run_epoch(address, reading, num_shards, use_s, fixed):
    """Streams: gives the numbers of a row, from the seconds a shard to those of the whole run."""
    num_batches = -(-len(reading.image_ids) // BATCH)
    plan = [(0, Shard("train", number)) for number in range(num_shards)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        source = Source(address, folder)
        if fixed:
            stack.enter_context(mock.patch.object(Connections, "adapt", lambda *_: None))
            source.open_connections().number = fixed
        ends, num_tars, memory = [time.perf_counter()], 0, 0
        for item in stream_batches(source, plan, reading):
            if isinstance(item, ShardEnd):
                ends.append(time.perf_counter())
                num_tars = max(num_tars, len(list(Path(folder).rglob("*.tar"))))
                memory = max(memory, int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
            else:
                time.sleep(use_s / num_batches)
        first = min(NUM_FIRST, num_shards - 1)
        a_shard = (ends[-1] - ends[first]) / (num_shards - first)
        number = source.open_connections().number
        return a_shard, number, num_tars, memory / 1e6, ends[-1] - ends[0]


def measure(address, reading, args, use_s, ways):
    """Measures the ways in turn; gives dict, way -> medians of what `run_epoch` gives."""
    found = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            fixed = None if way == ADAPTIVE else way
            found[way].append(run_epoch(address, reading, args.shards, use_s, fixed))
    return {way: [*map(statistics.median, zip(*rows, strict=True))] for way, rows in found.items()}


def main():
    """Prints the tables, as the module's docstring says."""
    args = common.parse_arguments(
        __doc__, rate=(10.0, "MB/s of a connection"), shards=(14, "of a run"),
        rounds=(3, "times that each way is measured"), images=(128, "in a shard"),
        use=([0.5, 0.2], "seconds a shard for the steps"),
    )  # fmt: skip
    common.CACHE.mkdir(parents=True, exist_ok=True)
    common.print_machine("requests", "urllib3")
    tar = common.make_shard(args.images)
    wanted = common.shard_ids(args.images)[::SHARE]
    reading = Reading(Data(image_size=PIXELS, augment=False), BATCH, image_ids=wanted)
    print(f"{args.shards} shards of {tar.stat().st_size / 1e6:.1f} MB, {args.rounds} rounds\n")
    header = ("s to use a shard", "connections", "s a shard", "ideal, s", "x ideal", "times one")
    header = (*header, "connections at the end", "tars on disk", "memory, MB", "whole run, s")
    alone = {}  # seconds that a shard is used where none is waited for
    for limit, ways in ((None, (1, ADAPTIVE)), (1e6 * args.rate, (*FIXED, ADAPTIVE))):
        rows, come_s = [], tar.stat().st_size / limit if limit else 0.0
        with limited_server(tar, limit) as address:
            for use_s in args.use:
                found = measure(address, reading, args, use_s, ways)
                alone.setdefault(use_s, found[1][0])
                for way, (seconds, *facts) in found.items():
                    most = MAX_CONNECTIONS if way == ADAPTIVE else way
                    ideal = max(come_s / most, alone[use_s])
                    times = found[1][0] / seconds
                    rows.append((use_s, way, seconds, ideal, seconds / ideal, times, *facts))
        print(f"a shard over one connection: {come_s:.2f} s\n" if limit else "no limit:\n")
        print_table(header, rows)
        worst = max(row[4] for row in rows if row[1] == ADAPTIVE)
        where = "a limited server" if limit else "a server without a limit"
        print_verdict(f"{where}: at most 1.10 x ideal", worst, worst <= 1.10)


if __name__ == "__main__":
    main()
