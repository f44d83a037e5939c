"""What the candidates of each rerank and the expansion of queries cost, as shares of the search.

    python benchmarks/rerank_cost.py --index 20000 --queries 2000

On random descriptors of length 1; landmarks are as unevenly spread as in the train set.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import common
import numpy as np

from descriptors.descriptions import Descriptions, save_descriptions, unit_length
from search.candidates import best_by_confidence, best_by_soft_labels
from search.exact import find_candidates
from search.expansion import expand, index_of
from search.reranks import name_by_neighbors

NUM_LANDMARKS = 81_313
FLATTENED = 70  # the most frequent of them has 0.2% of the images, as in the train set
TOP = 100


def main():
    """Measures all ways in turn and prints their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    queries, names = make_images(rng, args.queries, args.width)
    index, index_names = make_images(rng, args.index, args.width)
    sides = queries, names, index, index_names, TOP
    with tempfile.TemporaryDirectory() as folder:
        image_ids = np.arange(args.index, dtype=np.uint64)
        whole = write_index(Path(folder) / "index.npz", image_ids, index)
        query_ids = np.arange(args.queries, dtype=np.uint64) + np.uint64(args.index)
        ways = {
            "none and divide": functools.partial(
                find_candidates, queries, names.landmark_ids, index, index_names.landmark_ids, TOP
            ),
            "confidence": functools.partial(best_by_confidence, *sides),
            "soft": functools.partial(best_by_soft_labels, *sides),
            "queries expanded": functools.partial(expand, query_ids, queries, whole, 10),
        }
        ways = {name: functools.partial(discard, way) for name, way in ways.items()}
        results = common.measure(ways, args.rounds)
    common.print_machine("numpy", "faiss-cpu")
    print(f"{args.queries:,} queries, {args.index:,} index images, {args.width} values\n")
    rows = [
        [name, common.median(results, name), common.ratio(results, name, "none and divide")]
        for name in ways
    ]
    common.print_table(["candidates of", "s", "ratio"], rows)


def discard(way):
    """Calls a function; what it gives is no measurement."""
    way()


def make_images(rng, num_images, width):
    """Draws descriptors of length 1 and their names by 5 neighbors."""
    frequencies = 1 / (np.arange(NUM_LANDMARKS) + FLATTENED)
    frequencies /= frequencies.sum()
    landmarks = rng.choice(NUM_LANDMARKS, (num_images, 5), p=frequencies)
    cosines = rng.uniform(0.2, 0.9, (num_images, 5)).astype(np.float32)
    descriptors = rng.standard_normal((num_images, width)).astype(np.float32)
    return unit_length(descriptors), name_by_neighbors(landmarks, cosines)


def write_index(path, image_ids, descriptors):
    """Writes descriptors as a shard's file and gives it as the whole index."""
    num_images = len(image_ids)
    described = Descriptions(
        image_ids, np.zeros(num_images, np.int64), np.zeros(num_images, np.float32), descriptors,
        np.zeros(num_images, np.int16), np.zeros((num_images, 2), np.int64),
    )  # fmt: skip
    save_descriptions(path, described, {})
    return index_of({path: None}, image_ids)


if __name__ == "__main__":
    main()
