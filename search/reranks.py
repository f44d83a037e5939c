"""Reranks of retrieval: the formulas that order a query's images, and what they know of them.

    none          the squared distance d
    divide        d / 1.5 where query and index image show the same landmark
    confidence    cos + c where they do, else cos - 0.1 c; c is how sure the index image's name is
    soft          first what shares landmarks with the query, by how much, then the nearest others

Sources: `divide` is mayukh18's of 2019, `confidence` Henkel's, arXiv:2110.03786 (first place
of the retrieval challenge of 2021), `soft` that of the 13th place there. What each bought:
docs/reranks.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data.arrays import Column

NAMED_BY = ("head", "gallery", "both")
SOFT_NEIGHBORS = 5  # nearest train images that make an image's soft labels
# Of the confidence of an index image that shows another landmark: the surer its own landmark is,
# the less likely it is the query's.
OTHER_LANDMARK = 0.1
AGREEING_OFFSET = 2  # see `confidence_dimensions`
NO_LABEL = -1  # fills up rows of labels; of weight 0


@dataclass(frozen=True)
class Naming:
    """The landmarks that some images are said to show.

    Attributes:
        labels: (n, k) int64, landmark ids, k at least 1; each once in a row, `NO_LABEL` fills up.
        weights: (n, k) float64, 0 to 1, how much speaks for each.
    """

    labels: np.ndarray
    weights: np.ndarray

    def __len__(self):
        return len(self.labels)

    @cached_property
    def landmark_ids(self):
        """(n,) int64, the label of the largest weight; of equal weights the first."""
        return np.take_along_axis(self.labels, self._best, axis=1)[:, 0]

    @cached_property
    def confidences(self):
        """(n,) float64, the weight of that label."""
        return np.take_along_axis(self.weights, self._best, axis=1)[:, 0]

    @cached_property
    def _best(self):
        return np.argmax(self.weights, axis=1)[:, None]


def name_by_head(landmark_ids, confidences):
    """Names images by the network's head alone.

    Args:
        landmark_ids: (n,) int64.
        confidences: (n,) float32, probabilities or cosines.

    Returns:
        `Naming` of one label each.
    """
    return Naming(landmark_ids[:, None], np.clip(confidences[:, None].astype(np.float64), 0, 1))


def name_by_neighbors(landmark_ids, cosines):
    """Names images by the true landmarks of their `SOFT_NEIGHBORS` nearest train images.

    The weight of a landmark is the sum of the cosines of those that show it, divided by 5.

    Args:
        landmark_ids: (n, k) int64, nearest first; where there are fewer, -1.
        cosines: (n, k) float32; one below 0 counts as 0.

    Returns:
        `Naming`.
    """
    landmark_ids = landmark_ids[:, :SOFT_NEIGHBORS]
    cosines = np.clip(cosines[:, :SOFT_NEIGHBORS].astype(np.float64), 0, 1)
    cosines[landmark_ids == NO_LABEL] = 0
    return _sum_by_label(landmark_ids, cosines / SOFT_NEIGHBORS)


def name_by_both(of_head, of_neighbors):
    """Joins what two `Naming`s of the same images say; each counts half."""
    labels = np.concatenate([of_head.labels, of_neighbors.labels], axis=1)
    weights = np.concatenate([of_head.weights, of_neighbors.weights], axis=1)
    return _sum_by_label(labels, weights / 2)


def _sum_by_label(labels, weights):
    """Gives the `Naming` where labels that repeat in a row are one, of their weights' sum."""
    order = np.argsort(labels, axis=1, kind="stable")
    labels = np.take_along_axis(labels, order, axis=1)
    weights = np.take_along_axis(weights, order, axis=1)
    for right in range(1, labels.shape[1]):
        is_same = labels[:, right] == labels[:, right - 1]
        weights[is_same, right] += weights[is_same, right - 1]
        weights[is_same, right - 1] = 0
        labels[is_same, right - 1] = NO_LABEL
    return Naming(labels, np.minimum(weights, 1))  # 1 + 2e-16 would be a distance below 0


def default_rerank(recipe):
    """Gives the rerank that does best with the descriptors of a recipe, see docs/reranks.md.

    Args:
        recipe: `recipes.Recipe`.
    """
    return "divide" if recipe.loss.loss == "softmax" else "soft"


def confidence_dimensions(confidences):
    """Writes Henkel's rerank as squared distances: one more dimension of the search.

    Between vectors of length 1 the squared distance d is 2 - 2 cos, so that the order by
    cos - 0.1 c is that by d + 0.2 c, and the order by cos + c that by d - 2 c. The first is the
    squared distance from (q, 0) to (x, sqrt(0.2 c)), the second that to (x, sqrt(2 - 2 c)), less 2.

    Args:
        confidences: (n,) float64, 0 to 1, of the index images.

    Returns:
        (values where the landmarks differ, values where they agree): (n,) float32 each.
    """
    differ, agree = np.sqrt(2 * OTHER_LANDMARK * confidences), np.sqrt(2 - 2 * confidences)
    return differ.astype(np.float32), agree.astype(np.float32)


# ----------------------------------------------------------------------------------- the reranks


@dataclass(frozen=True)
class Rerank:
    """One way to order the images of a query; all that there is to it, see `RERANKS`.

    Attributes:
        measure: what the report says that the number below each picture is.
        order: function (part, first query, last + 1, divisor) of a `merging.Part`: the candidates
            as (rows, positions, list of keys, the lower the better and the first decides, distances
            to show). Of an image that is there twice the best place counts.
        columns: dict, name -> `Column`, what a part keeps for it beside the nearest of all and
            those of the query's landmark.
        find: function (queries, their `Naming`, index, its `Naming`, images wanted per query,
            propose) that finds these columns, so that the best of all parts together are among
            what the parts keep; None where there are none. Descriptors have length 1 then.
    """

    measure: str
    order: Callable
    columns: dict = field(default_factory=dict)
    find: Callable | None = None


def _by_distance(part, first, last, divisor):
    rows, positions, distances = part.cut(first, last, "row_ends", "positions", "distances")
    distances = distances.astype(np.float64)
    agrees = part.index_landmarks[positions] == part.query_landmarks[rows]
    distances[agrees] /= divisor
    return rows, positions, [distances], distances


def _by_plain_distance(part, first, last, divisor):
    return _by_distance(part, first, last, 1)


def _by_confidence(part, first, last, divisor):
    names = "confident_ends", "confident_positions", "confident_scores"
    rows, positions, scores = part.cut(first, last, *names)
    return rows, positions, [scores], scores


def _find_confident(queries, query_names, index, index_names, num_nearest, propose):
    from search.candidates import best_by_confidence  # it loads faiss

    found = best_by_confidence(queries, query_names, index, index_names, num_nearest, propose)
    columns = found.row_ends, found.positions, found.scores
    return dict(zip(RERANKS["confidence"].columns, columns, strict=True))


def _by_soft_labels(part, first, last, divisor):
    """Orders those with a common label; behind them come the nearest of all images."""
    names = "soft_ends", "soft_positions", "soft_scores", "soft_distances"
    alike = part.cut(first, last, *names)
    rows, positions, distances = part.cut(first, last, "row_ends", "positions", "distances")
    others = rows, positions, np.zeros(len(rows)), distances
    pairs = zip(alike, others, strict=True)
    rows, positions, scores, distances = (np.concatenate(pair) for pair in pairs)
    return rows, positions, [-scores, distances], distances.astype(np.float64)


def _find_soft(queries, query_names, index, index_names, num_nearest, propose):
    from search.candidates import best_by_soft_labels  # it loads faiss

    found = best_by_soft_labels(queries, query_names, index, index_names, num_nearest)
    columns = found.row_ends, found.positions, found.scores, found.distances
    return dict(zip(RERANKS["soft"].columns, columns, strict=True))


def _ragged(name, **values):
    """Declares the columns of a list of candidates: where rows end, positions, and values."""
    columns = {
        "ends": Column("int64", ("queries",), at_least=0, order="ascending"),
        "positions": Column("int32", (name,), at_least=0, below="index images"),
    }
    columns |= {key: Column(dtype, (name,), least) for key, (dtype, least) in values.items()}
    return {f"{name}_{key}": column for key, column in columns.items()}


RERANKS = {
    "none": Rerank("the squared distance", _by_plain_distance),
    "divide": Rerank(
        "the squared distance, divided where query and image are said to show one landmark",
        _by_distance,
    ),
    "confidence": Rerank(
        "the squared distance, changed by how surely it is said to show the query's landmark or "
        "another one",
        _by_confidence,
        _ragged("confident", scores=("float64", None)),
        _find_confident,
    ),
    "soft": Rerank(
        "the squared distance; images that share landmarks with the query come first",
        _by_soft_labels,
        _ragged("soft", scores=("float64", 0), distances=("float32", 0)),
        _find_soft,
    ),
}
