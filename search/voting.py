"""Votes: the landmark that the nearest train images name, and how sure they are; NumPy alone."""

import numpy as np

# The same on two data sets as unlike as 260 and 3 train images for a landmark, see docs/scores.md.
NUM_VOTERS, VOTING_POWER = 3, 8
HEAD_SHARE = 0.1  # of the head's confidence, added where it names the same landmark
# Of the test images, those least like any gallery image stand for what is no landmark: 99% of the
# 117,577 show none, and where only 26% show none the share is still right, see docs/scores.md.
NON_LANDMARK_SHARE = 0.2


def least_like_gallery(neighbors, share=NON_LANDMARK_SHARE):
    """Chooses rows of queries that stand for what is no landmark: the farthest from the gallery."""
    order = np.argsort(-neighbors.distances[:, 0], kind="stable")
    return np.sort(order[: round(share * len(order))])


def vote(neighbors, likeness, head_landmarks, head_confidences):
    """Lets the 3 nearest gallery images of n queries vote.

    By landmark, (sum of cos^8)^(1/8): the nearest decides unless others are hardly farther. The
    likeness to what is no landmark, (n,) float32, is taken off, and a tenth of the head's
    confidence is added where the head names the same. The head outvotes nobody, since it does not
    know rare landmarks.

    Returns:
        (landmark ids (n,) int64, confidences (n,) float32); -1 and 0 where there is no neighbor.

    Source: the power is haqishen's, Google-Landmark-Recognition-2020-3rd-Place-Solution; the
        likeness psinger's, kaggle-landmark-recognition-2020-1st-place.
    """
    landmark_ids = neighbors.landmark_ids[:, :NUM_VOTERS]
    cosines = np.clip(neighbors.cosines[:, :NUM_VOTERS].astype(np.float64), 0, 1)
    is_same = landmark_ids[:, :, None] == landmark_ids[:, None, :]
    votes = np.where(is_same, cosines[:, None, :] ** VOTING_POWER, 0).sum(axis=2)
    votes = np.where(landmark_ids >= 0, votes, -1)
    rows, best = np.arange(len(votes)), votes.argmax(axis=1)  # of equal ones the nearest
    named, most = landmark_ids[rows, best], np.maximum(votes[rows, best], 0) ** (1 / VOTING_POWER)
    agrees = named == head_landmarks
    most += HEAD_SHARE * np.where(agrees, np.clip(head_confidences.astype(np.float64), 0, 1), 0)
    return named, np.where(named >= 0, most - likeness, 0).astype(np.float32)
