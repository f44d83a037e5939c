"""Retrieves the 100 nearest index images for each test image, in parts that can run apart.

    python retrieval.py --demo                    after recognition.py --demo: all parts, then merge
    python retrieval.py --model M                 all parts one after another, then merge
    python retrieval.py --model M --part 2        part 2 of 6 alone: writes part-2-of-6.npz
    python retrieval.py merge [FILES]             merges the parts: writes retrieval_submission.csv

Run the same command again and it continues where it stopped. However many the parts, the submission
is the same.
"""

import contextlib
import sys
from argparse import BooleanOptionalAction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from data import submissions
from data.arrays import load_page
from data.landmarks import categories_of, read_image_ids
from data.sources import INDEX_CSV, RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from data.submissions import MAX_RETRIEVED
from network.loading import require_backend
from report import neighbors, retrieved
from report.scores import score
from report.write import write_report
from runs import command_line
from runs.command_line import number
from runs.pictures import draw_picture
from runs.session import (
    NEIGHBORS_PICTURE,
    QUERIES,
    REPORT_FACTS,
    RETRIEVAL_SUBMISSION,
    open_session,
    part_name,
)
from search import in_parts
from search.merging import load_parts, merge_parts
from search.reranks import NAMED_BY, RERANKS, default_rerank
from utils import ExpectedError, say

SPLIT = "index"  # is searched
MAX_SUMMED = 1000  # descriptors in the sum of an expansion


def make_parser():
    """Makes the parser of the command line; Keras and faiss are not loaded for it."""
    parser, *_ = command_line.parser_in_parts(__doc__, "retrieval", "index", "merge", "float32")
    # fmt: off
    add = parser.add_further_group("ranking").add_argument
    add("--top", type=number(int, 1), default=MAX_RETRIEVED, metavar="N",
        help=f"images retrieved for a query, at most {MAX_RETRIEVED}")
    add("--normalise", action=BooleanOptionalAction, default=True,
        help="compare descriptors scaled to length 1")
    add("--rerank-divisor", type=number(float, 1), default=1.5, metavar="D",
        help="divide the squared distance to images of the query's landmark by D; 1 = off")
    add("--rerank", choices=RERANKS, help="what is done about landmarks, see docs/reranks.md "
        "(default: divide of a softmax network, agreement of a cosine head)")
    add("--names", choices=NAMED_BY, help="who says which landmark an image shows: the network's "
        "head, or both that and its nearest train images of nearest.py (default: agreement takes "
        "both where nearest.py was run, others head)")
    summed = {"type": number(int, 0, MAX_SUMMED), "default": 0, "metavar": "K"}
    add("--expand-queries", **summed, help="search with the sum of a query and its K - 1 nearest "
        "index images; 0 = off")
    add("--augment-index", **summed, help="replace each index image by the sum of itself and its "
        "K - 1 nearest; 0 = off")
    # fmt: on
    return parser


def parse_arguments(argv):
    """Parses and checks the command line."""
    parser = make_parser()
    args = command_line.parse_in_parts(parser, argv, "merge")
    if args.top > MAX_RETRIEVED:
        parser.error(f"argument --top: {args.top}; expected at most {MAX_RETRIEVED}")
    of_unit_length = {
        "--rerank": args.rerank and RERANKS[args.rerank].columns,
        "--names": args.names == "both",
        "--expand-queries": args.expand_queries,
        "--augment-index": args.augment_index,
    }
    for flag in filter(of_unit_length.get, () if args.normalise else of_unit_length):
        parser.error(f"{flag} compares descriptors of length 1; expected no --no-normalise")
    return args


def main(argv=None):
    """Searches parts of the index and merges them, as the module's docstring shows."""
    args = parse_arguments(argv)
    name = "retrieval" if args.part is None else f"part-{args.part}"
    files = command_line.find_part_files(args, part_name("*", args.parts))
    if args.step == "all":
        require_backend()
    with open_session(name, **command_line.session_settings(args)) as session:
        files = files or in_parts.search_in_parts(session, args, search_parts, "retrieval")
        if args.part is None:
            merge(session, files, args.rerank_divisor, args.rerank, _comparison(session, args))


def search_parts(session, args):
    """Searches one part, or all parts one after another: yields the part files."""
    describer, index_ids, queries = prepare(session, args)
    from search import parts  # it loads Keras and faiss

    session.copy_earlier(REPORT_FACTS)  # the merge mounts the parts alone
    expansion, namers = None, _choose_namer(session, describer, args, queries)
    if args.expand_queries or args.augment_index:
        whole = parts.find_whole_index(session, describer, index_ids, args.part is None)
        expansion = parts.Expansion(args.expand_queries, args.augment_index, whole)
    asked = args.parts, args.top, args.normalise, *namers
    wanted = parts.WantedSearch(*asked, expansion=expansion)
    if args.expand_queries:
        queries = parts.expand_queries(session, queries, expansion)
    for part in in_parts.numbers_of_parts(args):
        yield parts.search_part(session, describer, wanted, queries, part, index_ids)


def prepare(session, args):
    """Gives what every part takes: `Describer`, ids of the index images, queries."""
    describer, index_ids = open_images(session, args)
    from search import parts

    queries = parts.find_queries(session, describer, args.queries)
    return describer, index_ids, queries.of_unit_length() if args.normalise else queries


def open_images(session, args):
    """Gives the `Describer` and the ids of the index images."""
    describer = in_parts.make_describer(session, args, SPLIT)
    return describer, read_image_ids(session.source.fetch(INDEX_CSV))


def _choose_namer(session, describer, args, queries):
    """Decides which candidates are kept and who names landmarks, as `parts.WantedSearch` has it."""
    from search import naming

    default = default_rerank(describer.recipe) if args.normalise else "divide"
    has_all_reranks = any(RERANKS[name].columns for name in {default, args.rerank or default})
    named_by = args.names or (None if has_all_reranks else "head")
    namer = naming.find_namer(session, describer.fingerprint, queries, named_by)
    return default, has_all_reranks, namer, namer.name(queries, are_queries=True)


def _comparison(session, args):
    """Gives what scores the network before its training: a function, None where that costs much."""
    if not session.is_demo or args.step != "all":
        return None
    from report.untrained import score_untrained

    return lambda: score_untrained(session, in_parts.make_describer(session, args, SPLIT))


def merge(session, files, divisor, rerank=None, score_untrained=None):
    """Merges the parts into the submission, checks it, scores it and draws neighbors.png.

    The files are all the parts, an ExpectedError if they do not belong together; the divisor as of
    `merge_parts`; no rerank is that of the model's recipe. `score_untrained()` gives scores to
    compare with, for the report.
    """
    parts, fingerprint = load_parts(files)
    rerank, num_nearest = rerank or fingerprint.get("rerank", "divide"), fingerprint["top"]
    _require_fitting(session, files[0], fingerprint, parts[0], rerank)
    test_ids = in_parts.read_test_ids(session.source, files[0], parts[0].query_ids)
    ranking = merge_parts(parts, divisor, num_nearest, rerank)
    left_out, num_indexed = _write(session, parts, ranking, test_ids)
    rankings = {"mAP@100": ranking}
    is_reranked = rerank != "none" and (rerank != "divide" or divisor > 1)
    if is_reranked and session.source.exists(RETRIEVAL_SOLUTION):
        plain = merge_parts(parts, 1, num_nearest, "none")
        rankings = {"mAP@100 without the rerank": plain} | rankings
    rankings = {name: found.as_rows(test_ids) for name, found in rankings.items()}
    scores, solution = score(session, "retrieval", rankings)
    scored = neighbors.score_queries(ranking.query_ids, rankings["mAP@100"], solution)
    rows = draw(session, parts, ranking, scored)
    divided = f"squared distances within the landmark / {divisor:g}"
    facts = {
        "num_indexed": num_indexed, "left_out": left_out, "rerank": rerank,
        "scores": [{"name": name, "usages": usages} for name, usages in scores.items()],
        "details": [["parts", len(parts)], ["rerank", divided if rerank == "divide" else rerank]],
    }  # fmt: skip
    write_report(
        session, "retrieval",
        lambda: retrieved.gather(session, facts, fingerprint, solution, scored, rows)
        | {"untrained": score_untrained() if score_untrained else {}},
    )  # fmt: skip


def _require_fitting(session, file, fingerprint, part, rerank):
    """Raises ExpectedError if a part is of another model, or lacks what the rerank needs."""
    path, own = session.path(QUERIES), fingerprint
    with contextlib.suppress(ExpectedError):  # not there, or damaged: a search makes it again
        own = load_page(path)[1]
    if own.get("model") != fingerprint.get("model"):
        what = f"{file}: of another model than {path}; expected parts of the model that predicts"
        raise ExpectedError(f"{what}; search the parts again", "old_parts")
    if rerank not in RERANKS or not RERANKS[rerank].columns.keys() <= part.more.keys():
        what = f"{file}: it has no candidates of the rerank {rerank}"
        raise ExpectedError(f"{what}; expected those of all reranks", "rerank")


def _write(session, parts, ranking, test_ids):
    """Writes and checks the submission; gives what is not in it, as lines, and images searched."""
    path = session.path(RETRIEVAL_SUBMISSION)
    columns = ranking.query_ids, ranking.row_ends, ranking.image_ids
    submissions.write_retrieval_submission(path, test_ids, *columns)
    num_answered = submissions.check_retrieval_submission(path, test_ids)
    num_indexed = len(np.unique(np.concatenate([part.index_ids for part in parts])))
    num_known = len(read_image_ids(session.source.fetch(INDEX_CSV)))
    say(f"{num_indexed:,} of {num_known:,} index images searched")
    say(f"{num_answered:,} of {len(test_ids):,} test images have neighbors")
    print(path)
    missing = {"index": num_known - num_indexed, "test": len(test_ids) - num_answered}
    told = [f"{n:,} {split} images could not be searched." for split, n in missing.items() if n]
    return told, num_indexed


def draw(session, parts, ranking, scored):
    """Draws neighbors.png, without which the submission stands; gives the rows that are in it."""
    source, picture = session.source, session.path(NEIGHBORS_PICTURE)
    rows, truths = [], {}

    def draw_rows():
        if source.exists(RECOGNITION_SOLUTION):
            path = source.fetch(RECOGNITION_SOLUTION)
            truths.update(submissions.read_recognition_solution(path))
        known = categories_of(source), truths
        rows.extend(neighbors.choose_rows(parts, ranking, scored, *known))
        return neighbors.draw_neighbors(source, rows)

    if draw_picture(picture, draw_rows):
        print(picture)
    return rows


if __name__ == "__main__":
    command_line.run_command_line(main)
