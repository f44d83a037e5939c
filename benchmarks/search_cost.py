"""What searches cost beside the plain one: candidates of reranks, expansions.

    python benchmarks/search_cost.py

Drawn vectors of length 1 stand for descriptors, clustered ones in the gallery; landmarks are as
unevenly spread as in the train set. Processor time counts, so that other work on the machine spoils
little. The minutes for all train images and 117,577 queries are calculated from those of the part,
in proportion to images x queries, for a machine that does nothing else.
"""

import os
import resource
import tempfile
from functools import partial
from pathlib import Path

import common
import numpy as np
from common import median, print_table, ratio

from data.arrays import save_table
from descriptors.descriptions import Descriptions, unit_length
from search import gallery
from search.candidates import best_by_agreement
from search.exact import find_candidates
from search.expansion import expand, index_of
from search.reranks import name_by_neighbors

NUM_QUERIES = 117_577
GALLERIES = {"clean": 1_580_470, "all": 4_132_914}
NUM_LANDMARKS = 81_313
FLATTENED = 70  # the most frequent of them has 0.2% of the images, as in the train set
PER_FILE = 8_266  # images of a train shard
BLOCK = 4096  # rows of a matrix product
NOISE = 0.8  # length of what an image differs by from its cluster's middle
TOP = 100


def main():
    """Measures both tables in turn and prints them."""
    args = common.parse_arguments(
        __doc__,
        images=(20_000, "images of the gallery, and of the index"),
        queries=(32_768, "queries to the gallery"),
        index_queries=(2_000, "queries to the index"),
        width=(512, "values of a descriptor"),
        rounds=(3, "times that each way is measured"),
    )
    common.print_machine("faiss-cpu", "numpy")
    rng = np.random.default_rng(0)
    middles = unit_length(rng.standard_normal((200, args.width), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        print_gallery(args, Path(folder), middles, rng)
        print_candidates(args, Path(folder), rng)


def print_gallery(args, folder, middles, rng):
    """Compares searches of the train images with the product of the same matrices."""
    files = write_files(folder, draw(middles, args.images, rng).astype(np.float16))
    ids = np.arange(args.images, dtype=np.uint64)
    made = gallery.Gallery(files, ids, np.zeros(args.images, np.int64))
    queries = draw(middles, args.queries, rng)
    ways = {
        "product alone": partial(multiply, made, queries),
        "search": partial(gallery.find_neighbors, made, queries),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, seconds = common.measure_both(ways, args.rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{args.images:,} images x {args.width} values as float16, {args.queries:,} queries; "
        f"{peak / 1e6:.2f} GB of memory beside the queries\n"
    )
    rows = []
    for name in ways:
        measured, share = median(seconds, name), ratio(seconds, "product alone", name)
        whole = measured / os.cpu_count() / args.images / args.queries * NUM_QUERIES / 60
        rows.append([name, measured, share, *(whole * num for num in GALLERIES.values())])
    header = ["", "processor s", "product's share", *(f"{name}, min" for name in GALLERIES)]
    print_table(header, rows)


def print_candidates(args, folder, rng):
    """Compares what each rerank needs, and the expansion of queries, with the plain search."""
    queries, index = (
        unit_length(rng.standard_normal((num, args.width), np.float32))
        for num in (args.index_queries, args.images)
    )
    names, index_names = draw_names(rng, len(queries)), draw_names(rng, len(index))
    whole = index_of(write_files(folder, index), np.arange(len(index), dtype=np.uint64))
    query_ids = np.arange(len(queries), dtype=np.uint64) + np.uint64(len(index))
    sides = queries, names, index, index_names, TOP
    landmarks = queries, names.landmark_ids, index, index_names.landmark_ids, TOP
    ways = {
        "none and divide": partial(find_candidates, *landmarks),
        "agreement": partial(best_by_agreement, *sides),
        "queries expanded": partial(expand, query_ids, queries, whole, 10),
    }
    _, seconds = common.measure_both(ways, args.rounds)
    print(f"{len(queries):,} queries, {len(index):,} index images, {args.width} values\n")
    rows = [(name, median(seconds, name), ratio(seconds, name, "none and divide")) for name in ways]
    print_table(("candidates of", "processor s", "ratio"), rows)


def multiply(made, queries):
    """Multiplies all images with all queries in blocks, and keeps nothing: what no search beats."""
    for _, descriptors in made.chunks():
        for begin in range(0, len(descriptors), BLOCK):
            for first in range(0, len(queries), BLOCK):
                queries[first : first + BLOCK] @ descriptors[begin : begin + BLOCK].T


def draw(middles, num, rng):
    """Draws descriptors around the middles of clusters: (num, d) float32 of length 1."""
    noise = rng.standard_normal((num, middles.shape[1]), np.float32)
    noise *= NOISE / np.sqrt(middles.shape[1])
    return unit_length(middles[rng.integers(len(middles), size=num)] + noise)


def draw_names(rng, num_images):
    """Draws what 5 neighbors of each image name."""
    frequencies = 1 / (np.arange(NUM_LANDMARKS) + FLATTENED)
    landmarks = rng.choice(NUM_LANDMARKS, (num_images, 5), p=frequencies / frequencies.sum())
    return name_by_neighbors(landmarks, rng.uniform(0.2, 0.9, (num_images, 5)).astype(np.float32))


def write_files(folder, descriptors):
    """Writes files of descriptions, one for a shard: dict, path -> None."""
    paths = []
    for begin in range(0, len(descriptors), PER_FILE):
        rows = descriptors[begin : begin + PER_FILE]
        ids, num = np.arange(begin, begin + len(rows), dtype=np.uint64), len(rows)
        path = folder / f"{descriptors.dtype}-{begin}.npz"
        described = Descriptions(
            ids, np.zeros(num, np.int64), np.zeros(num, np.float32), rows,
            np.zeros(num, np.int16), np.zeros((num, 2), np.int64),
        )  # fmt: skip
        save_table(path, described, {})
        paths.append(path)
    return dict.fromkeys(paths)


if __name__ == "__main__":
    main()
