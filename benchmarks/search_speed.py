"""Exact top 100 of 2048-d and 512-d descriptors: exact.nearest against faiss and the bare product.

    python benchmarks/search_speed.py [--rounds 3] [--index 20000 60000 127000] [--width 2048 512]

The matrix product of queries and index alone, in float32, is the limit; everything is counted in
its 2 * d * n * q operations. The 2019 way asks faiss for one query at a time. On a shared machine
the ratio of processor times is steadier than that of seconds.
"""

import itertools
import math
import tracemalloc

import common
import faiss
import numpy as np
from common import median, print_table, print_verdict, ratio

from search import exact

WIDTH, TOP = 2048, 100
PLAIN = "plain matrix product (numpy)"
KEPT = "the same into a kept array"
OURS = "ours (exact.nearest)"
HALF = "ours, float16 stored"
ONE_CALL = "faiss.knn, one call"
ONE_BY_ONE = "2019: IndexFlatL2, one query at a time"
DEVICE = "ours, a GPU proposes"
NUM_SINGLE = 32  # queries of the 2019 way that are timed


def make_descriptors(num_rows, seed, dtype=np.float32, width=WIDTH):
    """Draws descriptors of length 1 around common centres, as trained networks give them."""
    centres = np.random.default_rng(1).standard_normal((500, width), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_rows, width), dtype=np.float32)
    rows += 0.7 * centres[rng.integers(0, len(centres), num_rows)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(dtype)


def multiply(queries, index, kept=None):
    """Multiplies block by block, so that the product itself needs little memory."""
    for begin in range(0, len(queries), exact.QUERY_BLOCK):
        for first in range(0, len(index), exact.INDEX_BLOCK):
            block = index[first : first + exact.INDEX_BLOCK]
            part = queries[begin : begin + exact.QUERY_BLOCK]
            np.matmul(part, block.T, out=None if kept is None else kept[: len(part), : len(block)])


def search_one_by_one(queries, index):
    """The 2019 way."""
    search_index = faiss.IndexFlatL2(index.shape[1])
    search_index.add(index)

    def run():
        for query in queries:
            search_index.search(query[None], TOP)

    return run


def search(queries, index, with_gpu=False):
    """Searches exactly, with a GPU or without."""
    exact.MIN_SCORES = 0 if with_gpu else math.inf
    exact.nearest(queries, index, TOP)


def compare(num_rows, num_queries, rounds, width):
    """Measures all ways: two dicts, name -> list of queries/s, of queries per processor second."""
    from search import on_gpu

    queries = make_descriptors(num_queries, 2, width=width)
    index = make_descriptors(num_rows, 3, width=width)
    half, half_queries = index.astype(np.float16), queries.astype(np.float16)
    kept = np.empty((min(len(queries), exact.QUERY_BLOCK), min(len(index), exact.INDEX_BLOCK)), "f")
    ways = {
        PLAIN: lambda: multiply(queries, index),
        KEPT: lambda: multiply(queries, index, kept),
        OURS: lambda: search(queries, index),
        HALF: lambda: search(half_queries, half),
        ONE_CALL: lambda: faiss.knn(queries, index, TOP),
        ONE_BY_ONE: search_one_by_one(queries[:NUM_SINGLE], index),
    }
    if on_gpu.find_proposer():
        ways[DEVICE] = lambda: search(queries, index, with_gpu=True)
    measured = common.measure_both(ways, rounds)
    counts = {ONE_BY_ONE: NUM_SINGLE}
    return tuple(
        {name: [counts.get(name, num_queries) / s for s in found] for name, found in times.items()}
        for times in measured
    )


def compare_half(num_rows, num_queries):
    """Gives shares of positions that float16 storage leaves equal; equal or tied in float16."""
    queries, index = make_descriptors(num_queries, 2), make_descriptors(num_rows, 3)
    full = exact.nearest(queries, index, TOP)
    half = exact.nearest(queries.astype(np.float16), index.astype(np.float16), TOP)
    same = full[0] == half[0]
    close = np.abs(full[1] - half[1]) < 2.0**-11 * (1 + full[1])
    return same.mean(), (same | close).mean()


def peak_memory(num_rows, num_queries):
    """Measures what a search allocates beyond its inputs, in bytes."""
    queries = make_descriptors(num_queries, 2, np.float16)
    index = make_descriptors(num_rows, 3, np.float16)
    tracemalloc.start()
    exact.nearest(queries, index, TOP)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def print_comparison(width, args):
    """Measures and prints a table for descriptors of this width; gives the rates by index size."""
    found = {n: compare(n, args.queries, args.rounds, width) for n in args.index}
    rows = []
    for n, name in itertools.product(args.index, found[args.index[0]][0]):
        rates, by_processor = found[n]
        speed = median(rates, name) * 2 * width * n / 1e9
        rows.append((f"{n:,}", name, median(rates, name), speed, ratio(rates, name, PLAIN),
                     ratio(by_processor, name, PLAIN), ratio(rates, name, ONE_BY_ONE)))  # fmt: skip
    print(f"{args.queries:,} queries, {width}-d, top {TOP}\n")
    header = ("index", "way", "queries/s", "GFLOP/s", "x plain product",
              "x plain product, by processor time", "x the 2019 way")  # fmt: skip
    print_table(header, rows)
    for n in args.index:
        for label, rates in zip(("", " by processor time"), found[n], strict=True):
            for name, other, goal in ((OURS, PLAIN, 0.8), (OURS, ONE_CALL, 0.91), (HALF, OURS, 1)):
                share = ratio(rates, name, other)
                claim = f"{width}-d, n = {n:,}: {name} at least {goal}x {other}{label}"
                print_verdict(claim, share, share >= goal)
    print()
    return {str(n): rates for n, (rates, _) in found.items()}


def main():
    """Prints the tables, as the module's docstring says."""
    args = common.parse_arguments(
        __doc__,
        rounds=(3, "times that each way is measured"),
        index=([20_000, 60_000, 127_000], "rows; a sixth of the real index has 127,000"),
        width=([WIDTH, 512], "components"),
        queries=(2048, "queries of a call"),
    )
    common.print_machine("numpy", "faiss-cpu")
    rates = {width: print_comparison(width, args) for width in args.width}
    if WIDTH in rates:
        found = {n: median(of_size, OURS) for n, of_size in rates[WIDTH].items()}
        common.save_results("search_rates", found)
    same, close = compare_half(args.index[0], 256)
    print(f"float16: {same:.2%} of positions equal, {close:.2%} equal or tied within float16's "
          "resolution")  # fmt: skip
    peak = peak_memory(args.index[-1], args.queries)
    print(f"beyond its inputs a search of {args.index[-1]:,} float16 rows takes "
          f"{peak / 1e6:,.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
