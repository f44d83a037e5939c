"""Time and memory of the search in a gallery as large as the train set, measured on a part of it.

    python benchmarks/gallery_search.py

Clustered unit vectors stand for descriptors. Processor time counts, so that other work on the
machine spoils little. The minutes for all train images and 117,577 queries are calculated from
those of the part, in proportion to images x queries, for a machine that does nothing else.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import common
import numpy as np

from descriptors.descriptions import Descriptions, save_descriptions, unit_length
from search import gallery

NUM_QUERIES = 117_577
GALLERIES = {"clean": 1_580_470, "all": 4_132_914}
PER_FILE = 8_266  # images of a train shard
BLOCK = 4096  # rows of a matrix product
NOISE = 0.8  # length of what an image differs by from its cluster's middle


def main():
    """Measures the searches of a part and prints the table."""
    args = parse_arguments()
    common.print_machine("faiss-cpu", "numpy")
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        middles = unit_length(rng.standard_normal((200, args.width), np.float32))
        made = write_gallery(Path(folder), middles, args.images, rng)
        queries = draw(middles, args.queries, rng)
        others = draw(middles, args.queries // 5, rng)
        ways = {
            "product alone": lambda: multiply(made, queries),
            "search": lambda: gallery.find_neighbors(made, queries),
            "search with penalties": lambda: gallery.find_neighbors(made, queries, 10, others),
        }
        seconds, before = {name: [] for name in ways}, peak_bytes()
        for _ in range(args.rounds):
            for name, way in ways.items():
                begin = time.process_time()
                way()
                seconds[name].append(time.process_time() - begin)
    print(
        f"{args.images:,} images x {args.width} values as float16, {args.queries:,} queries; "
        f"{(peak_bytes() - before) / 1e9:.2f} GB of memory beside the queries\n"
    )
    rows = []
    for name in ways:
        measured, share = common.median(seconds, name), common.ratio(seconds, "product alone", name)
        whole = measured / os.cpu_count() / args.images / args.queries * NUM_QUERIES / 60
        rows.append([name, measured, share, *(whole * num for num in GALLERIES.values())])
    header = ["", "processor s", "product's share", *(f"{name}, min" for name in GALLERIES)]
    common.print_table(header, rows)


def multiply(made, queries):
    """Multiplies all images with all queries in blocks, and keeps nothing: what no search beats."""
    for _, descriptors in made.chunks():
        for begin in range(0, len(descriptors), BLOCK):
            for first in range(0, len(queries), BLOCK):
                queries[first : first + BLOCK] @ descriptors[begin : begin + BLOCK].T


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def draw(middles, num, rng):
    """Draws descriptors around the middles of clusters: (num, d) float32 of length 1."""
    noise = rng.standard_normal((num, middles.shape[1]), np.float32)
    noise *= NOISE / np.sqrt(middles.shape[1])
    return unit_length(middles[rng.integers(len(middles), size=num)] + noise)


def write_gallery(folder, middles, num_images, rng):
    """Writes files of descriptions as nearest.py does; gives the `Gallery`."""
    paths, image_ids = [], rng.permutation(num_images).astype(np.uint64)
    for number, begin in enumerate(range(0, num_images, PER_FILE)):
        ids = image_ids[begin : begin + PER_FILE]
        num, path = len(ids), folder / f"{number}.npz"
        described = Descriptions(
            ids, np.zeros(num, np.int64), np.zeros(num, np.float32),
            draw(middles, num, rng).astype(np.float16), np.zeros(num, np.int16),
            np.zeros((num, 2), np.int64),
        )  # fmt: skip
        save_descriptions(path, described, {})
        paths.append(path)
    return gallery.Gallery(dict.fromkeys(paths), np.sort(image_ids), np.zeros(num_images, np.int64))


def peak_bytes():
    """Gives the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
