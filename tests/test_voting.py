"""Tests of voting.py: each formula by hand."""

import numpy as np
import pytest

from search.gallery import GalleryNeighbors
from search.voting import (
    VOTES,
    least_like_gallery,
    vote,
    vote_by_powers,
    vote_by_sum,
    vote_with_head,
)


def neighbors(landmark_ids, cosines, penalties=None):
    """Makes `GalleryNeighbors` of one query, or of several given as rows."""
    landmark_ids, cosines = np.atleast_2d(landmark_ids), np.atleast_2d(cosines)
    penalties = np.zeros(cosines.shape) if penalties is None else np.atleast_2d(penalties)
    return GalleryNeighbors(
        np.arange(cosines.size, dtype=np.uint64).reshape(cosines.shape),
        landmark_ids,
        (2 * (1 - cosines + penalties)).astype(np.float32),
        penalties.astype(np.float32),
    )


def told(voted):
    """Gives landmark and confidence of the only query."""
    landmark_ids, confidences = voted
    assert landmark_ids.dtype == np.int64 and confidences.dtype == np.float32
    return landmark_ids[0], pytest.approx(confidences[0], abs=1e-6)


NO_LIKENESS = np.zeros(1, np.float32)


def test_the_sum_of_the_three_best_names_the_landmark():
    found = neighbors([5, 7, 7, 7], [0.9, 0.6, 0.5, 0.5])
    assert told(vote_by_sum(found, NO_LIKENESS)) == (7, 1.1)


def test_each_image_votes_less_its_penalty_and_the_query_loses_its_likeness():
    found = neighbors([7, 5, 7], [0.8, 0.9, 0.6], [0.0, 0.1, 0.2])
    # 7: 0.8 + (0.6 - 0.2) = 1.2; 5: 0.9 - 0.1 = 0.8; less 0.25.
    assert told(vote_by_sum(found, np.array([0.25], np.float32))) == (7, 0.95)


def test_a_cosine_below_0_counts_as_0():
    found = neighbors([5, 7], [-0.3, -0.5], [0.0, 0.1])
    assert told(vote_by_sum(found, NO_LIKENESS)) == (5, 0.0)


def test_of_equal_sums_the_one_of_the_best_image_is_named():
    assert told(vote_by_sum(neighbors([9, 4], [0.5, 0.5]), NO_LIKENESS)) == (9, 0.5)


def test_the_head_has_a_quarter_of_a_vote():
    found, confidence = neighbors([5, 7, 7], [0.5, 0.25, 0.125]), np.array([0.8], np.float32)
    # 5: 0.5; 7: 0.375 + 0.25 x 0.8 = 0.575.
    assert told(vote_with_head(found, NO_LIKENESS, np.array([7]), confidence)) == (7, 0.575)
    assert told(vote_with_head(found, NO_LIKENESS, np.array([3]), confidence)) == (5, 0.5)


def test_the_head_names_what_no_neighbor_shows_where_it_is_surer():
    found = neighbors([5], [0.1])
    voted = vote_with_head(found, NO_LIKENESS, np.array([3]), np.array([0.8], np.float32))
    assert told(voted) == (3, 0.2)


def test_powers_sum_the_eighth_powers_of_five_and_multiply_by_the_heads_twelfth():
    found = neighbors([5, 7, 7, 7, 5, 7], [0.9, 0.8, 0.8, 0.8, 0.7, 0.9])
    # 5: 0.9^8 + 0.7^8 = 0.43046721 + 0.05764801; 7: 3 x 0.8^8 = 0.50331648.
    expected = 0.50331648 * 0.9**12
    assert told(vote_by_powers(found, np.array([0.9], np.float32))) == (7, expected)


def test_nobody_is_named_where_there_is_no_neighbor():
    found = neighbors([-1, -1, -1], [-1, -1, -1])
    likeness = np.array([0.5], np.float32)
    assert told(vote_by_sum(found, likeness)) == (-1, 0.0)
    assert told(vote_by_powers(found, likeness)) == (-1, 0.0)


def test_those_least_like_the_gallery_are_the_queries_whose_nearest_is_farthest():
    found = neighbors([[1], [1], [1], [1], [1]], [[0.9], [0.1], [0.5], [0.1], [0.8]])
    assert least_like_gallery(found, 0.4).tolist() == [1, 3]
    assert least_like_gallery(found, 0.2).tolist() == [1]  # a tie goes by id
    assert least_like_gallery(found, 0.0).tolist() == []


def test_every_vote_has_its_own_way():
    class Head:
        landmark_ids, confidences = np.array([3]), np.array([0.5], np.float32)

    plain = neighbors([5, 7], [0.9, 0.8])
    penalised = neighbors([7, 5], [0.8, 0.9], [0.0, 0.5])
    found = {way: told(vote(way, plain, penalised, NO_LIKENESS, Head)) for way in VOTES}
    assert found == {"head": (7, 0.8), "sum": (7, 0.8), "powers": (5, 0.9**8 * 0.5**12)}
