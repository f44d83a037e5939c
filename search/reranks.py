"""Reranks of retrieval: the formulas that order a query's images, and what they know of them.

    none          the squared distance d
    divide        d / 1.5 where query and index image show the same landmark
    confidence    cos + c where they do, else cos - 0.1 c; c is how sure the index image's name is
    soft          first what shares landmarks with the query, by how much, then the nearest others

Sources: `divide` is mayukh18's of 2019, `confidence` Henkel's, arXiv:2110.03786 (first place
of the retrieval challenge of 2021), `soft` that of the 13th place there. What each bought:
docs/reranks.md.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

RERANKS = ("none", "divide", "confidence", "soft")
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
