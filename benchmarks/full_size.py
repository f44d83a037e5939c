"""One part of the real retrieval and the merge of six, at full size: time and memory of each.

    python benchmarks/full_size.py [--queries 117577] [--index 126960]

The descriptors are drawn, as in search_speed.py; the six parts share one search under other ids.
Each step runs in a process of its own, so that its peak memory shows. Takes some minutes and 3 GB
in the folder for temporary files.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from common import print_table, run_python
from search_speed import WIDTH, make_descriptors

from data.arrays import load_arrays, save_arrays
from on_kaggle.plan import NUM_PARTS

NUM_LANDMARKS, TOP, DIVISOR = 55_000, 100, 1.5
PART = "part-{}-of-6.npz"


def describe(folder, num_queries, num_index):
    """Writes descriptors of queries and one part, and landmarks as a recogniser names them."""
    rng = np.random.default_rng(0)
    for name, num_rows, seed in (("queries", num_queries, 2), ("index", num_index, 3)):
        save_arrays(
            folder / f"{name}.npz",
            {},
            ids=np.sort(rng.integers(0, 2**60, num_rows)).astype(np.uint64) * np.uint64(8),
            landmarks=(NUM_LANDMARKS * rng.random(num_rows) ** 3).astype(np.int64),
            descriptors=make_descriptors(num_rows, seed),
        )


def search(folder):
    """Searches the part, as retrieval.py does, and writes it under the ids of all six."""
    from search.exact import find_candidates

    queries, index = (load_arrays(folder / f"{name}.npz")[0] for name in ("queries", "index"))
    begin = time.perf_counter()
    found = find_candidates(
        queries["descriptors"],
        queries["landmarks"],
        index["descriptors"],
        index["landmarks"],
        TOP,
    )
    seconds = time.perf_counter() - begin
    for part in range(NUM_PARTS):
        save_arrays(
            folder / PART.format(part),
            {"part": part, "parts": NUM_PARTS, "top": TOP},
            query_ids=queries["ids"],
            query_landmarks=queries["landmarks"],
            query_places=np.zeros((len(queries["ids"]), 3), np.int64),
            index_ids=index["ids"] + np.uint64(part),
            index_landmarks=index["landmarks"],
            index_places=np.zeros((len(index["ids"]), 3), np.int64),
            row_ends=found.row_ends,
            positions=found.positions,
            distances=found.distances,
        )
    return seconds


def merge(folder):
    """Merges the six parts and writes the submission, as retrieval.py does."""
    from data.submissions import write_retrieval_submission
    from search.merging import load_parts, merge_parts

    begin = time.perf_counter()
    parts, _ = load_parts([folder / PART.format(part) for part in range(NUM_PARTS)])
    ranking = merge_parts(parts, DIVISOR, TOP)
    write_retrieval_submission(
        folder / "submission.csv",
        ranking.query_ids,
        ranking.query_ids,
        ranking.row_ends,
        ranking.image_ids,
    )
    return time.perf_counter() - begin


def run_step(name, folder):
    """Runs a step of this module in a fresh process: (seconds, peak memory in GB)."""
    code = (
        "import json, sys; sys.path.insert(0, 'benchmarks'); import full_size; "
        "print(json.dumps(full_size.run_here(*sys.argv[1:])))"
    )
    return run_python(code, name, folder)


def run_here(name, folder):
    """Runs a step in this process."""
    seconds = {"search": search, "merge": merge}[name](Path(folder))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=117_577, help="test images")
    parser.add_argument("--index", type=int, default=126_960, help="index images of a part")
    args = parser.parse_args()
    common.print_machine("numpy", "faiss-cpu")
    with tempfile.TemporaryDirectory() as folder:
        describe(Path(folder), args.queries, args.index)
        rows = [
            (f"search of {args.index:,} index images", *run_step("search", folder)),
            (f"merge of {NUM_PARTS} parts, submission written", *run_step("merge", folder)),
        ]
        size = Path(folder, "submission.csv").stat().st_size
        part_size = Path(folder, PART.format(0)).stat().st_size
    print(f"{args.queries:,} queries, {WIDTH}-d, top {TOP}\n")
    print_table(("step", "s", "peak memory, GB"), rows)
    print(f"a part file has {part_size / 1e6:,.0f} MB, the submission {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
