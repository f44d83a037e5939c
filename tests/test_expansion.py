"""Tests of query expansion and database augmentation: by hand, and against brute force."""

import numpy as np
import pytest
from test_gallery import describe

from descriptors.descriptions import unit_length
from search import expansion, gallery
from search.expansion import expand, index_of

NUM_INDEX, WIDTH = 40, 6


def write_index(folder, image_ids, descriptors, rows_of_files):
    """Writes the whole index in files of these rows."""
    folder.mkdir()
    files = {}
    for number, rows in enumerate(rows_of_files):
        files[describe(folder / f"{number}.npz", image_ids[rows], descriptors[rows])] = None
    return index_of(files, image_ids)


@pytest.fixture
def images():
    """Ids in no order and descriptors of length 1, with twins among them."""
    rng = np.random.default_rng(0)
    different = unit_length(rng.normal(size=(30, WIDTH)).astype(np.float32) + 1)
    ids = rng.permutation(1000)[:NUM_INDEX].astype(np.uint64) << np.uint64(50)
    return ids, different[rng.integers(30, size=NUM_INDEX)]


def by_brute_force(image_id, vector, image_ids, descriptors, num_summed):
    """Sums up in float64 and scales to length 1."""
    vector, others = vector.astype(np.float64), descriptors.astype(np.float64)
    squared = ((others - vector) ** 2).sum(axis=1).astype(np.float32)
    order = [row for row in np.lexsort((image_ids, squared)) if image_ids[row] != image_id]
    total = vector.copy()
    for row in order[: num_summed - 1]:
        total += max(0.0, 1 - squared[row] / 2) ** 3 * others[row]
    return total / np.linalg.norm(total)


def test_a_sum_of_two_by_hand(tmp_path):
    """From (1, 0): (0.8, 0.6) has the cosine 0.8; 0.512 of it make (1.4096, 0.3072)."""
    ids = np.array([5, 6, 7], np.uint64)
    vectors = np.array([[0.8, 0.6], [0.6, -0.8], [0, 1]], np.float32)
    index = write_index(tmp_path / "index", ids, vectors, [[0, 1, 2]])
    query = np.array([[1, 0]], np.float32)
    expected = np.array([1.4096, 0.3072]) / np.hypot(1.4096, 0.3072)
    found = expand(np.array([9], np.uint64), query, index, 2)
    np.testing.assert_allclose(found, [expected], atol=1e-6)
    # 0.216 of the second, then the third, which has the cosine 0, the weight 0.
    expected = np.array([1.5392, 0.1344]) / np.hypot(1.5392, 0.1344)
    for num_summed in (3, 4):
        found = expand(np.array([9], np.uint64), query, index, num_summed)
        np.testing.assert_allclose(found, [expected], atol=1e-6)


@pytest.mark.parametrize("num_summed", [1, 2, 10, 100])
def test_an_expansion_is_a_sum_over_the_nearest(images, tmp_path, num_summed):
    ids, vectors = images
    index = write_index(tmp_path / "index", ids, vectors, np.array_split(np.arange(NUM_INDEX), 3))
    found = expand(ids, vectors, index, num_summed)
    assert found.dtype == np.float32
    expected = [
        by_brute_force(*image, ids, vectors, num_summed) for image in zip(*images, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_an_image_is_no_neighbor_of_its_own_but_its_twin_is(tmp_path):
    """The third lies beyond both; if the first counted itself, the sum would not see the twin."""
    ids = np.array([1, 2, 3], np.uint64)
    vectors = np.array([[1, 0], [1, 0], [0.6, 0.8]], np.float32)
    index = write_index(tmp_path / "index", ids, vectors, [[0, 1, 2]])
    np.testing.assert_array_equal(expand(ids, vectors, index, 2)[:2], vectors[:2])
    without_twin = expand(ids[:1], vectors[:1], index_of(index.files, ids[[0, 2]]), 2)
    total = np.array([1 + 0.216 * 0.6, 0.216 * 0.8])
    np.testing.assert_allclose(without_twin, [total / np.linalg.norm(total)], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_files_chunks_and_rows_in_any_order_give_the_same_bits(
    images, tmp_path, monkeypatch, dtype
):
    """Rows as float64 show every bit of a sum; files have float32 then."""
    ids, vectors = images[0], unit_length(images[1].astype(dtype))
    stored = vectors.astype(np.float32) if dtype == np.float64 else vectors
    rng = np.random.default_rng(1)
    one = write_index(tmp_path / "one", ids, stored, [np.arange(NUM_INDEX)])
    expected = expand(ids, vectors, one, 10)
    assert expected.dtype == dtype
    for number, num_files in enumerate((3, 9)):
        rows = np.array_split(rng.permutation(NUM_INDEX), num_files)
        index = write_index(tmp_path / str(number), ids, stored, rows)
        monkeypatch.setattr(gallery, "CHUNK_BYTES", 10 * WIDTH * 4 * number + 1)
        monkeypatch.setattr(expansion, "BLOCK_ROWS", 1 + number)
        some = rng.permutation(NUM_INDEX)[:15]
        np.testing.assert_array_equal(expand(ids, vectors, index, 10), expected)
        np.testing.assert_array_equal(expand(ids[some], vectors[some], index, 10), expected[some])


def test_an_image_in_two_files_counts_once(images, tmp_path):
    ids, vectors = images
    once = write_index(tmp_path / "once", ids, vectors, [np.arange(NUM_INDEX)])
    twice = write_index(tmp_path / "twice", ids, vectors, [np.arange(NUM_INDEX), np.arange(9)])
    np.testing.assert_array_equal(expand(ids, vectors, twice, 5), expand(ids, vectors, once, 5))


def test_nothing_is_expanded_by_nothing(images, tmp_path):
    ids, vectors = images
    empty = index_of({}, ids[:0])
    np.testing.assert_allclose(expand(ids, vectors, empty, 5), vectors, atol=1e-6)
    assert expand(ids[:0], vectors[:0], empty, 5).shape == (0, WIDTH)
