"""Tests of the files of descriptions: what comes back, and what is refused."""

from dataclasses import asdict

import numpy as np
import pytest
from checks import one_line

from data.arrays import save_arrays, save_table
from descriptors.descriptions import (
    Descriptions,
    load_descriptions,
    load_image_ids,
    load_queries,
    unit_length,
)
from utils import ExpectedError

FINGERPRINT = {"model": "0123abcd", "images": "aa"}


def make_descriptions(dtype=np.float32):
    return Descriptions(
        np.array([9, 3, 2**63], np.uint64),
        np.array([17, 5, 17]),
        np.array([0.5, 1, 0], np.float32),
        np.arange(12).reshape(3, 4).astype(dtype),
        np.array([0, 0, 1], np.int16),
        np.array([[512, 10], [1024, 20], [512, 30]]),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_descriptions_come_back(tmp_path, dtype):
    path = tmp_path / "queries.npz"
    save_table(path, make_descriptions(dtype), FINGERPRINT)
    found, fingerprint = load_descriptions(path)
    assert fingerprint == FINGERPRINT
    for name, column in asdict(make_descriptions(dtype)).items():
        np.testing.assert_array_equal(getattr(found, name), column)
        assert getattr(found, name).dtype == column.dtype


def test_halves_whose_squares_no_half_holds_get_length_1():
    rows = np.array([[300, 400, 0], [0, 0, 0], [0, -3e4, 4e4]], np.float16)
    scaled = unit_length(rows)
    assert scaled.dtype == np.float16 and rows[0, 0] == 300
    np.testing.assert_allclose(scaled, [[0.6, 0.8, 0], [0, 0, 0], [0, -0.6, 0.8]], atol=5e-4)


WRONG = {
    "image_ids is int64, not uint64": ("image_ids", np.arange(3)),
    "landmark_ids has the shape (2), not (3)": ("landmark_ids", np.arange(2)),
    "confidences has -2.0, not -1 or more": ("confidences", np.full(3, -2, np.float32)),
    "descriptors has the shape (12), not (3, channels)": ("descriptors", np.ones(12, np.float32)),
    "descriptors has values that are no finite numbers": (
        *("descriptors", np.full((3, 4), np.nan, np.float16)),
    ),
    "shard_numbers has -1, not 0 or more": ("shard_numbers", np.full(3, -1, np.int16)),
    "locations has the shape (3, 3), not (3, 2)": ("locations", np.zeros((3, 3), int)),
}


@pytest.mark.parametrize(("told", "change"), WRONG.items(), ids=WRONG)
def test_edited_descriptions_are_refused(tmp_path, told, change):
    path = tmp_path / "queries.npz"
    save_arrays(path, FINGERPRINT, **asdict(make_descriptions()) | dict([change]))
    with pytest.raises(ExpectedError) as caught:
        load_descriptions(path)
    assert one_line(caught.value).startswith(f"{path}: {told}; expected image_ids, landmark_ids, ")


def test_other_arrays_are_no_descriptions(tmp_path):
    save_arrays(tmp_path / "part.npz", FINGERPRINT, row_ends=np.arange(3))
    with pytest.raises(ExpectedError) as caught:
        load_descriptions(tmp_path / "part.npz")
    assert "it holds row_ends; expected image_ids, " in one_line(caught.value)


def test_queries_are_in_the_order_of_their_ids(tmp_path):
    path = tmp_path / "queries.npz"
    save_table(path, make_descriptions(), FINGERPRINT)
    with pytest.raises(ExpectedError, match="image_ids is not increasing"):
        load_queries(path)
    in_order = asdict(make_descriptions()) | {"image_ids": np.array([3, 9, 2**63], np.uint64)}
    save_table(path, Descriptions(**in_order), FINGERPRINT)
    assert load_queries(path)[0].image_ids.tolist() == [3, 9, 2**63]


def test_the_image_ids_come_back_alone(tmp_path):
    path = tmp_path / "images_000.npz"
    save_table(path, make_descriptions(), FINGERPRINT)
    image_ids, fingerprint = load_image_ids(path)
    assert image_ids.tolist() == [9, 3, 2**63] and fingerprint == FINGERPRINT
