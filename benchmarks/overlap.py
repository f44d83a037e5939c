"""Do download, decode and step overlap? A mini-epoch against the longest of the three.

    python benchmarks/overlap.py [--unit 1.0] [--mini-epochs 8] [--rounds 3]

Simulated: sleeps of L, D and T seconds a shard in place of download, decode and step, through the
real stream and `loop.train_mini_epoch`; downloads sleep side by side. Real: shards of drawn
photographs served over HTTP on this machine; the step alone is a sleep. What decoding a shard takes
alone is measured. The first mini-epochs, while the number of connections grows, are left out.
"""

import hashlib
import shutil
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import common
import numpy as np
from common import print_table, print_verdict

import generators
from data.connections import MAX_CONNECTIONS
from data.sources import Shard, Source
from data.tars import list_members
from demo.server import serve
from generators import Reading, read_shard, stream_batches
from network.devices import OneDevice
from recipes import Data
from training import loop
from utils import Stop

PROPORTIONS = ((1, 1, 1), (1, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1), (1, 0.9, 0.3), (0.3, 1, 0.9))
NUM_TINY = 320  # images in a simulated shard, 40 batches; a real one has 130
TINY_BATCH, TINY_SIZE = 8, 8
REAL_BATCH, REAL_SIZE = 64, 192
NUM_LEFT_OUT = 3  # mini-epochs
TARGET = 1.05


class SleepingNetwork:
    """Stands for a network on an accelerator: a step takes time, but not the processor's."""

    train_function = time.sleep  # there is one: nothing is left to make before the first step

    def __init__(self, step_s):
        self.step_s = step_s
        self.optimizer = SimpleNamespace(iterations=0)  # the steps taken

    def reset_metrics(self):
        """It keeps none."""

    def train_on_batch(self, images, class_indices):
        """Sleeps for a step; gives a loss and an accuracy."""
        time.sleep(self.step_s)
        self.optimizer.iterations += 1
        return 1.0, 0.0


def run(source, reading, step_s, mini_epochs):
    """Trains some mini-epochs; gives (seconds, waited seconds) of one, in the steady state."""
    plan = [(0, Shard("train", number)) for number in range(NUM_LEFT_OUT + mini_epochs)]
    stream = stream_batches(source, plan, reading)
    what = (OneDevice(), SleepingNetwork(step_s), stream, common.Steady(), Stop(), "")
    for _ in range(NUM_LEFT_OUT):
        loop.train_mini_epoch(*what)
    begin = time.perf_counter()
    rows = [loop.train_mini_epoch(*what) for _ in plan[NUM_LEFT_OUT:]]
    seconds = (time.perf_counter() - begin) / len(rows)
    return seconds, float(np.mean([row["waited_s"] for row in rows]))


def read_as(image_size, batch_size):
    data = Data(image_size=image_size, augment=False)
    return Reading(data, batch_size, lambda image_id: 0, is_training=True, num_threads=2)


def decode_alone(tar, reading):
    """Measures the seconds of decoding one shard, which is there and listed."""
    members, seconds = list_members(tar), []
    with ThreadPoolExecutor(reading.num_threads) as pool:
        for _ in range(3):
            items = read_shard(reading, Shard("train", 0), tar, members, 0, pool)
            seconds.append(common.timed(deque, items, 0)[1])
    return float(np.median(seconds))


def simulate(tar, step_s, decode_s, download_s, mini_epochs):
    """Runs with sleeps of these lengths for a shard.

    Gives (T; D, measured alone; L; seconds; waited seconds).
    """
    reading = read_as(TINY_SIZE, TINY_BATCH)
    image = np.zeros((TINY_SIZE, TINY_SIZE, 3), np.uint8)

    def decode_image(*_):
        time.sleep(decode_s * reading.num_threads / NUM_TINY)
        return image

    with mock.patch.object(generators, "decode_image", decode_image):
        source, alone_s = common.SleepingSource(tar, download_s), decode_alone(tar, reading)
        found = run(source, reading, step_s * TINY_BATCH / NUM_TINY, mini_epochs)
        return step_s, alone_s, download_s, *found


def write_world(folder, tar, num_shards):
    """Lays out a folder in the CVDF layout, whose shards are all the same photographs."""
    digest = hashlib.md5(tar.read_bytes()).hexdigest()
    for number in range(num_shards):
        shard = Shard("train", number)
        for path in (folder / shard.path, folder / shard.md5_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tar, folder / shard.path)
        (folder / shard.md5_path).write_text(f"{digest}  {Path(shard.path).name}\n")


def download_alone(source):
    """Measures the seconds of downloading one shard."""
    shard, seconds = Shard("train", 0), []
    for _ in range(3):
        seconds.append(common.timed(source.fetch_shard, shard)[1])
        source.discard_shard(shard)
    return float(np.median(seconds))


def run_real(num_images, mini_epochs):
    """Runs over HTTP with real decoding, once bound by the step and once by the decode.

    Gives a list of (name, T, D, L, seconds, waited seconds).
    """
    tar = common.make_shard(num_images)
    reading = read_as(REAL_SIZE, REAL_BATCH)
    results = []
    with tempfile.TemporaryDirectory(dir=common.CACHE) as folder:
        write_world(Path(folder, "world"), tar, NUM_LEFT_OUT + mini_epochs)
        with serve(Path(folder, "world")) as address:
            scratch = Path(folder, "scratch")
            decode_s = decode_alone(tar, reading)
            download_s = download_alone(Source(address, scratch))
            for name, step_s in (("step", 1.5 * decode_s), ("decode", 0.7 * decode_s)):
                source = Source(address, scratch)
                per_batch = step_s / -(-num_images // REAL_BATCH)
                found = run(source, reading, per_batch, mini_epochs)
                results.append((f"real, {name} longest", step_s, decode_s, download_s, *found))
    return results


def main():
    """Prints the table, as the module's docstring says."""
    args = common.parse_arguments(
        __doc__, unit=(1.0, "seconds that stand for 1"), mini_epochs=(8, "mini-epochs of each run"),
        rounds=(3, "times that each run is measured"), images=(512, "images in a real shard"),
    )  # fmt: skip
    common.CACHE.mkdir(parents=True, exist_ok=True)
    common.print_machine("numpy", "pillow")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder, "tiny.tar")
        common.write_shard(tar, common.shard_ids(NUM_TINY), [b""] * NUM_TINY)  # no one decodes it
        for _ in range(args.rounds):
            results = []
            for proportion in PROPORTIONS:
                times = [args.unit * share for share in proportion]
                results.append(("simulated", *simulate(tar, *times, args.mini_epochs)))
            rounds.append(results + run_real(args.images, args.mini_epochs))
    rows = [summarize(same) for same in zip(*rounds, strict=True)]
    header = ("run", "step T, s", "decode D, s", "download L, s", "mini-epoch, s")
    header = (*header, "waited, s", f"/ max(T, D, L / {MAX_CONNECTIONS})", "worst round")
    print_table(header, rows)
    for kind in ("simulated", "real"):
        worst = max(row[-1] for row in rows if row[0].startswith(kind))
        what = f"{kind}: at most {TARGET} x max(T, D, L / {MAX_CONNECTIONS}), worst of all rounds"
        print_verdict(what, worst, worst <= TARGET)
    common.save_results("overlap", rows)


def summarize(same):
    """Gives a table's row from the results of one run in all rounds."""
    ratios = [seconds / max(t, d, come / MAX_CONNECTIONS) for _, t, d, come, seconds, _ in same]
    medians = [float(np.median(column)) for column in list(zip(*same, strict=True))[1:]]
    return (same[0][0], *medians, float(np.median(ratios)), max(ratios))


if __name__ == "__main__":
    main()
