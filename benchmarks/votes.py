"""GAP of every vote and penalty, with a 2019 and a strong network and several seeds.

    python benchmarks/votes.py --source FOLDER --weights FILE

Trains with recognition.py and describes with nearest.py and retrieval.py, unless that is there
already; then compares the votes twice: on all test images, and where nearly all show no landmark,
as in the real test set: all non-landmarks of test and index, few landmarks, drawn several times.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import ablation
import common
import numpy as np

from data.landmarks import format_image_id
from data.sources import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from data.submissions import read_recognition_solution, read_retrieval_solution
from descriptors.descriptions import concatenate, load_descriptions, load_queries, unit_length
from metrics import global_average_precision
from runs.session import Session
from search import exact, gallery, gallery_parts, voting

MODELS = {"2019": "2019", "strong": "together, from 9 images"}  # of the ablation's variants
NUM_LANDMARKS = 40  # images that show one, where nearly all show none
NUM_DRAWS = 10


def main():
    """Makes what is missing and prints the table."""
    args = parse_arguments()
    columns = {}
    for name in MODELS:
        for seed in range(args.seeds):
            scene = open_scene(args, name, seed)
            columns[name, "all", seed] = score_all(scene)
            columns[name, "few", seed] = score_few(scene, seed)
            print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    kinds = [(name, kind) for kind in ("all", "few") for name in MODELS]
    rows = []
    for row in columns["2019", "all", 0]:
        scores = [[columns[*kind, seed].get(row) for seed in range(args.seeds)] for kind in kinds]
        rows.append([row, *map(describe, scores)])
    print(f"GAP, {args.seeds} seeds: mean, and half the range behind it\n")
    titles = {"all": "all test images", "few": "few landmarks"}
    common.print_table(["votes", *(f"{name}, {titles[kind]}" for name, kind in kinds)], rows)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="data set in the CVDF layout")
    parser.add_argument("--weights", required=True, help="the backbone's first weights")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=common.CACHE / "votes")
    return parser.parse_args()


def describe(scores):
    """Writes mean and half the range, or a dash where nothing was scored."""
    return "-" if None in scores else ablation.describe(scores)


# ------------------------------------------------------------------------------------- the scene


@dataclass(frozen=True)
class Scene:
    """A network's descriptors of everything.

    Attributes:
        gallery: `gallery.Gallery` of the train images.
        queries: `Descriptions` of the test images, of length 1.
        non_landmarks: `Descriptions` of index images that show no landmark.
        truths: dict, image id -> set of landmark ids, empty for no landmark.
    """

    gallery: gallery.Gallery
    queries: object
    non_landmarks: object
    truths: dict


def open_scene(args, name, seed):
    """Trains and describes what is not there yet; gives the `Scene`."""
    folder = args.output / f"mobilenet_v2-{args.image_size}-{args.epochs}" / f"{name}-{seed}"
    words = ["--source", args.source, "--output", folder]
    if not (folder / "model.keras").exists():
        options = {
            "backbone": "mobilenet_v2", "weights": args.weights, "image-size": args.image_size,
            "epochs": args.epochs, "batch-size": 32, "seed": seed, "train-shards": "0:9",
            "valid-shards": "9:10", "valid-every": 100,
        }  # fmt: skip
        options |= ablation.VARIANTS[MODELS[name]]
        ablation.call("recognition.py", *words, *ablation.flags_of(options))
    if not (folder / "gallery-part-0-of-1.npz").exists():
        ablation.call("nearest.py", *words, "--batch-size", 32, "--parts", 1)
    if not (folder / "part-0-of-1.npz").exists():
        ablation.call("retrieval.py", *words, "--batch-size", 32, "--parts", 1, "--part", 0)
    files = Session(folder, source=None, stop=None)
    parts, _ = gallery_parts.load_parts([folder / "gallery-part-0-of-1.npz"])
    source = Path(args.source)
    retrieved = read_retrieval_solution(source / RETRIEVAL_SOLUTION).values()
    relevant = set().union(*(truth.image_ids for truth in retrieved))
    index = concatenate(
        [load_descriptions(path)[0] for path in sorted(folder.glob("descriptors/index_*.npz"))]
    )
    shows_none = [format_image_id(image_id) not in relevant for image_id in index.image_ids]
    solution = read_recognition_solution(source / RECOGNITION_SOLUTION)
    return Scene(
        gallery_parts.open_gallery(files, parts),
        of_length_1(load_queries(folder / "queries.npz")[0]),
        choose(of_length_1(index), np.flatnonzero(shows_none)),
        {image_id: truth.landmark_ids for image_id, truth in solution.items()},
    )


def of_length_1(descriptions):
    return replace(descriptions, descriptors=unit_length(descriptions.descriptors))


def choose(descriptions, rows):
    """Gives these rows of `Descriptions`."""
    return type(descriptions)(*(column[rows] for column in vars(descriptions).values()))


# ------------------------------------------------------------------------------------- the scores


def score_all(scene):
    """Scores every way on all test images: dict, row of the table -> GAP."""
    return score(scene, scene.queries, scene.non_landmarks.descriptors)


def score_few(scene, seed):
    """Scores every way where few images show a landmark: the mean of several draws."""
    truths = [scene.truths[format_image_id(i)] for i in scene.queries.image_ids]
    shows_one = np.array([bool(truth) for truth in truths])
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(NUM_DRAWS):
        drawn = rng.choice(np.flatnonzero(shows_one), NUM_LANDMARKS, replace=False)
        test = choose(scene.queries, np.concatenate([np.flatnonzero(~shows_one), drawn]))
        queries = concatenate([test, scene.non_landmarks])
        draws.append(score(scene, choose(queries, np.argsort(queries.image_ids)), None))
    return {row: float(np.mean([draw[row] for draw in draws])) for row in draws[0]}


def score(scene, queries, known):
    """Scores every way to vote for some queries.

    Args:
        scene: `Scene`.
        queries: `Descriptions` of length 1 by ascending id.
        known: (m, d), descriptors of known non-landmarks of another split, or None.
    """
    plain = gallery.find_neighbors(scene.gallery, queries.descriptors)
    zero = np.zeros(len(queries), np.float32)
    head = queries.landmark_ids, queries.confidences
    ways = {
        "the head alone": head,
        "sum of 3, no penalty": voting.vote_by_sum(plain, zero),
        "powers": voting.vote_by_powers(plain, queries.confidences),
        "head and sum, no penalty": voting.vote_with_head(plain, zero, *head),
    }
    for share in (0.05, 0.1, 0.2, 0.5):
        penalised, likeness, others = penalise(scene, queries, plain, share)
        ways[f"sum of 3, B and C, N = {share:.0%}"] = voting.vote_by_sum(penalised, likeness)
        if share == voting.NON_LANDMARK_SHARE:
            ways |= ways_of(queries, plain, penalised, likeness, others)
    if known is not None:
        penalised = gallery.find_neighbors(scene.gallery, queries.descriptors, 10, known)
        likeness = gallery.likeness(queries.descriptors, known, gallery.NUM_LIKE_QUERY)
        ways["sum of 3, B and C, N known, of the index"] = voting.vote_by_sum(penalised, likeness)
        ways["head and sum, B and C, N known"] = voting.vote_with_head(penalised, likeness, *head)
    return {row: gap(scene, queries, *voted) for row, voted in ways.items()}


def penalise(scene, queries, plain, share):
    """Takes a share of the queries for non-landmarks: (neighbors, likeness, descriptors of N)."""
    rows = voting.least_like_gallery(plain, share)
    others, own_places = queries.descriptors[rows], np.full(len(queries), -1)
    own_places[rows] = np.arange(len(rows))
    penalised = gallery.find_neighbors(scene.gallery, queries.descriptors, 10, others)
    likeness = gallery.likeness(queries.descriptors, others, gallery.NUM_LIKE_QUERY, own_places)
    return penalised, likeness, others


def ways_of(queries, plain, penalised, likeness, others):
    """Lists what is tried with the default non-landmarks: dict, row of the table -> votes."""
    zero = np.zeros(len(queries), np.float32)
    head = queries.landmark_ids, queries.confidences
    # bestfitting 2019: 4 (t - 0.3) less, t the third largest cosine to N (of another image).
    distances = exact.nearest(queries.descriptors, others, 4)[1].astype(np.float64)
    is_itself = distances[:, 0] < 1e-6
    third = 1 - np.where(is_itself, distances[:, 3], distances[:, 2]) / 2
    bestfitting = (4 * np.maximum(third - 0.3, 0)).astype(np.float32)
    ways = {
        "sum of 3, B": voting.vote_by_sum(penalised, zero),
        "sum of 3, C": voting.vote_by_sum(plain, likeness),
        "sum of 3, B, and bestfitting's penalty": voting.vote_by_sum(penalised, bestfitting),
    }
    for number in (1, 5, 10):
        ways[f"sum of {number}, B and C"] = voting.vote_by_sum(penalised, likeness, number)
    for weight in (0.25, 0.5, 1.0):
        ways[f"head x {weight} and sum, B and C"] = voting.vote_with_head(
            penalised, likeness, *head, weight
        )
    return ways


def gap(scene, queries, landmark_ids, confidences):
    """Scores what a way says of the queries."""
    said = zip(queries.image_ids, landmark_ids.tolist(), confidences.tolist(), strict=True)
    predictions = {format_image_id(i): (landmark, sure) for i, landmark, sure in said}
    truths = {image_id: scene.truths.get(image_id, set()) for image_id in predictions}
    return global_average_precision(predictions, truths)


if __name__ == "__main__":
    main()
