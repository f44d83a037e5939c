"""GAP of ways to name, mAP@100 of ways to rank, by recipe and seed, on one data set.

    python benchmarks/names_and_ranks.py --source FOLDER --weights FILE --train-shards 0:5 \
        --valid-shards 5:6 --min-images 3 --image-size 160

Trains with recognition.py and describes with nearest.py and retrieval.py, unless that is there
already. Everything is compared with everything, so that a data set must be small. Names are scored
on all test images, and where few of them show a landmark, as in the real test set: drawn several
times. No label of a test or index image is used but to score.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import ablation
import common
import numpy as np

from data.sources import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from data.submissions import read_recognition_solution, read_retrieval_solution
from descriptors.descriptions import Descriptions, concatenate, load_descriptions, unit_length
from metrics import average_precision
from search import gallery, gallery_parts, voting
from search.candidates import AGREEMENT_WEIGHT
from search.reranks import NUM_NAMING, name_by_both, name_by_head, name_by_neighbors

RECIPES = ("frozen", "strong", "2019")
SHARES = {"all": None, "93%": (0.93, 20), "99%": (0.99, 40)}  # of non-landmarks, draws
SAME_PICTURE = 0.97  # cosine of two pictures of one series
VOTERS = ((1, 1), (3, 1), (3, 4), (3, 8), (3, 16), (5, 8), (8, 8))  # images, power
WEIGHTS, SUMMED = (1, 2, 3, 4), 3


@dataclass(frozen=True)
class Scene:
    """A network's descriptors of everything, of length 1, and the truth.

    Attributes:
        train, train_landmarks: (n, d) float64 and (n,) int64.
        queries, index: `Descriptions`.
        truths: list, of each query and then of each index image that shows nothing (as far as the
            ground truth knows) the set of its landmarks.
        relevant: list, of each query the set of rows of the index.
        num_relevant: list, of each query how many there are in the ground truth.
    """

    train: np.ndarray
    train_landmarks: np.ndarray
    queries: Descriptions
    index: Descriptions
    truths: list
    relevant: list
    num_relevant: list


def main():
    """Makes what is missing and prints the table."""
    args = parse_arguments()
    scores = {}
    for recipe in args.recipes:
        for seed in range(args.seeds):
            scene = open_scene(args, recipe, seed)
            scores[recipe, seed] = score_names(scene, seed) | score_rankings(scene)
            print(f"{recipe}, seed {seed}: done", file=sys.stderr, flush=True)
    print(f"{args.seeds} seeds: mean, and half the range behind it\n")
    rows = [
        [*row, *(ablation.describe([scores[r, s][row] for s in range(args.seeds)])
                 for r in args.recipes)]
        for row in next(iter(scores.values()))
    ]  # fmt: skip
    common.print_table(["score", "of", *args.recipes], rows)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="data set in the CVDF layout")
    parser.add_argument("--weights", required=True, help="the backbone's first weights")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--train-shards", default="0:9")
    parser.add_argument("--valid-shards", default="9:10")
    parser.add_argument("--labels", default="full")
    parser.add_argument("--min-images", type=int, default=9)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4, help="of recipes that train the backbone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=common.CACHE / "names-and-ranks")
    return parser.parse_args()


# ------------------------------------------------------------------------------------- the scene


def open_scene(args, recipe, seed):
    """Trains and describes what is not there yet; gives the `Scene`."""
    setting = f"{Path(args.source).name}-{args.backbone}-{args.image_size}-{args.min_images}"
    folder = args.output / setting / f"{recipe}-{seed}"
    words = ["--source", args.source, "--output", folder]
    if not (folder / "model.keras").exists():
        names = "backbone", "weights", "train_shards", "valid_shards", "labels", "min_images"
        options = {"recipe": recipe, "seed": seed, "image-size": args.image_size}
        options |= {name.replace("_", "-"): getattr(args, name) for name in names}
        if recipe != "frozen":
            options |= {"epochs": args.epochs, "batch-size": 32}
        ablation.call("recognition.py", *words, *ablation.flags_of(options))
    if not (folder / "gallery-part-0-of-1.npz").exists():
        ablation.call("nearest.py", *words, "--parts", 1)
    if not (folder / "part-0-of-1.npz").exists():
        ablation.call("retrieval.py", *words, "--parts", 1, "--part", 0)
    part, _ = gallery_parts.load_part(folder / "gallery-part-0-of-1.npz")
    train = read(folder, "descriptors/train_*.npz")
    rows = np.searchsorted(train.image_ids, part.gallery_ids)
    truths = read_truths(
        Path(args.source), queries := read(folder, "queries.npz"),
        index := read(folder, "descriptors/index_*.npz"),
    )  # fmt: skip
    return Scene(train.descriptors[rows], part.gallery_landmarks, queries, index, *truths)


def read(folder, pattern):
    """Reads files of descriptions: `Descriptions` of length 1 by id, each id once."""
    found = concatenate([load_descriptions(path)[0] for path in sorted(folder.glob(pattern))])
    rows = np.unique(found.image_ids, return_index=True)[1]
    found = Descriptions(*(column[rows] for column in vars(found).values()))
    return replace(found, descriptors=unit_length(found.descriptors.astype(np.float64)))


def read_truths(source, queries, index):
    """Reads the ground truth: the last three attributes of a `Scene`."""
    named = read_recognition_solution(source / RECOGNITION_SOLUTION)
    retrieved = read_retrieval_solution(source / RETRIEVAL_SOLUTION)
    rows = {f"{i:016x}": row for row, i in enumerate(index.image_ids.tolist())}
    ids = [f"{i:016x}" for i in queries.image_ids.tolist()]
    relevant = [retrieved[i].image_ids if i in retrieved else set() for i in ids]
    shown = [{rows[i] for i in of_query if i in rows} for of_query in relevant]
    num_empty = len(rows) - len(set().union(*shown))
    truths = [named[i].landmark_ids for i in ids] + [set()] * num_empty
    return truths, shown, [len(of_query) for of_query in relevant]


# ------------------------------------------------------------------------------------------ names


def score_names(scene, seed):
    """Scores every way to name: dict, (score, way) -> GAP."""
    shown = set().union(*scene.relevant)
    empty = [row for row in range(len(scene.index)) if row not in shown]
    sides = scene.queries, scene.index
    x, head, sure = (
        np.concatenate([getattr(sides[0], name), getattr(sides[1], name)[empty]])
        for name in ("descriptors", "landmark_ids", "confidences")
    )
    cosines, scores = x @ scene.train.T, {}
    for share, draws in SHARES.items():
        for rows in draw(scene, draws, np.random.default_rng(seed)):
            of_rows = name_all_ways(scene, x[rows], cosines[rows], head[rows], sure[rows])
            for way, (named, confidences) in of_rows.items():
                right = [name in scene.truths[r] for r, name in zip(rows, named, strict=True)]
                num_shown = sum(bool(scene.truths[row]) for row in rows)
                gap = gap_of(np.array(right), confidences, num_shown)
                scores.setdefault((f"GAP, {share}", way), []).append(gap)
    scores = {row: float(np.mean(gaps)) for row, gaps in scores.items()}
    return scores | leave_one_out(scene)


def draw(scene, draws, rng):
    """Yields rows of the queries, and of index images that show nothing behind them."""
    if draws is None:
        yield np.arange(len(scene.queries))
        return
    share, num = draws
    shows = np.array([bool(truth) for truth in scene.truths])
    nothing = np.flatnonzero(~shows)
    wanted = max(1, round(len(nothing) * (1 - share) / share))
    for _ in range(num):
        some = rng.choice(np.flatnonzero(shows), min(wanted, shows.sum()), replace=False)
        yield np.sort(np.concatenate([nothing, some]))


def name_all_ways(scene, x, cosines, head, sure):
    """Names images in all ways: dict, way -> (landmarks, confidences)."""
    found = nearest_of(scene, cosines)
    nothing = np.zeros(len(x), np.float32)
    likeness = gallery.likeness_to(x.astype(np.float32), voting.least_like_gallery(found))
    ways = {"the head": (head, sure), "default": voting.vote(found, likeness, head, sure)}
    ways["default without the head"] = voting.vote(found, likeness, head, nothing)
    ways["default without likeness"] = voting.vote(found, nothing, head, sure)
    for number, power in VOTERS:
        ways[f"{number} nearest, power {power}"] = vote(found, number, power)
    return ways


def nearest_of(scene, cosines):
    """Gives the `GalleryNeighbors` that a matrix of cosines has."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : gallery.NUM_NEIGHBORS]
    best = np.take_along_axis(cosines, order, axis=1)
    distances = (2 - 2 * best).astype(np.float32)
    return gallery.GalleryNeighbors(
        order.astype(np.uint64), scene.train_landmarks[order], distances
    )


def vote(found, number, power):
    """Names by the sum of a power of the cosines of some neighbors, and nothing else."""
    landmarks = found.landmark_ids[:, :number]
    weights = np.clip(found.cosines[:, :number].astype(np.float64), 0, 1) ** power
    votes = (weights[:, None] * (landmarks[:, :, None] == landmarks[:, None])).sum(axis=2)
    best = votes.argmax(axis=1)[:, None]
    return tuple(np.take_along_axis(side, best, axis=1)[:, 0] for side in (landmarks, votes))


def leave_one_out(scene):
    """Lets the train images name each other, those of one series left out."""
    cosines = scene.train @ scene.train.T
    cosines[cosines > SAME_PICTURE] = -1
    found, scores = nearest_of(scene, cosines), {}
    for number, power in VOTERS:
        named, confidences = vote(found, number, power)
        gap = gap_of(named == scene.train_landmarks, confidences, len(named))
        scores["GAP, train", f"{number} nearest, power {power}"] = gap
    return scores


def gap_of(right, confidences, num_shown):
    """Computes GAP as `metrics.global_average_precision` does, of columns."""
    right = right[np.argsort(-confidences, kind="stable")]
    return float((right * np.cumsum(right) / np.arange(1, len(right) + 1)).sum() / num_shown)


# --------------------------------------------------------------------------------------- rankings


def score_rankings(scene):
    """Scores every way to rank: dict, (score, way) -> mAP@100."""
    q, x = scene.queries, scene.index
    cosines = q.descriptors @ x.descriptors.T
    expanded = [expand(side.descriptors, x.descriptors, side is x) for side in (q, x)]
    agrees = q.landmark_ids[:, None] == x.landmark_ids
    head, near = ([way(scene, side) for side in (q, x)] for way in (of_head, of_neighbors))
    both = [name_by_both(*pair) for pair in zip(head, near, strict=True)]
    ways = {"none": cosines, "divide": np.where(agrees, (cosines - 1) / 1.5, cosines - 1)}
    for names, sides in (("head", head), ("train images", near), ("both", both)):
        agreement = agreements(*sides)
        ways[f"agreement alone, {names}"] = agreement + np.where(agreement > 0, 1, 1e-9 * cosines)
        ways |= {f"cos + {w} agreement, {names}": cosines + w * agreement for w in WEIGHTS}
    ways["none, queries and index expanded"] = expanded[0] @ expanded[1].T
    ways["cos + 4 agreement, both, expanded"] = expanded[0] @ expanded[
        1
    ].T + AGREEMENT_WEIGHT * agreements(*both)
    return {("mAP@100", way): map_of(scene, scores) for way, scores in ways.items()}


def of_head(scene, side):
    return name_by_head(side.landmark_ids, side.confidences)


def of_neighbors(scene, side):
    found = nearest_of(scene, side.descriptors @ scene.train.T)
    return name_by_neighbors(found.landmark_ids[:, :NUM_NAMING], found.cosines)


def agreements(of_queries, of_index):
    """Sums the products of the weights of common landmarks: (queries, index images)."""
    landmarks = np.unique(np.concatenate([of_queries.labels, of_index.labels], axis=None))
    sides = [np.zeros((len(side.labels), len(landmarks))) for side in (of_queries, of_index)]
    for dense, side in zip(sides, (of_queries, of_index), strict=True):
        rows = np.arange(len(side.labels))[:, None]
        np.add.at(dense, (rows, np.searchsorted(landmarks, side.labels)), side.weights)
    return sides[0] @ sides[1].T


def expand(descriptors, index, is_index):
    """Sums each descriptor and its nearest, as `search.expansion` does."""
    cosines = descriptors @ index.T - 9 * is_index * np.eye(len(descriptors), len(index))
    order = np.argsort(-cosines, axis=1)[:, : SUMMED - 1]
    weights = np.clip(np.take_along_axis(cosines, order, axis=1), 0, 1) ** 3
    return unit_length(descriptors + np.einsum("ij,ijk->ik", weights, index[order]))


def map_of(scene, scores):
    """Computes mAP@100 of a matrix of scores, the higher the better."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :100].tolist()
    precisions = [
        average_precision(row, shown) * min(len(shown), 100) / min(number, 100)
        for row, shown, number in zip(order, scene.relevant, scene.num_relevant, strict=True)
        if number and shown
    ]
    return sum(precisions) / sum(number > 0 for number in scene.num_relevant)


if __name__ == "__main__":
    main()
