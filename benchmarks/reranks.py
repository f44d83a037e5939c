"""mAP@100 of every rerank, of names by the head and the nearest train images, and of expansions.

    python benchmarks/reranks.py --source FOLDER --weights FILE

Trains and describes as votes.py does, in the same folders, unless that is there already. No label
of a test or index image is used but to score.
"""

import sys
from pathlib import Path

import common
import numpy as np
import votes

import parts
from descriptions import concatenate, load_descriptions, load_queries
from expansion import index_of
from merging import NamedPart, merge_parts
from metrics import score_retrieval
from naming import find_namer
from reranks import NAMED_BY, RERANKS
from session import open_session
from sources import RETRIEVAL_SOLUTION
from submissions import write_retrieval_submission

NUM_SUMMED = 10
# name -> descriptors summed up in a query and in an index image
EXPANSIONS = {
    "-": (0, 0),
    "queries": (NUM_SUMMED, 0),
    "index": (0, NUM_SUMMED),
    "both": (NUM_SUMMED, NUM_SUMMED),
}


def main():
    """Makes what is missing and prints the tables."""
    args = votes.parse_arguments()
    for name in votes.MODELS:
        scores = []
        for seed in range(args.seeds):
            votes.open_scene(args, name, seed)
            setting = f"mobilenet_v2-{args.image_size}-{args.epochs}"
            scores.append(score_all(args.source, args.output / setting / f"{name}-{seed}"))
            print(f"{name}, seed {seed}: {scores[-1]}", file=sys.stderr, flush=True)
        rows = []
        for named_by, expanded in dict.fromkeys(key[:2] for key in scores[0]):
            row = [[one[named_by, expanded, rerank] for one in scores] for rerank in RERANKS]
            rows.append([named_by, expanded, *map(votes.describe, row)])
        print(f"{name}: mAP@100, {args.seeds} seeds: mean, and half the range behind it\n")
        common.print_table(["named by", "expanded", *RERANKS], rows)


def score_all(source, folder):
    """Scores everything on one network's descriptors: dict, (named by, expanded, rerank) -> mAP."""
    queries, facts = load_queries(folder / "queries.npz")
    queries = votes.of_length_1(queries)
    files = {path: load_descriptions(path)[1] for path in folder.glob("descriptors/index_*.npz")}
    index = votes.of_length_1(concatenate([load_descriptions(path)[0] for path in files]))
    index = votes.choose(index, np.unique(index.image_ids, return_index=True)[1])
    whole = index_of(files, index.image_ids)
    scores = {}
    with open_session("reranks", source, folder, folder / "scratch") as session:
        namers = {name: find_namer(session, facts, queries, name) for name in NAMED_BY}
        for expanded, (num_of_query, num_of_index) in EXPANSIONS.items():
            expansion = parts.Expansion(num_of_query, num_of_index, whole)
            sums = parts.expand_queries(session, queries, expansion) if num_of_query else queries
            for named_by, namer in namers.items():
                wanted = parts.Search(
                    "index", 1, 100, True, "soft", True, namer, namer.name_queries(queries),
                    expansion,
                )  # fmt: skip
                part = NamedPart(**parts.find_all_candidates(wanted, sums, index))
                for rerank in RERANKS:
                    scores[named_by, expanded, rerank] = score(session, part, rerank)
    return scores


def score(session, part, rerank):
    """Scores a ranking as a submission is scored."""
    ranking = merge_parts([part], 1.5, 100, rerank)
    path = session.source.scratch / "ranking.csv"
    write_retrieval_submission(
        path, part.query_ids, ranking.query_ids, ranking.row_ends, ranking.image_ids
    )
    return score_retrieval(path, Path(session.source.fetch(RETRIEVAL_SOLUTION)))["all"]


if __name__ == "__main__":
    main()
