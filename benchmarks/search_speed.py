"""Exact top 100 of 2048-d descriptors: search.nearest against faiss and the bare matrix product.

    python benchmarks/search_speed.py [--rounds 3] [--index 20000 60000 127000] [--queries 2048]

The matrix product of queries and index alone, in float32, is the limit; everything is counted in
its 2 * d * n * q operations. The 2019 way asks faiss for one query at a time.
"""

import argparse
import itertools
import tracemalloc

import common
import numpy as np
from common import median, print_table, print_verdict, ratio

import search

WIDTH, TOP = 2048, 100
PLAIN = "plain matrix product (numpy)"
OURS = "ours (search.nearest)"
HALF = "ours, float16 stored"
ONE_CALL = "faiss.knn, one call"
ONE_BY_ONE = "2019: IndexFlatL2, one query at a time"
NUM_SINGLE = 32  # queries of the 2019 way that are timed


def make_descriptors(num_rows, seed, dtype=np.float32):
    """Draws descriptors of length 1 around common centres, as trained networks give them."""
    centres = np.random.default_rng(1).standard_normal((500, WIDTH), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_rows, WIDTH), dtype=np.float32)
    rows += 0.7 * centres[rng.integers(0, len(centres), num_rows)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(dtype)


def multiply(queries, index):
    """Multiplies block by block, so that the product itself needs little memory."""
    for begin in range(0, len(queries), search.QUERY_BLOCK):
        for first in range(0, len(index), search.INDEX_BLOCK):
            block = index[first : first + search.INDEX_BLOCK]
            np.matmul(queries[begin : begin + search.QUERY_BLOCK], block.T)


def search_one_by_one(queries, index):
    """The 2019 way."""
    import faiss

    search_index = faiss.IndexFlatL2(WIDTH)
    search_index.add(index)

    def run():
        for query in queries:
            search_index.search(query[None], TOP)

    return run


def compare(num_rows, num_queries, rounds):
    """Measures all ways: dict, name -> list of queries/s."""
    import faiss

    queries, index = make_descriptors(num_queries, 2), make_descriptors(num_rows, 3)
    half = index.astype(np.float16)
    half_queries = queries.astype(np.float16)
    single = search_one_by_one(queries[:NUM_SINGLE], index)
    ways = {
        PLAIN: lambda: multiply(queries, index),
        OURS: lambda: void(search.nearest(queries, index, TOP)),
        HALF: lambda: void(search.nearest(half_queries, half, TOP)),
        ONE_CALL: lambda: void(faiss.knn(queries, index, TOP)),
        ONE_BY_ONE: single,
    }
    seconds = common.measure(ways, rounds)
    counts = {ONE_BY_ONE: NUM_SINGLE}
    return {
        name: [counts.get(name, num_queries) / s for s in found] for name, found in seconds.items()
    }


def void(_):
    """Takes a result and gives None, so that the time counts."""


def measure_slopes(sizes, num_queries, rounds):
    """Fits time ~ n^slope over index sizes, and ~ q^slope over query counts."""
    index = make_descriptors(max(sizes), 3)
    queries = make_descriptors(2 * num_queries, 2)
    rows = [max(sizes) // 4, max(sizes) // 2, max(sizes)]
    counts = [num_queries // 2, num_queries, 2 * num_queries]
    ways = {("n", n): (queries[:num_queries], index[:n]) for n in rows}
    ways |= {("q", q): (queries[:q], index[: rows[1]]) for q in counts}
    ways = {k: lambda v=v: void(search.nearest(*v, TOP)) for k, v in ways.items()}
    seconds = common.measure(ways, rounds, warm_up=False)
    return {
        name: np.polyfit(
            np.log(steps), [np.log(median(seconds, (name, step))) for step in steps], 1
        )[0]
        for name, steps in (("n", rows), ("q", counts))
    }


def compare_half(num_rows, num_queries):
    """Tells how float16 storage changes results and memory.

    Returns:
        (share of equal positions, share where they are equal or the distances differ by less than
        float16 resolves, bytes of the index in float32, in float16).
    """
    queries, index = make_descriptors(num_queries, 2), make_descriptors(num_rows, 3)
    full = search.nearest(queries, index, TOP)
    half = search.nearest(queries.astype(np.float16), index.astype(np.float16), TOP)
    same = full[0] == half[0]
    close = np.abs(full[1] - half[1]) < 2.0**-11 * (1 + full[1])
    stored = index.nbytes, index.astype(np.float16).nbytes
    return same.mean(), (same | close).mean(), *stored


def peak_memory(num_rows, num_queries):
    """Measures what a search allocates beyond its inputs, in bytes."""
    queries = make_descriptors(num_queries, 2, np.float16)
    index = make_descriptors(num_rows, 3, np.float16)
    tracemalloc.start()
    search.nearest(queries, index, TOP)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main():
    """Prints the tables, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured")
    parser.add_argument(
        "--index", type=int, nargs="+", default=[20_000, 60_000, 127_000],
        help="rows; a sixth of the real index has 127,000",
    )  # fmt: skip
    parser.add_argument("--queries", type=int, default=2048, help="queries of a call")
    args = parser.parse_args()
    common.print_machine("numpy", "faiss-cpu")
    all_rates = {n: compare(n, args.queries, args.rounds) for n in args.index}
    rows = []
    for n, name in itertools.product(args.index, all_rates[args.index[0]]):
        rates = all_rates[n]
        speed = median(rates, name) * 2 * WIDTH * n / 1e9
        rows.append((f"{n:,}", name, median(rates, name), speed, ratio(rates, name, PLAIN),
                     ratio(rates, name, ONE_BY_ONE)))  # fmt: skip
    print(f"{args.queries:,} queries, {WIDTH}-d, top {TOP}\n")
    header = ("index", "way", "queries/s", "GFLOP/s", "x plain product", "x the 2019 way")
    print_table(header, rows)
    for n in args.index:
        share = ratio(all_rates[n], OURS, PLAIN)
        print_verdict(f"n = {n:,}: at least 0.8x the plain product", share, share >= 0.8)
    slopes = measure_slopes(args.index, args.queries // 2, max(1, args.rounds // 2))
    print(f"time grows as n^{slopes['n']:.2f} and as q^{slopes['q']:.2f}")
    same, close, full_bytes, half_bytes = compare_half(args.index[0], 256)
    print(f"float16: {half_bytes / full_bytes:.2f}x the memory of float32; {same:.2%} of positions "
          f"equal, {close:.2%} equal or tied within float16's resolution")  # fmt: skip
    peak = peak_memory(args.index[-1], args.queries)
    print(f"beyond its inputs a search of {args.index[-1]:,} float16 rows takes "
          f"{peak / 1e6:,.0f} MB")  # fmt: skip
    common.save_results("search", {str(n): rates for n, rates in all_rates.items()})


if __name__ == "__main__":
    main()
