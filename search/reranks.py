"""Reranks of retrieval: the formulas that order a query's images, and what they know of them.

    none          the squared distance d
    divide        d / 1.5 where query and index image show the same landmark
    agreement     cos + 4 a, a the sum over landmarks of how sure both images' names are of them

Sources: `divide` is mayukh18's of 2019; `agreement` adds to the cosine what the 13th place of the
retrieval challenge of 2021 sorted by alone. What each bought: docs/reranks.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data.arrays import Column
from search.candidates import best_by_agreement, key_of_agreement

NAMED_BY = ("head", "both")
# What names an image: its 5 nearest train images, by their cosine to this power, and the head.
NUM_NAMING, NAMING_POWER, HEAD_SHARE = 5, 8, 0.25
NO_LABEL = -1  # fills up rows of labels; of weight 0


@dataclass(frozen=True)
class SoftLabels:
    """The landmarks that some images are said to show."""

    # (n, k) int64, landmark ids, k at least 1; each once in a row, `NO_LABEL` fills up
    labels: np.ndarray
    weights: np.ndarray  # (n, k) float64, 0 to 1, how much speaks for each

    @cached_property
    def landmark_ids(self):
        """(n,) int64, the label of the largest weight; of equal weights the first."""
        best = np.argmax(self.weights, axis=1)[:, None]
        return np.take_along_axis(self.labels, best, axis=1)[:, 0]


def name_by_head(landmark_ids, confidences):
    """Names images by the network's head alone; gives `SoftLabels` of one label each."""
    return SoftLabels(landmark_ids[:, None], np.clip(confidences[:, None].astype(np.float64), 0, 1))


def name_by_neighbors(landmark_ids, cosines):
    """Names images by the true landmarks of their `NUM_NAMING` nearest train images: `SoftLabels`.

    The weight of a landmark is the share of those that show it in the sum of cos^8, times the
    cosine of the nearest of all. In both arrays (n, k) the nearest is first and -1 fills up.
    """
    landmark_ids = landmark_ids[:, :NUM_NAMING]
    cosines = np.clip(cosines[:, :NUM_NAMING].astype(np.float64), 0, 1)
    cosines[landmark_ids == NO_LABEL] = 0
    votes = cosines**NAMING_POWER
    all_votes = votes.sum(axis=1, keepdims=True)
    shares = np.divide(votes, all_votes, out=np.zeros_like(votes), where=all_votes > 0)
    return _sum_by_label(landmark_ids, shares * cosines.max(axis=1, keepdims=True, initial=0))


def name_by_both(of_head, of_neighbors):
    """Joins what two `SoftLabels`s of the same images say; the head has a quarter of the weight."""
    labels = np.concatenate([of_head.labels, of_neighbors.labels], axis=1)
    weights = HEAD_SHARE * of_head.weights, (1 - HEAD_SHARE) * of_neighbors.weights
    return _sum_by_label(labels, np.concatenate(weights, axis=1))


def _sum_by_label(labels, weights):
    """Gives the `SoftLabels` where labels that repeat in a row are one, of their weights' sum."""
    order = np.argsort(labels, axis=1, kind="stable")
    labels = np.take_along_axis(labels, order, axis=1)
    weights = np.take_along_axis(weights, order, axis=1)
    for right in range(1, labels.shape[1]):
        is_same = labels[:, right] == labels[:, right - 1]
        weights[is_same, right] += weights[is_same, right - 1]
        weights[is_same, right - 1] = 0
        labels[is_same, right - 1] = NO_LABEL
    return SoftLabels(labels, np.minimum(weights, 1))  # 1 + 2e-16 would be a distance below 0


AGREEING = {  # columns of a list of candidates, with the agreement of each
    "agreeing_ends": Column("int64", ("queries",), 0, order="ascending"),
    "agreeing_positions": Column("int32", ("agreeing",), 0, below="index images"),
    "agreeing_agreements": Column("float64", ("agreeing",), 0),
    "agreeing_distances": Column("float32", ("agreeing",), 0),
}


@dataclass(frozen=True)
class Rerank:
    """One way to order the images of a query; all that there is to it, see `RERANKS`."""

    measure: str  # what the report says that the number below each picture is
    # function (part, first query, last + 1, divisor) of a `merging.Part`: the candidates as (rows,
    # positions, keys, the lower the better, distances to show). Of an image that is there twice the
    # best place counts.
    order: Callable
    # dict, name -> `Column`, what a part keeps for it beside the nearest of all and those of the
    # query's landmark
    columns: dict = field(default_factory=dict)
    # function (queries, their `SoftLabels`, index, its `SoftLabels`, images wanted per query) that
    # finds these columns, in their order, so that the best of all parts together are among what the
    # parts keep; None where there are none. Descriptors have length 1 then.
    find: Callable | None = None


def _by_distance(part, first, last, divisor):
    rows, positions, distances = part.cut(first, last, "row_ends", "positions", "distances")
    distances = distances.astype(np.float64)
    agrees = part.index_landmarks[positions] == part.query_landmarks[rows]
    distances[agrees] /= divisor
    return rows, positions, distances, distances


def _by_agreement(part, first, last, divisor):
    """Orders what shares a landmark with the query, and the nearest of all beside it."""
    agreeing = part.cut(first, last, *AGREEING)
    rows, positions, distances = part.cut(first, last, "row_ends", "positions", "distances")
    others = rows, positions, np.zeros(len(rows)), distances
    pairs = zip(agreeing, others, strict=True)
    rows, positions, agreements, distances = (np.concatenate(pair) for pair in pairs)
    distances = distances.astype(np.float64)
    return rows, positions, key_of_agreement(distances, agreements), distances


RERANKS = {
    "none": Rerank(
        "the squared distance", lambda part, first, last, _: _by_distance(part, first, last, 1)
    ),
    "divide": Rerank(
        "the squared distance, divided where query and image are said to show one landmark",
        _by_distance,
    ),
    "agreement": Rerank(
        "the squared distance; images that are said to show the query's landmarks go up",
        _by_agreement, AGREEING, best_by_agreement,
    ),
}  # fmt: skip


def default_rerank(recipe):
    """Gives the rerank that does best with the descriptors of a `Recipe`, see docs/reranks.md."""
    return "divide" if recipe.loss.loss == "softmax" else "agreement"
