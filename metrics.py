"""The two scores of the challenge: GAP for recognition, mAP@100 for retrieval.

    python metrics.py recognition recognition_submission.csv recognition_solution_v2.1.csv
    python metrics.py retrieval retrieval_submission.csv retrieval_solution_v2.1.csv

Prints them for the Public images, for the Private ones, and for all of both.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from data import submissions
from data.submissions import MAX_RETRIEVED
from runs.command_line import CommandLine, run_command_line
from utils import ExpectedError, say

LEADERBOARDS = ("Public", "Private")  # rows of the third usage, Ignored, are not scored


def global_average_precision(predictions, solution):
    """Computes global average precision (GAP, also micro-AP) of recognition predictions, 0 to 1.

    Predictions are ranked by confidence, ties by image id. A prediction for an image that shows no
    landmark counts as wrong. Raises ValueError if a predicted image is not in the solution, or none
    of that shows a landmark.

    Args:
        predictions: dict, image id -> (landmark id, confidence) or None.
        solution: dict, image id -> set of true landmark ids, empty for "no landmark".

    Source: Weyand et al., arXiv:2004.01804, section on metrics; ties as in tensorflow/models,
        research/delf/delf/python/datasets/google_landmarks_dataset/metrics.py
    """
    if not (num_landmark_images := sum(map(bool, solution.values()))):
        raise ValueError("no image of the solution shows a landmark")
    if unknown := predictions.keys() - solution.keys():
        raise ValueError(f"{len(unknown)} predicted images are not in the solution")
    made = [(image_id, *found) for image_id, found in predictions.items() if found is not None]
    made.sort(key=lambda prediction: (-prediction[2], prediction[0]))
    is_right = (landmark_id in solution[image_id] for image_id, landmark_id, _ in made)
    ranks = [rank for rank, right in enumerate(is_right, start=1) if right]
    total = sum(num_right / rank for num_right, rank in enumerate(ranks, start=1))
    return total / num_landmark_images


def average_precision(retrieved, relevant):
    """Computes the average precision at 100 of one query, 0 to 1.

    Args:
        retrieved: list of index image ids, best first; those after the 100th do not count, and a
            repeated one earns nothing and costs a rank.
        relevant: set of index image ids, not empty.
    """
    found, total = set(), 0.0
    for rank, image_id in enumerate(retrieved[:MAX_RETRIEVED], start=1):
        if image_id in relevant and image_id not in found:
            found.add(image_id)
            total += len(found) / rank
    return total / min(len(relevant), MAX_RETRIEVED)


def mean_average_precision(retrieved, solution):
    """Computes mAP@100 of a retrieval, 0 to 1; source and errors as of `global_average_precision`.

    Args:
        retrieved: dict, image id -> list of index image ids, best first; a missing query counts 0.
        solution: dict, image id -> set of relevant index image ids; queries with none are left out.
    """
    if unknown := retrieved.keys() - solution.keys():
        raise ValueError(f"{len(unknown)} queries are not in the solution")
    scored = {query: relevant for query, relevant in solution.items() if relevant}
    if not scored:
        raise ValueError("no query of the solution has a relevant image")
    total = sum(average_precision(retrieved.get(query, []), scored[query]) for query in scored)
    return total / len(scored)


CHALLENGES = {
    "recognition": (submissions.read_recognition_submission, submissions.read_recognition_solution,
                    global_average_precision, "GAP"),
    "retrieval": (submissions.read_retrieval_submission, submissions.read_retrieval_solution,
                  mean_average_precision, "mAP@100"),
}  # fmt: skip


def score_file(challenge, *paths):
    """Scores a submission, by the paths of it and of the ground truth, as `score_usages`."""
    read_submission, read_solution, metric, _ = CHALLENGES[challenge]
    rows, solution = read_submission(paths[0]), read_solution(paths[1])
    scores = score_usages(metric, rows, solution, paths)
    if missing := solution.keys() - rows.keys():
        say(
            f"{paths[0]}: {len(missing):,} of {len(solution):,} ids have no row, first "
            f"{min(missing)!r}; they count as not answered, and Kaggle takes no such file"
        )
    return scores


def score_usages(metric, submission, truths, paths):
    """Scores a submission in memory: dict, "Public", "Private" and "all" -> score.

    Args:
        metric: `global_average_precision` or `mean_average_precision`.
        submission: dict, as these take it.
        truths: dict, image id -> (true ids, usage).
        paths: of the submission and the solution, for an ExpectedError if they do not fit.
    """
    if unknown := submission.keys() - truths.keys():
        what = f"{paths[0]}: {len(unknown)} ids, first {min(unknown)!r}, are not in {paths[1]}"
        raise ExpectedError(f"{what}; expected ids of that test set; give the matching files")
    scores = {}
    for name, rows in by_usage(truths):
        solution = {key: truth for key, (truth, _) in rows.items()}
        if any(solution.values()):
            scored = {key: row for key, row in submission.items() if key in rows}
            scores[name] = metric(scored, solution)
    if not scores:
        what = f"{paths[1]}: no row with a true id and Usage Public or Private"
        raise ExpectedError(f"{what}; expected the released ground truth; check the file")
    return scores


def by_usage(truths):
    """Yields "Public", "Private" and "all" with the rows of a ground truth that count there."""
    for name in (*LEADERBOARDS, "all"):
        usages = LEADERBOARDS if name == "all" else (name,)
        yield name, {key: row for key, row in truths.items() if row[1] in usages}


def format_scores(name, scores):
    """Writes scores as one line, e.g. `GAP: Public 0.5123  Private 0.4987  all 0.5032`."""
    return f"{name}: " + "  ".join(f"{usage} {score:.4f}" for usage, score in scores.items())


def main(argv=None):
    """Scores one submission, as the module's docstring shows."""
    parser = CommandLine(__doc__, prog="metrics.py")
    parser.add_argument("challenge", choices=CHALLENGES)
    parser.add_argument("submission", help="the CSV to score")
    parser.add_argument("solution", help="recognition_solution_v2.1.csv, or the retrieval one")
    args = parser.parse_args(argv)
    scores = score_file(args.challenge, args.submission, args.solution)
    print(format_scores(CHALLENGES[args.challenge][-1], scores))


if __name__ == "__main__":
    run_command_line(main)
