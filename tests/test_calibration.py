"""Tests of the threshold below which a photo probably shows no landmark."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from checks import one_line

from data.landmarks import format_image_id
from data.submissions import RecognitionTruth
from report.threshold import (
    Calibration,
    calibrate,
    choose_threshold,
    load_calibration,
    save_calibration,
)
from utils import ExpectedError

CALIBRATION = Calibration("a" * 32, 0.35, 20, 40, 0.9, 0.8)


def test_the_threshold_is_the_middle_of_the_best_gap():
    confidences = np.array([0.1, 0.2, 0.3, 0.4, 0.8, 0.9])
    is_kept = np.array([False, False, True, False, True, True])
    # Above 0.4: 2 of 3 kept, 3 of 3 refused; above 0.2: 3 of 3 kept, 2 of 3 refused, the lower one.
    assert choose_threshold(confidences, is_kept) == pytest.approx(0.25)


def test_the_threshold_is_as_good_as_any_other_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        confidences = rng.integers(0, 12, 30) / 10  # many are equal
        is_kept = rng.random(30) < confidences
        is_kept[:2] = True, False

        def worth(threshold, confidences=confidences, is_kept=is_kept):
            above = confidences >= threshold
            return above[is_kept].mean() + (~above[~is_kept]).mean()

        best = max(
            worth(threshold)
            for threshold in np.arange(-0.05, 1.2, 0.1)
            if np.mean(confidences[is_kept] >= threshold) >= 0.75
        )
        assert worth(choose_threshold(confidences, is_kept)) == pytest.approx(best)


def test_three_of_four_right_names_are_kept_whatever_that_lets_through():
    confidences = np.array([0.1, 0.2, 0.3, 0.4, 0.8])
    is_kept = np.array([True, False, False, False, True])
    # Above 0.4 half of the right names would be lost for three refusals.
    assert choose_threshold(confidences, is_kept) == pytest.approx(0.1)
    confidences, is_kept = np.append(confidences, [0.85, 0.9]), np.append(is_kept, [True, True])
    assert choose_threshold(confidences, is_kept) == pytest.approx(0.6)


def test_equal_confidences_have_no_gap_to_stand_in():
    assert choose_threshold(np.array([0.5, 0.5]), np.array([True, False])) == 0.5


def make_predictions(rows):
    """Makes descriptions and a solution of (confidence, named, true landmarks, usage)."""
    image_ids = np.arange(len(rows), dtype=np.uint64)
    found = SimpleNamespace(
        image_ids=image_ids,
        landmark_ids=np.array([row[1] for row in rows]),
        confidences=np.array([row[0] for row in rows], np.float32),
    )
    truths = [RecognitionTruth(row[2], row[3]) for row in rows]
    return found, dict(zip(map(format_image_id, image_ids), truths, strict=True))


ROWS = [
    (0.9, 7, {7, 8}, "Public"),
    (0.2, 7, set(), "Public"),
    (0.95, 7, {8}, "Public"),  # named wrongly: neither answer would be right
    (0.1, 7, set(), "Private"),
    (0.6, 7, set(), "Private"),
    (0.7, 7, {7}, "Private"),
    (0.3, 7, {7}, "Ignored"),
]


def test_it_is_chosen_on_public_rows_and_checked_on_private_ones():
    found = calibrate("fingerprint", *make_predictions(ROWS))
    assert found.threshold == pytest.approx(0.55)
    assert (found.num_chosen_on, found.num_checked_on) == (2, 3)
    assert (found.kept, found.refused) == (1.0, 0.5)


def test_private_rows_do_not_move_the_threshold():
    moved = [row if row[3] == "Public" else (0.99, *row[1:]) for row in ROWS]
    thresholds = [calibrate("f", *make_predictions(rows)).threshold for rows in (ROWS, moved)]
    assert thresholds[0] == thresholds[1]


@pytest.mark.parametrize("left_out", [0, 1, 5])
def test_without_one_kind_of_image_there_is_no_calibration(left_out):
    rows = [row for place, row in enumerate(ROWS) if place != left_out]
    assert calibrate("f", *make_predictions(rows)) is None


@pytest.mark.parametrize("threshold", [CALIBRATION.threshold, -0.2])  # of cosines
def test_a_calibration_reads_back_equal(tmp_path, threshold):
    calibration = replace(CALIBRATION, threshold=threshold)
    save_calibration(tmp_path / "calibration.json", calibration)
    assert load_calibration(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", json.dumps(vars(CALIBRATION) | {"threshold": "high"}),
     json.dumps(vars(CALIBRATION) | {"threshold": float("nan")}),
     json.dumps(vars(CALIBRATION) | {"threshold": 10**400}),
     json.dumps(vars(CALIBRATION) | {"threshold": 1e308}),
     json.dumps(vars(CALIBRATION) | {"kept": 7}),
     json.dumps(vars(CALIBRATION) | {"num_chosen_on": "<b>"}),
     "[" * 100_000],
)  # fmt: skip
def test_an_odd_calibration_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ExpectedError) as caught:
        load_calibration(path)
    assert one_line(caught.value).startswith(f"{path}: ")
