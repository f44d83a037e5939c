"""Tests of the reranks' formulas, worked by hand."""

import numpy as np
import pytest

from recipes import RECIPES
from search.reranks import (
    NO_LABEL,
    SoftLabels,
    default_rerank,
    name_by_both,
    name_by_head,
    name_by_neighbors,
)


def weights_of(naming):
    """Lists the labels of each image with their weights, as dicts."""
    assert (naming.weights[naming.labels == NO_LABEL] == 0).all()
    rows = zip(naming.labels.tolist(), naming.weights.tolist(), strict=True)
    return [
        {label: weight for label, weight in zip(*row, strict=True) if label != NO_LABEL}
        for row in rows
    ]


def test_the_head_names_one_landmark_with_its_confidence():
    naming = name_by_head(np.array([7, 9]), np.array([0.25, -0.5], np.float32))
    assert weights_of(naming) == [{7: 0.25}, {9: 0}]
    assert naming.landmark_ids.tolist() == [7, 9]
    assert naming.weights.max(axis=1).tolist() == [0.25, 0]


def test_the_five_nearest_share_the_weight_of_the_first_by_their_eighth_powers():
    """Eighth powers of 0.9, 0.8, 0.7, 0.6, 0.5 in millionths; the sixth does not count."""
    landmarks = np.array([[7, 9, 7, 4, 7, 9]])
    naming = name_by_neighbors(landmarks, np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]]))
    powers = {7: 430_467 + 57_648 + 3_906, 9: 167_772, 4: 16_796}
    wanted = {landmark: 0.9 * power / sum(powers.values()) for landmark, power in powers.items()}
    assert weights_of(naming) == [pytest.approx(wanted, rel=1e-5)]
    assert naming.landmark_ids.tolist() == [7]
    assert naming.weights.max(axis=1) == pytest.approx([wanted[7]], rel=1e-5)


def test_two_neighbors_that_are_hardly_farther_outvote_the_nearest():
    naming = name_by_neighbors(np.array([[3, 8, 8]]), np.array([[0.9, 0.85, 0.85]]))
    assert naming.landmark_ids.tolist() == [8]


def test_neighbors_that_are_missing_or_on_the_other_side_weigh_nothing():
    naming = name_by_neighbors(np.array([[5, 6, -1], [5, -1, -1]]), np.array([[0.5, -0.5, -1]] * 2))
    assert weights_of(naming) == [{5: 0.5, 6: 0}, {5: 0.5}]
    nobody = name_by_neighbors(np.array([[5, -1]]), np.array([[-0.5, -1]]))
    assert weights_of(nobody) == [{5: 0}]


def test_five_equal_pictures_are_as_sure_as_can_be():
    naming = name_by_neighbors(np.full((1, 5), 3), np.full((1, 5), 1 + 1e-7))
    assert naming.weights.max(axis=1).tolist() == [1]


def test_the_head_has_a_quarter_of_the_weight_beside_the_neighbors():
    of_head = name_by_head(np.array([7]), np.array([0.75]))
    of_neighbors = SoftLabels(np.array([[7, 9]]), np.array([[0.25, 0.5]]))
    naming = name_by_both(of_head, of_neighbors)
    assert weights_of(naming) == [{7: 0.375, 9: 0.375}]
    assert naming.landmark_ids.tolist() == [7]


def test_of_equal_weights_the_smaller_landmark_goes_first():
    naming = name_by_neighbors(np.array([[9, 4]]), np.array([[0.5, 0.5]]))
    assert naming.landmark_ids.tolist() == [4]


def test_no_images_have_no_names():
    naming = name_by_neighbors(np.empty((0, 5), np.int64), np.empty((0, 5)))
    assert len(naming.labels) == len(naming.landmark_ids) == 0


def test_a_recipe_says_which_rerank_its_descriptors_want():
    found = {name: default_rerank(recipe) for name, recipe in RECIPES.items()}
    assert found.pop("2019") == "divide"
    assert set(found.values()) == {"agreement"}
    assert default_rerank(RECIPES["2019"].changed(loss="cosine")) == "agreement"  # no margin
