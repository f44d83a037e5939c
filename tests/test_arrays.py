"""Tests of files of arrays: atomic, with a digest, checked when they are read."""

import json
import zipfile

import numpy as np
import pytest
from checks import one_line

from data import arrays as arrays_module
from data.arrays import Column, check_arrays, load_arrays, load_page, save_arrays
from utils import ExpectedError

PAGE = {"model": "0123abcd", "rate": 0.1, "shards": [1, 2], "left_out": None}
ARRAYS = {"ids": np.arange(5, dtype=np.uint64), "weights": np.linspace(0, 1, 6).reshape(2, 3)}


def arrays_error(path):
    with pytest.raises(ExpectedError) as caught:
        load_arrays(path)
    message = one_line(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(
        "; expected a whole file written by this project; write or copy it again"
    )
    return message


def test_arrays_and_their_page_come_back(tmp_path):
    save_arrays(tmp_path / "a.npz", PAGE, **ARRAYS)
    arrays, page = load_arrays(tmp_path / "a.npz")
    assert page == PAGE and load_page(tmp_path / "a.npz") == (None, PAGE)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_the_same_arrays_and_page_make_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_arrays(tmp_path / name, PAGE, **ARRAYS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def edit(path, **changed):
    """Writes a file of arrays as anybody could: with all that it has, but for what is changed."""
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | changed)


EDITS = {
    "a value": {"ids": np.array([0, 1, 2, 3, 5], np.uint64)},
    "a dtype": {"ids": np.arange(5)},
    "a shape": {"weights": ARRAYS["weights"].reshape(3, 2)},
    "two arrays in each other's place": {"ids": ARRAYS["weights"], "weights": ARRAYS["ids"]},
    "one more": {"more": np.arange(2)},
}


@pytest.mark.parametrize("changed", EDITS.values(), ids=EDITS)
def test_an_edited_array_is_found_out_by_the_digest(tmp_path, changed):
    save_arrays(tmp_path / "a.npz", PAGE, **ARRAYS)
    edit(tmp_path / "a.npz")
    load_arrays(tmp_path / "a.npz")  # written by another, but the same
    edit(tmp_path / "a.npz", **changed)
    assert "it was changed after it was written (its digest differs)" in arrays_error(
        tmp_path / "a.npz"
    )


def test_an_edited_page_is_found_out_by_the_digest(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, PAGE, **ARRAYS)
    with np.load(path) as file:
        page = json.loads(str(file["page"]))
    edit(path, page=json.dumps(page | {"model": "another"}))
    assert "its digest differs" in arrays_error(path)


def test_a_file_of_before_there_was_a_digest_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", page=json.dumps(PAGE), **ARRAYS)
    assert load_arrays(tmp_path / "a.npz")[1] == PAGE


@pytest.mark.parametrize("page", [None, [], "text", 3, [[1, 2], [3, 4]]])
def test_a_page_that_is_no_table_is_an_expected_error(tmp_path, page):
    np.savez(tmp_path / "a.npz", page=json.dumps(page))
    assert f"its page is {json.dumps(page)}, not a table" in arrays_error(tmp_path / "a.npz")


def header(shape):
    """The bytes of an array of no values that claims a shape."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content", [header((1 << 62,)), header((1 << 40,)), header("("), b"", b"text"]
)
def test_an_array_that_cannot_be_is_an_expected_error(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("ids.npy", content)
    arrays_error(tmp_path / "a.npz")


def test_an_archive_that_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAX_COMPRESSED_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(10_000), page="{}")
    assert "MB that claim to hold 0.1 MB" in arrays_error(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(1000), page="{}")
    load_arrays(tmp_path / "a.npz")


COLUMNS = {
    "ids": Column("uint64", ("images",), order="increasing"),
    "rows": Column("float32 float16", ("images", 2), at_least=0),
    "ends": Column("int64", ("queries",), at_least=0, order="ascending"),
    "positions": Column("int32", ("found",), at_least=0, below="images"),
}


def good_columns():
    return {
        "ids": np.array([3, 5, 2**63], np.uint64),
        "rows": np.ones((3, 2), np.float16),
        "ends": np.array([2, 2, 4]),
        "positions": np.array([0, 2, 1, 2], np.int32),
    }


@pytest.mark.parametrize("num_images", [0, 3])
def test_arrays_that_are_as_they_should_be_pass(num_images):
    arrays = good_columns()
    arrays |= {"ids": arrays["ids"][:num_images], "rows": arrays["rows"][:num_images]}
    if not num_images:
        arrays |= {"positions": arrays["positions"][:0]}
    check_arrays("a.npz", arrays, COLUMNS)


WRONG_COLUMNS = {
    "ids is int64, not uint64": ("ids", np.arange(3)),
    "rows is float64, not float32 or float16": ("rows", np.ones((3, 2))),
    "ids has the shape (3, 1), not (images)": ("ids", np.ones((3, 1), np.uint64)),
    "ids has the shape (), not (images)": ("ids", np.uint64(7)),
    "rows has the shape (2, 2), not (3, 2)": ("rows", np.ones((2, 2), np.float32)),
    "rows has the shape (3, 3), not (3, 2)": ("rows", np.ones((3, 3), np.float32)),
    "rows has the shape (3), not (3, 2)": ("rows", np.ones(3, np.float32)),
    "rows has -1.0, not 0 or more": ("rows", np.full((3, 2), -1, np.float16)),
    "rows has values that are no finite numbers": ("rows", np.full((3, 2), np.nan, np.float32)),
    "ends has -1, not 0 or more": ("ends", np.array([-1, 2, 4])),
    "ends is not ascending": ("ends", np.array([2, 1, 4])),
    "ids is not increasing": ("ids", np.array([3, 3, 5], np.uint64)),
    "positions has 3, not numbers below the 3 of images": ("positions", np.array([3], np.int32)),
}


@pytest.mark.parametrize(("told", "change"), WRONG_COLUMNS.items(), ids=WRONG_COLUMNS)
def test_an_array_that_is_not_as_it_should_be_is_named(told, change):
    with pytest.raises(ExpectedError) as caught:
        check_arrays("a.npz", good_columns() | dict([change]), COLUMNS)
    assert one_line(caught.value) == (
        f"a.npz: {told}; expected ids, rows, ends, positions as this project writes them; "
        "write it again, or give another file"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_in_any_block(monkeypatch, value):
    monkeypatch.setattr(arrays_module, "BLOCK_ROWS", 2)
    arrays = good_columns()
    arrays["rows"][2, 1] = value
    with pytest.raises(ExpectedError, match="rows has values that are no finite numbers"):
        check_arrays("a.npz", arrays, COLUMNS)


def test_arrays_of_other_names_are_listed():
    arrays = good_columns()
    del arrays["ids"]
    with pytest.raises(ExpectedError, match="a.npz: it holds ends, positions, rows; expected ids,"):
        check_arrays("a.npz", arrays, COLUMNS)
