"""How soon the scripts answer, and how soon a downloaded shard gives its first batch.

    python benchmarks/startup.py [--images 8300] [--rounds 5]

The shard has the size of a real one (8,300 photographs, about 0.9 GB) and comes over HTTP on this
machine; the clock runs from its last byte to the first batch of 64 images: flush to disk, md5,
listing of the tar, decoding.
"""

import argparse
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import common
from common import ROOT, median, print_table, print_verdict

from data.sources import Shard, Source
from data.tars import list_members
from demo.server import WorldHandler, serve
from generators import Reading, stream_batches
from recipes import Data
from utils import say

NUM_DRAWN = 512  # different photographs; a large shard repeats them
SHARD = Shard("train", 0)


def ask_for_help(script):
    """Makes a function that runs a script with --help in a fresh process."""

    def run():
        command = [sys.executable, script, "--help"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    return run


def make_large_shard(num_images):
    """Gives a tar of `num_images`, the drawn photographs again and again under other ids."""
    path = common.CACHE / f"large-{num_images}.tar"
    if path.exists():
        return path
    drawn = common.make_shard(NUM_DRAWN)
    say(f"writing {path}")
    with open(drawn, "rb") as file:
        members = itertools.cycle(list_members(drawn))
        photos = (os.pread(file.fileno(), m.size, m.offset) for m in members)
        photos = itertools.islice(photos, num_images)
        common.write_shard(path, common.shard_ids(num_images), photos)
    return path


def time_first_batch(address, scratch):
    """Gives the seconds from a shard's last byte to its first batch."""
    last_byte, send_bytes = [], WorldHandler.send_bytes

    def timed_send(*args):
        send_bytes(*args)
        last_byte[:] = [time.perf_counter()]

    reading = Reading(
        Data(),
        64,
        lambda image_id: 0,
        is_training=True,
    )
    with mock.patch.object(WorldHandler, "send_bytes", timed_send):
        stream = stream_batches(Source(address, scratch), [(0, SHARD)], reading)
        next(stream)
        seconds = time.perf_counter() - last_byte[0]
        stream.close()
    return seconds


def lay_out(folder, tar):
    """Lays out a folder in the CVDF layout with one shard."""
    for path in (folder / SHARD.path, folder / SHARD.md5_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    os.link(tar, folder / SHARD.path)
    with open(tar, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    (folder / SHARD.md5_path).write_text(f"{digest}  {Path(SHARD.path).name}\n")


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8300, help="images in the shard")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured")
    args = parser.parse_args()
    common.print_machine("numpy", "pillow")
    scripts = {f"{name} --help": ask_for_help(name) for name in ("recognition.py", "retrieval.py")}
    seconds = common.measure(scripts, args.rounds)
    tar = make_large_shard(args.images)
    size = tar.stat().st_size / 1e9
    first = f"first batch after the last byte of a shard of {args.images:,} images, {size:.2f} GB"
    with tempfile.TemporaryDirectory(dir=common.CACHE) as folder:
        world = Path(folder, "world")
        lay_out(world, tar)
        with serve(world) as address:
            scratches = (Path(folder, f"scratch-{number}") for number in itertools.count())
            run = {first: lambda: time_first_batch(address, next(scratches))}
            seconds |= common.measure(run, max(2, args.rounds // 2), warm_up=False)
    print_table(("what", "s"), [(name, median(seconds, name)) for name in seconds])
    slowest = max(median(seconds, name) for name in scripts)
    print_verdict("--help under 1 s", slowest, slowest < 1)
    print_verdict("first batch within 2 s", median(seconds, first), median(seconds, first) <= 2)
    common.save_results("startup", seconds)


if __name__ == "__main__":
    main()
