"""How fast is a verified download? The 2019 way, urllib and ours from a server on this machine.

    python benchmarks/downloads.py [--megabytes 512] [--rounds 7]

Each way writes the file and computes its md5. The server is a process of its own and sends with
sendfile, so that the times are those of the ways themselves. The folder lies in memory where there
is /dev/shm: a disk would hide the differences.
"""

import functools
import hashlib
import multiprocessing
import os
import tempfile
import urllib.request
from pathlib import Path

import common
import numpy as np
import requests
from common import median, print_table, print_verdict, ratio

from data.download import download
from demo.server import serve
from utils import CHUNK_BYTES, atomic_write, file_md5

TIMEOUT_S = 30.0


def download_as_in_2019(url, path, md5):
    """Downloads with requests in chunks of 1 KB, then reads the file again for its md5."""
    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response, open(path, "wb") as file:
        for chunk in response.iter_content(1024):
            file.write(chunk)
    check(file_md5(path), md5)


def download_with_large_chunks(url, path, md5):
    """Downloads with requests in chunks of 1 MB, the md5 while it arrives."""
    digest = hashlib.md5(usedforsecurity=False)
    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response, open(path, "wb") as file:
        for chunk in response.iter_content(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
    check(digest.hexdigest(), md5)


def download_with_urllib(url, path, md5):
    """Downloads with urllib, reading what has arrived, the md5 while it arrives."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        atomic_write(path) as temporary,
        open(temporary, "wb", buffering=0) as file,
        urllib.request.urlopen(url, timeout=TIMEOUT_S) as response,
    ):
        while chunk := response.read1(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
    check(digest.hexdigest(), md5)


def check(found, expected):
    """Raises ValueError where an md5 differs."""
    if found != expected:
        raise ValueError(f"md5 {found}; expected {expected}")


def run(way, url, path, md5):
    """Downloads once, timed without the removal: gives the seconds."""
    _, seconds = common.timed(way, url, path, md5)
    path.unlink()
    return seconds


WAYS = {
    "2019: requests, chunks of 1 KB, md5 afterwards": download_as_in_2019,
    "requests, chunks of 1 MB": download_with_large_chunks,
    "urllib, read1": download_with_urllib,
    "ours (download.download)": download,
}
OLD, _, URLLIB, OURS = WAYS


def serve_folder(pipe, folder):
    """Serves a folder until told to stop; sends the address."""
    with serve(folder) as address:
        pipe.send(address)
        pipe.recv()


def write_file(path, num_megabytes):
    """Writes random bytes; gives their md5."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(num_megabytes):
            file.write(rng.bytes(1_000_000))
    return file_md5(path)


def main():
    """Prints the table, as the module's docstring says."""
    args = common.parse_arguments(
        __doc__, megabytes=(512, "size of the file"), rounds=(7, "times that each way is measured")
    )
    common.print_machine("requests", "urllib3")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        arrived, served = Path(folder, "arrived.tar"), Path(folder, "served")
        served.mkdir()
        md5 = write_file(served / "shard.tar", args.megabytes)
        pipe, far_end = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve_folder, args=(far_end, served))
        server.start()
        try:
            where = f"{pipe.recv()}shard.tar", arrived, md5
            ways = {name: functools.partial(run, way, *where) for name, way in WAYS.items()}
            seconds, cpu_s = common.measure_both(ways, args.rounds)
        finally:
            pipe.send("stop")
            server.join()
    print(f"{args.megabytes} MB, {args.rounds} rounds\n")
    rows = [
        (name, args.megabytes / median(seconds, name), 1 / ratio(seconds, name, OLD),
         args.megabytes / min(seconds[name]), 1000 * median(cpu_s, name) / args.megabytes)
        for name in WAYS
    ]  # fmt: skip
    header = ("way", "MB/s", "x the 2019 way", "best round, MB/s", "CPU ms a MB")
    print_table(header, rows)
    rate, cpu = 1 / ratio(seconds, OURS, URLLIB), ratio(cpu_s, OURS, URLLIB)
    print_verdict("at least 0.97x the rate of urllib", rate, rate >= 0.97)
    print_verdict("at most 1.03x its CPU time", cpu, cpu <= 1.03)


if __name__ == "__main__":
    main()
