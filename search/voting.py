"""Votes: the landmark that the nearest train images name, and how sure they are; NumPy alone."""

import numpy as np

# psinger/kaggle-landmark-recognition-2020-1st-place: its 3 nearest images name a query.
NUM_VOTERS = 3
# haqishen/Google-Landmark-Recognition-2020-3rd-Place-Solution
NUM_POWER_VOTERS, COSINE_POWER, HEAD_POWER = 5, 8, 12
VOTES = ("head", "sum", "powers")  # what `vote` knows, the default first
HEAD_WEIGHT = 0.25  # of the head's confidence in a blend, see docs/scores.md
# Of the test images, those least like any gallery image stand for what is no landmark: 99% of the
# 117,577 show none, and where only 26% show none the share is still right, see docs/scores.md.
NON_LANDMARK_SHARE = 0.2


def least_like_gallery(neighbors, share=NON_LANDMARK_SHARE):
    """Chooses the queries that stand for what is no landmark; knows no label of them.

    Args:
        neighbors: `gallery.GalleryNeighbors` of the queries, without penalties.
        share: of the queries, 0 to 1.

    Returns:
        (m,) int64, increasing rows of the queries whose nearest gallery image is farthest.
    """
    order = np.argsort(-neighbors.distances[:, 0], kind="stable")
    return np.sort(order[: round(share * len(order))])


def vote(way, plain, penalised, likeness, head):
    """Lets the nearest gallery images of n queries vote.

    Args:
        way: of VOTES.
        plain, penalised: `gallery.GalleryNeighbors`, without and with penalties.
        likeness: (n,) float32, of each query to non-landmarks.
        head: `Descriptions` of the queries, with the landmarks and confidences of the head.

    Returns:
        As `vote_by_sum`.
    """
    if way == "sum":
        return vote_by_sum(penalised, likeness)
    if way == "powers":
        return vote_by_powers(plain, head.confidences)
    return vote_with_head(penalised, likeness, head.landmark_ids, head.confidences)


def vote_by_sum(neighbors, likeness, num_voters=NUM_VOTERS):
    """Sums, by landmark, the cosines of the 3 best images less their penalties.

    Args:
        neighbors: `gallery.GalleryNeighbors` of n queries.
        likeness: (n,) float32, of each query to non-landmarks; taken off the sum.
        num_voters: images that vote.

    Returns:
        (landmark ids (n,) int64, confidences (n,) float32); -1 and 0 where there is no neighbor.

    Source: psinger/kaggle-landmark-recognition-2020-1st-place
    """
    landmark_ids, weights = _weights(neighbors, num_voters)
    return _most_votes(landmark_ids, weights, likeness)


def vote_with_head(neighbors, likeness, head_landmarks, head_confidences, head_weight=HEAD_WEIGHT):
    """Sums as `vote_by_sum` does, and gives the head one more vote: a quarter of its confidence.

    Args:
        neighbors, likeness: as for `vote_by_sum`.
        head_landmarks: (n,) int64, what the network's head names.
        head_confidences: (n,) float32.
        head_weight: of its confidence.

    Returns:
        As `vote_by_sum`.
    """
    landmark_ids, weights = _weights(neighbors, NUM_VOTERS)
    landmark_ids = np.column_stack([landmark_ids, head_landmarks])
    weights = np.column_stack([weights, head_weight * head_confidences.astype(np.float64)])
    return _most_votes(landmark_ids, weights, likeness)


def vote_by_powers(neighbors, head_confidences):
    """Sums, by landmark, cos^8 of the 5 nearest images; the confidence is that x head^12.

    Args:
        neighbors: `gallery.GalleryNeighbors` of n queries, without penalties.
        head_confidences: (n,) float32 of the network's head.

    Returns:
        As `vote_by_sum`.

    Source: haqishen/Google-Landmark-Recognition-2020-3rd-Place-Solution
    """
    cosines = np.clip(neighbors.cosines[:, :NUM_POWER_VOTERS].astype(np.float64), 0, 1)
    landmark_ids = neighbors.landmark_ids[:, :NUM_POWER_VOTERS]
    named, votes = _most_votes(landmark_ids, cosines**COSINE_POWER, np.zeros(len(neighbors)))
    return named, (votes * head_confidences.astype(np.float64) ** HEAD_POWER).astype(np.float32)


def _weights(neighbors, num_voters):
    """Gives landmarks and votes of the best: cosines from 0 to 1, less penalties."""
    cosines = np.clip(neighbors.cosines.astype(np.float64), 0, 1)
    weights = cosines - neighbors.penalties
    return neighbors.landmark_ids[:, :num_voters], weights[:, :num_voters]


def _most_votes(landmark_ids, weights, likeness):
    """Finds the landmark with the most votes; of equal ones the first.

    Args:
        landmark_ids: (n, k) int64; -1 has no vote.
        weights: (n, k) float64.
        likeness: (n,), taken off the votes.
    """
    is_same = landmark_ids[:, :, None] == landmark_ids[:, None, :]
    votes = np.where(is_same, weights[:, None, :], 0).sum(axis=2)
    votes = np.where(landmark_ids >= 0, votes, -np.inf)
    rows, best = np.arange(len(votes)), votes.argmax(axis=1)
    named, most = landmark_ids[rows, best], votes[rows, best]
    return named, np.where(named >= 0, most - likeness, 0).astype(np.float32)
