"""Tests of the scores by chance, against the mean over guesses."""

import itertools

import numpy as np
import pytest

from data.submissions import RecognitionTruth, RetrievalTruth
from metrics import average_precision, global_average_precision
from report.chance import gap_by_chance, map_by_chance


def test_the_gap_by_chance_is_the_mean_over_all_guesses():
    solution = {
        "a": RecognitionTruth({1}, "Public"),
        "b": RecognitionTruth({2}, "Public"),
        "c": RecognitionTruth({1}, "Ignored"),
    }
    truths = {"a": {1}, "b": {2}}
    scores = [
        global_average_precision({"a": (first, 0.9), "b": (second, confidence)}, truths)
        for first, second in itertools.product((1, 2), repeat=2)
        for confidence in (0.1, 1.0)
    ]
    found = gap_by_chance(solution, 2)
    assert found.keys() == {"Public", "all"}
    assert found["all"] == found["Public"] == pytest.approx(np.mean(scores))


def test_images_without_a_landmark_lower_the_gap_by_chance():
    solution = {"a": RecognitionTruth({1}, "Private"), "b": RecognitionTruth(set(), "Private")}
    # Right with 1 of 4 guesses: it stands first or second, so that it earns 1 or 1/2. Guesses are
    # taken as independent of each other, which adds 1/2 of 1/8 x 1/8 here.
    assert gap_by_chance(solution, 4)["all"] == pytest.approx((1 / 8) * (1.5 + 1 / 16))


def test_the_map_by_chance_is_the_mean_over_all_orders():
    index, relevant = ["a", "b", "c", "d"], {"a", "b"}
    solution = {"q": RetrievalTruth(relevant, "Public"), "r": RetrievalTruth(set(), "Public")}
    mean = np.mean([average_precision(list(o), relevant) for o in itertools.permutations(index)])
    assert map_by_chance(solution, 4)["Public"] == pytest.approx(mean)


def test_of_a_large_index_no_more_than_a_hundred_images_earn_anything():
    solution = {"q": RetrievalTruth({"a"}, "Private")}
    # The one image stands at each rank with 1/1000, and earns 1/rank.
    expected = sum(1 / rank for rank in range(1, 101)) / 1000
    assert map_by_chance(solution, 1000)["all"] == pytest.approx(expected)
