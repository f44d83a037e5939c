"""Tests of voting.py: each formula by hand."""

import numpy as np
import pytest

from search.gallery import GalleryNeighbors
from search.voting import least_like_gallery, vote


def neighbors(landmark_ids, cosines):
    """Makes `GalleryNeighbors` of one query, or of several given as rows."""
    landmark_ids, cosines = np.atleast_2d(landmark_ids), np.atleast_2d(cosines)
    return GalleryNeighbors(
        np.arange(cosines.size, dtype=np.uint64).reshape(cosines.shape),
        landmark_ids,
        (2 * (1 - cosines)).astype(np.float32),
    )


def told(found, likeness=0.0, head=3, sure=0.0):
    """Gives landmark and confidence of the only query."""
    sides = ([likeness], "f"), ([head], int), ([sure], "f")
    landmark_ids, confidences = vote(found, *(np.array(*side) for side in sides))
    assert landmark_ids.dtype == np.int64 and confidences.dtype == np.float32
    return landmark_ids[0], pytest.approx(confidences[0], abs=1e-6)


def test_two_that_are_hardly_farther_outvote_the_nearest_and_the_fourth_has_no_vote():
    # 5: 0.8^8 = 0.168; 7: 0.78^8 + 0.75^8 = 0.137 + 0.100.
    found = neighbors([5, 7, 7, 5], [0.8, 0.78, 0.75, 0.74])
    assert told(found) == (7, (0.78**8 + 0.75**8) ** 0.125)


def test_two_that_are_far_do_not():
    assert told(neighbors([5, 7, 7], [0.8, 0.7, 0.7])) == (5, 0.8)


def test_the_likeness_to_what_is_no_landmark_is_taken_off():
    assert told(neighbors([5], [0.8]), likeness=0.25) == (5, 0.55)


def test_what_is_more_like_no_landmark_than_like_any_is_less_sure_than_0():
    assert told(neighbors([5], [0.1]), likeness=0.4) == (5, -0.3)


def test_a_cosine_below_0_counts_as_0():
    assert told(neighbors([5, 7], [-0.3, -0.5])) == (5, 0.0)


def test_of_equal_votes_the_one_of_the_best_image_is_named():
    assert told(neighbors([9, 4], [0.5, 0.5])) == (9, 0.5)


def test_a_head_that_agrees_makes_surer_and_one_that_does_not_changes_nothing():
    found = neighbors([5, 7], [0.5, 0.4])
    assert told(found, head=5, sure=0.8) == (5, 0.58)
    assert told(found, head=7, sure=0.8) == told(found, head=3, sure=0.8) == (5, 0.5)
    assert told(found, head=5, sure=-0.8) == (5, 0.5)


def test_nobody_is_named_where_there_is_no_neighbor():
    assert told(neighbors([-1, -1, -1], [-1, -1, -1]), likeness=0.5) == (-1, 0.0)


def test_those_least_like_the_gallery_are_the_queries_whose_nearest_is_farthest():
    found = neighbors([[1], [1], [1], [1], [1]], [[0.9], [0.1], [0.5], [0.1], [0.8]])
    assert least_like_gallery(found, 0.4).tolist() == [1, 3]
    assert least_like_gallery(found, 0.2).tolist() == [1]  # a tie goes by id
    assert least_like_gallery(found, 0.0).tolist() == []
