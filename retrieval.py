"""Retrieves the 100 nearest index images for each test image, in parts that can run apart.

    python retrieval.py --demo                    after recognition.py --demo: all parts, then merge
    python retrieval.py --model M                 all parts one after another, then merge
    python retrieval.py --model M --part 2        part 2 of 6 alone: writes part-2-of-6.npz
    python retrieval.py merge [FILES]             merges the parts: writes retrieval_submission.csv

Run the same command again and it continues where it stopped. However many the parts, the submission
is the same.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from command_line import CommandLine, add_session_options, number, parse_session, run_command_line
from descriptions import QUERIES, digest_of, load_descriptions, load_if_of
from landmarks import read_2019_classes, read_image_ids, read_landmark_names
from merging import load_parts, merge_parts
from metrics import format_scores, score_retrieval
from neighbors import choose_rows, draw_neighbors
from on_kaggle.kernel import find_inputs, require_package
from session import MAX_BATCH_SIZE, find_result, num_skippable, open_session
from sources import CATEGORY_CSV, INDEX_CSV, RETRIEVAL_SOLUTION, TEST_CSV, TRAIN_CSV
from submissions import (
    MAX_RETRIEVED,
    check_retrieval_submission,
    read_retrieval_solution,
    write_retrieval_submission,
)
from utils import ExpectedError, atomic_write, save_arrays, say

NORMALISED_ROWS = 4096  # at a time: an index of 6 GB is not in memory twice


def make_parser():
    """Makes the parser of the command line; Keras and faiss are not loaded for it."""
    parser = CommandLine(prog="retrieval.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "step", nargs="?", choices=("all", "merge"), default="all",
        help="search the parts and merge them, or merge part files alone",
    )  # fmt: skip
    parser.add_argument("files", nargs="*", type=Path, help="part files to merge")
    add_session_options(parser)
    parser.add_argument(
        "--model", type=Path, help="model.keras of recognition.py (default: <output>/model.keras)"
    )
    parser.add_argument(
        "--part", type=number(int, 0), metavar="K",
        help="search part K alone, counted from 0 (default: all parts, then the merge)",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=number(int, 1), default=6, metavar="N", help="parts of the index"
    )
    parser.add_argument(
        "--queries", type=Path, metavar="FILE",
        help="queries.npz of another run (default: <output>/queries.npz, described where missing)",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=number(int, 1), default=MAX_RETRIEVED, metavar="N",
        help=f"images retrieved for a query, at most {MAX_RETRIEVED}",
    )  # fmt: skip
    parser.add_argument(
        "--rerank-divisor", type=number(float, 1), default=1.5, metavar="D",
        help="divide the squared distance to images of the query's landmark by D; 1 = off",
    )  # fmt: skip
    parser.add_argument(
        "--normalise", action=argparse.BooleanOptionalAction, default=True,
        help="compare descriptors scaled to length 1",
    )  # fmt: skip
    parser.add_argument(
        "--descriptor-dtype", choices=("float32", "float16"), default="float32",
        help="stored descriptors; float16 halves memory and disk",
    )  # fmt: skip
    parser.add_argument(
        "--flipped-too", action="store_true",
        help="average each image with its mirror image (test-time augmentation)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=number(int, 1, MAX_BATCH_SIZE), default=64, metavar="IMAGES",
        help="images in a step",
    )  # fmt: skip
    return parser


def parse_arguments(argv):
    """Parses and checks the command line."""
    parser = make_parser()
    args = parse_session(parser, argv)
    if args.part is not None and args.part >= args.parts:
        parser.error(f"argument --part: {args.part}; expected 0 to {args.parts - 1} of --parts")
    if args.top > MAX_RETRIEVED:
        parser.error(f"argument --top: {args.top}; expected at most {MAX_RETRIEVED}")
    if args.files and args.step != "merge":
        parser.error(f"{args.files[0]}: part files go with `retrieval.py merge`")
    if args.part is not None and args.step == "merge":
        parser.error("--part goes with a search; expected `retrieval.py merge` alone or with files")
    return args


def main(argv=None):
    """Searches parts of the index and merges them, as the module's docstring shows."""
    args = parse_arguments(argv)
    with open_session(args) as session:
        files = find_parts(args) if args.step == "merge" else search_parts(session, args)
        if args.part is None:
            merge(session, files, args)


# ---------------------------------------------------------------------------------------- parts


def search_parts(session, args):
    """Searches one part, or all parts one after another.

    Returns:
        list of the part files.
    """
    require_package("faiss", "faiss-cpu")  # before hours are spent on descriptors
    import describe  # loads Keras: not before the command line proved right

    parts = range(args.parts) if args.part is None else [args.part]
    describer = describe.Describer(
        args.model or find_result(args.output, "model.keras"),
        lambda: read_2019_classes(session.source.fetch(TRAIN_CSV)),
        args.batch_size,
        args.flipped_too,
        args.descriptor_dtype,
    )
    shards = session.source.select_shards("index")
    index_ids = read_image_ids(session.source.fetch(INDEX_CSV))
    queries = describe_queries(session, describer, args)
    if args.normalise:
        normalise(queries.descriptors)
    files = []
    for part in parts:
        of_part = np.array_split(shards, args.parts)[part].tolist()
        path = search_part(session, describer, queries, part, of_part, index_ids, args)
        print(path)
        files.append(path)
    return files


def describe_queries(session, describer, args):
    """Describes the test images, or takes them from a file that another run wrote.

    Returns:
        `Descriptions` by ascending image id.

    Raises:
        ExpectedError: the file was described by another model or with other settings.
    """
    import describe

    test_ids = read_image_ids(session.source.fetch(TEST_CSV))
    expected = describer.fingerprint_for(test_ids)
    path = args.output / QUERIES
    for given in [args.queries] if args.queries else [path, *find_inputs(QUERIES)]:
        if not (args.queries or given.exists()):
            continue
        try:
            queries, fingerprint = load_descriptions(given)
        except ExpectedError as error:
            if args.queries:
                raise
            say(f"{error}: not used")
            continue
        left_out = fingerprint.pop("left_out", [])
        if fingerprint == expected:
            if left_out and given == path:  # those shards may be whole by now
                break
            without = f", without test shards {left_out}" if left_out else ""
            say(f"{given}: {len(queries):,} queries{without}")
            return queries
        if args.queries:
            raise ExpectedError(
                f"{given}: its queries are of {json.dumps(fingerprint)}; expected those of "
                f"{json.dumps(expected)}; give the file of this model, this test.csv and these "
                "settings, or leave out --queries"
            )
        say(f"{given}: of another model or other settings, not used")
    shards = session.source.select_shards("test")
    return describe.describe_split(
        session, describer, shards, test_ids, path, num_skippable(args, shards)
    )


def search_part(session, describer, queries, part, shards, index_ids, args):
    """Describes and searches one part of the index.

    Args:
        session, describer: as everywhere.
        queries: `Descriptions` of the test images, of length 1 if the index is to be.
        part: number of the part, from 0.
        shards: list of index `Shard`, the part's share; may be empty.
        index_ids: (n,) uint64, all of index.csv.
        args: the parsed command line.

    Returns:
        The part's file.
    """
    import describe
    import search

    path = session.output / f"part-{part}-of-{args.parts}.npz"
    fingerprint = describer.fingerprint | {
        "part": part,
        "parts": args.parts,
        "top": args.top,
        "normalise": args.normalise,
        "queries": digest_of(queries.image_ids),
        "index": digest_of(index_ids),
    }
    if load_if_of(path, fingerprint | {"left_out": []}) is not None:
        return path
    described, left_out = describe.describe_shards(
        session, describer, shards, index_ids, num_skippable(args, shards)
    )
    index = describe.gather(described, describer)
    if args.normalise:
        normalise(index.descriptors)
    found = search.find_candidates(
        queries.descriptors,
        queries.landmark_ids,
        index.descriptors,
        index.landmark_ids,
        args.top,
    )
    save_arrays(
        path,
        fingerprint | {"left_out": left_out},  # not whole: searched again by the next run
        query_ids=queries.image_ids,
        query_landmarks=queries.landmark_ids,
        query_places=_places(queries),
        index_ids=index.image_ids,
        index_landmarks=index.landmark_ids,
        index_places=_places(index),
        row_ends=found.row_ends,
        positions=found.positions,
        distances=found.distances,
    )
    say(f"part {part} of {args.parts}: {len(queries):,} queries, {len(index):,} index images")
    return path


def normalise(descriptors):
    """Scales descriptors to length 1, in place; a descriptor of zeros stays as it is."""
    for begin in range(0, len(descriptors), NORMALISED_ROWS):
        rows = descriptors[begin : begin + NORMALISED_ROWS]
        lengths = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
        rows[:] = rows / np.maximum(lengths, 1e-12)


def _places(descriptions):
    """Gives (n, 3) int64: shard number, offset and size, to find the pictures again."""
    return np.column_stack([descriptions.shard_numbers, descriptions.locations])


# ---------------------------------------------------------------------------------------- merge


def find_parts(args):
    """Gives the part files to merge: those named, or those of the output and of other kernels."""
    name = f"part-*-of-{args.parts}.npz"
    found = {}  # a part of the output goes before the newest of other kernels
    for path in [*args.output.glob(name), *find_inputs(name)]:
        found.setdefault(path.name, path)
    files = args.files or sorted(found.values(), key=lambda path: path.name)
    if not files:
        raise ExpectedError(
            f"{args.output}: no {name} there; expected the files of all parts; search the parts "
            "first, or name the files"
        )
    return files


def merge(session, files, args):
    """Merges all parts into the submission, checks it, scores it and draws neighbors.png.

    Args:
        session: `Session`.
        files: paths of all the parts.
        args: the parsed command line; of its search options only --rerank-divisor counts here.

    Raises:
        ExpectedError: parts are missing, repeated, damaged or do not belong together.
    """
    source = session.source
    parts, fingerprint = load_parts(files)
    test_ids = read_image_ids(source.fetch(TEST_CSV))
    if not np.isin(parts[0].query_ids, test_ids).all():
        raise ExpectedError(
            f"{files[0]}: it has queries that are not in {TEST_CSV} of {source}; expected parts of "
            "this source; check --source"
        )

    def write(path, divisor):
        ranking = merge_parts(parts, divisor, fingerprint["top"])
        write_retrieval_submission(
            path, test_ids, ranking.query_ids, ranking.row_ends, ranking.image_ids
        )
        return ranking

    path = args.output / "retrieval_submission.csv"
    ranking = write(path, args.rerank_divisor)
    num_answered = check_retrieval_submission(path, test_ids)
    num_indexed = sum(len(part.index_ids) for part in parts)
    num_known = len(read_image_ids(source.fetch(INDEX_CSV)))
    say(f"{num_indexed:,} of {num_known:,} index images searched")
    say(f"{num_answered:,} of {len(test_ids):,} test images have neighbors")
    print(path)
    solution = {}
    if source.exists(RETRIEVAL_SOLUTION):
        solution_csv = source.fetch(RETRIEVAL_SOLUTION)
        solution = read_retrieval_solution(solution_csv)
        if args.rerank_divisor > 1:
            plain = source.scratch / "without_rerank.csv"
            write(plain, 1)
            scores = score_retrieval(plain, solution_csv)
            print(format_scores("mAP@100 without the rerank", scores))
        print(format_scores("mAP@100", score_retrieval(path, solution_csv)))
    else:
        say(f"{source}: no {RETRIEVAL_SOLUTION}; the submission is not scored")

    names = read_landmark_names(source.fetch(CATEGORY_CSV)) if source.exists(CATEGORY_CSV) else {}
    picture = args.output / "neighbors.png"
    try:
        figure = draw_neighbors(source, choose_rows(parts, ranking, solution, names))
    except (ExpectedError, OSError) as error:  # the submission stands without it
        say(f"{picture}: not drawn: {error}")
        return
    with atomic_write(picture) as temporary:
        figure.savefig(temporary)
    print(picture)


if __name__ == "__main__":
    run_command_line(main)
