"""What two Dask workers gain on this machine over one, and over the scripts without a scheduler.

    python benchmarks/workers.py --source FOLDER --model FILE [--rounds 3]

The index of a data set is described with a recogniser and shrunk, and drawn descriptors are
searched. Workers have started and have loaded the network before the time is taken. One worker has
all cores, each of two has half of them for the search. Needs Dask.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

import retrieval
import shrink
from cluster import dask_workers
from data.landmarks import read_image_ids
from data.sources import INDEX_CSV, Source
from descriptors import describe
from runs.session import Session
from search import exact
from shrinking import small_shards
from utils import Stop

SPLIT = "index"
WAYS = {"no scheduler": None, "local:1": "local:1", "local:2": "local:2"}
NUM_PARTS, NUM_QUERIES, WIDTH = 4, 2048, 512  # of the search
PIXELS, QUALITY = 256, 85  # the defaults of shrink.py


def search_drawn(session, job):
    """Searches a part of drawn descriptors, in a worker; the job is (number, images)."""
    number, num_images = job
    rng = np.random.default_rng(number)
    queries = rng.standard_normal((NUM_QUERIES, WIDTH), np.float32)
    index = rng.standard_normal((num_images, WIDTH), np.float32)
    exact.nearest(queries, index, 100)


class Way:
    """One of the ways to do the three jobs, in an output of its own; `workers` may be None."""

    def __init__(self, session, workers, args, num_images):
        self.session, self.workers, self.args = session, workers, args
        self.parts = [(number, num_images) for number in range(NUM_PARTS)]
        self.shards = session.source.select_shards(SPLIT)

    def describe(self):
        """Describes all shards of the index anew."""
        shutil.rmtree(self.session.path("descriptors"), ignore_errors=True)
        if self.workers:
            jobs = [(self.args, shard) for shard in self.shards]
            self.workers.run(retrieval.describe_job, jobs, "index shards described")
            return
        describer = retrieval._make_describer(self.session, self.args)
        image_ids = read_image_ids(self.session.source.fetch(INDEX_CSV))
        describe.describe_shards(self.session, describer, self.shards, image_ids)

    def search(self):
        """Searches the drawn parts."""
        if self.workers:
            self.workers.run(search_drawn, self.parts, "parts searched")
            return
        for part in self.parts:
            search_drawn(self.session, part)

    def shrink(self):
        """Shrinks all shards of the index anew."""
        shutil.rmtree(self.session.path(SPLIT), ignore_errors=True)
        how = (PIXELS, QUALITY, False)
        if self.workers:
            jobs = [(how, shard) for shard in self.shards]
            self.workers.run(shrink.shrink_job, jobs, "shards shrunk")
            return
        share = small_shards.Share(self.shards, 1, None, False)
        small_shards.shrink(self.session, small_shards.Settings(*how[:2]), share)


def compare(ways, rounds):
    """Measures the three jobs each way; prints the table and the ratios."""
    rows = []
    for job in ("describe", "search", "shrink"):
        times = common.measure({name: getattr(way, job) for name, way in ways.items()}, rounds)
        medians = [common.median(times, name) for name in WAYS]
        rates = [common.ratio(times, name, "local:2") for name in ("local:1", "no scheduler")]
        rows.append((job, *medians, *rates))
    header = ("job", *(f"{name}, s" for name in WAYS), "two workers x one", "x no scheduler")
    common.print_table(header, rows)


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000, help="of a part that is searched")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    words = ["--source", str(args.source), "--model", str(args.model.resolve())]
    common.print_machine("keras", "tensorflow", "distributed")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ways = {}
        for number, (name, where) in enumerate(WAYS.items()):
            output = Path(folder) / str(number)
            session = Session(output, Source(str(args.source), output / "scratch"), Stop())
            options = retrieval.parse_arguments([*words, "--output", str(output)])
            workers = where and stack.enter_context(
                dask_workers.open_workers(where, session, output / "scratch")
            )
            ways[name] = Way(session, workers, options, args.images)
        source = ways["local:1"].session.source
        num_images = len(read_image_ids(source.fetch(INDEX_CSV)))
        print(
            f"{len(ways['local:1'].shards)} index shards, {num_images:,} images; {NUM_PARTS} parts "
            f"of {NUM_QUERIES:,} queries x {args.images:,} images, {WIDTH}-d\n"
        )
        compare(ways, args.rounds)


if __name__ == "__main__":
    sys.exit(main())
