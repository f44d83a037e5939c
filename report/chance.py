"""What a score would be by chance, on average over all guesses: nothing is drawn at random."""

import numpy as np

from data.submissions import MAX_RETRIEVED
from metrics import by_usage


def gap_by_chance(solution, num_landmarks):
    """Computes the mean GAP of any of so many landmarks for each image, with any confidence.

    `solution` is the dict of `read_recognition_solution`. Gives a dict, "Public", "Private" and
    "all" -> score, without those that nobody can score.
    """

    def mean(truths):
        is_right = sum(map(len, truths)) / num_landmarks / len(truths)
        return is_right * _sum_precisions(len(truths), is_right) / sum(map(bool, truths))

    return _of_usages(mean, solution)


def map_by_chance(solution, num_indexed):
    """Computes the mean mAP@100 of any order of the index: as `gap_by_chance`, of retrieval."""

    def mean_of(num_relevant):
        others = (num_relevant - 1) / max(1, num_indexed - 1)
        precisions = _sum_precisions(min(MAX_RETRIEVED, num_indexed), others)
        return num_relevant / num_indexed * precisions / min(num_relevant, MAX_RETRIEVED)

    return _of_usages(
        lambda truths: np.mean([mean_of(len(one)) for one in truths if one]), solution
    )


def _sum_precisions(num_ranks, others):
    """Sums over ranks: a right guess there, and the share of those before it that is right, too."""
    ranks = np.arange(1, num_ranks + 1)
    return ((1 + (ranks - 1) * others) / ranks).sum()


def _of_usages(mean, solution):
    truths = {name: [ids for ids, _ in rows.values()] for name, rows in by_usage(solution)}
    return {name: float(mean(of_all)) for name, of_all in truths.items() if any(of_all)}
