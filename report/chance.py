"""What a score would be by chance, on average over all guesses: nothing is drawn at random."""

import numpy as np

from data.submissions import MAX_RETRIEVED
from metrics import by_usage


def gap_by_chance(solution, num_landmarks):
    """Computes the mean GAP of any landmark for each image, with any confidence.

    Args:
        solution: dict of `read_recognition_solution`.
        num_landmarks: to guess among.

    Returns:
        dict, "Public", "Private" and "all" -> score; without those that nobody can score.
    """

    def mean(truths):
        ranks = np.arange(1, len(truths) + 1)
        is_right = sum(len(truth.landmark_ids) for truth in truths) / num_landmarks / len(truths)
        # A right guess at a rank, and how many of those before it are right besides.
        precisions = (1 + (ranks - 1) * is_right) / ranks
        return is_right * precisions.sum() / sum(bool(truth.landmark_ids) for truth in truths)

    return _of_usages(mean, solution, lambda truth: truth.landmark_ids, with_empty=True)


def map_by_chance(solution, num_indexed):
    """Computes the mean mAP@100 of any order of the index.

    Args:
        solution: dict of `read_retrieval_solution`.
        num_indexed: index images.

    Returns:
        As `gap_by_chance`.
    """
    ranks = np.arange(1, min(MAX_RETRIEVED, num_indexed) + 1)

    def mean_of(num_relevant):
        others = (num_relevant - 1) / max(1, num_indexed - 1)
        precisions = (1 + (ranks - 1) * others) / ranks
        return num_relevant / num_indexed * precisions.sum() / min(num_relevant, MAX_RETRIEVED)

    def mean(truths):
        return np.mean([mean_of(len(truth.image_ids)) for truth in truths])

    return _of_usages(mean, solution, lambda truth: truth.image_ids, with_empty=False)


def _of_usages(mean, solution, answers_of, with_empty):
    found = {}
    for name, rows in by_usage(solution):
        truths = list(rows.values())
        if answered := [truth for truth in truths if answers_of(truth)]:
            found[name] = float(mean(truths if with_empty else answered))
    return found
