"""mAP@100 of every rerank, of names by the head and the nearest train images, and of expansions.

    python benchmarks/rerank_quality.py --source FOLDER --weights FILE

Trains and describes as votes.py does, in the same folders, unless that is there already. No label
of a test or index image is used but to score.
"""

import sys
from pathlib import Path

import common
import numpy as np
import votes

from data.sources import RETRIEVAL_SOLUTION
from data.submissions import write_retrieval_submission
from descriptors.descriptions import concatenate, load_descriptions, load_queries
from metrics import score_retrieval
from runs.session import open_session
from search import exact, parts
from search.expansion import index_of
from search.merging import Ranking, make_part, merge_parts
from search.naming import find_namer
from search.reranks import NAMED_BY, RERANKS

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
            row = [[one.get((named_by, expanded, rerank)) for one in scores] for rerank in RERANKS]
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
    with open_session("quality", source, folder, folder / "scratch") as session:
        namers = {name: find_namer(session, facts, queries, name) for name in NAMED_BY}
        for expanded, (num_of_query, num_of_index) in EXPANSIONS.items():
            expansion = parts.Expansion(num_of_query, num_of_index, whole)
            sums = parts.expand_queries(session, queries, expansion) if num_of_query else queries
            for named_by, namer in namers.items():
                wanted = parts.Search(
                    "index", 1, 100, True, "soft", True, namer, namer.name_queries(queries),
                    expansion,
                )  # fmt: skip
                part = make_part(parts.find_all_candidates(wanted, sums, index))
                for rerank in RERANKS:
                    scores[named_by, expanded, rerank] = score(session, part, rerank)
        ranking = rank_by_superglobal(queries, index)
        scores["-", "SuperGlobal", "none"] = score_ranking(session, ranking)
    return scores


def rank_by_superglobal(queries, index):
    """Ranks by the second stage of SuperGlobal: 400 images, 9 neighbors, beta 0.15, 10 for q*.

    Source: Shao et al., ICCV 2023.
    """
    sides = queries.descriptors.astype(np.float64), index.descriptors.astype(np.float64)
    places, distances = exact.nearest(index.descriptors, index.descriptors, 10)
    weights = 0.15 * (1 - distances[:, 1:, None] / 2)
    refined = sides[1] + (weights * sides[1][places[:, 1:]]).sum(axis=1)
    refined /= 1 + weights.sum(axis=1)
    first, _ = exact.nearest(queries.descriptors, index.descriptors, min(400, len(index)))
    image_ids = []
    for query, candidates in zip(sides[0], first, strict=True):
        scores = refined[candidates] @ query
        best = refined[candidates[np.argsort(-scores, kind="stable")[:10]]]
        scores = scores + sides[1][candidates] @ best.max(axis=0)
        image_ids.append(index.image_ids[candidates[np.argsort(-scores, kind="stable")[:100]]])
    ends = np.cumsum([len(row) for row in image_ids])
    columns = np.concatenate(image_ids), np.zeros(ends[-1]), np.zeros(ends[-1]), np.zeros(ends[-1])
    return Ranking(queries.image_ids, ends, *columns)


def score(session, part, rerank):
    """Scores a ranking as a submission is scored."""
    return score_ranking(session, merge_parts([part], 1.5, 100, rerank))


def score_ranking(session, ranking):
    path = session.source.scratch / "ranking.csv"
    write_retrieval_submission(
        path, ranking.query_ids, ranking.query_ids, ranking.row_ends, ranking.image_ids
    )
    return score_retrieval(path, Path(session.source.fetch(RETRIEVAL_SOLUTION)))["all"]


if __name__ == "__main__":
    main()
