"""Tests of gallery.py: nearest train images against brute force, however they are split."""

import itertools

import numpy as np
import pytest

from data.arrays import save_table
from descriptors.descriptions import Descriptions, unit_length
from search import gallery as gallery_module
from search.gallery import Gallery, GalleryNeighbors, find_neighbors, likeness_to, merge_neighbors

WIDTH = 12


def unit(rng, num, dtype=np.float32):
    return unit_length(rng.normal(size=(num, WIDTH)).astype(dtype))


def describe(path, image_ids, descriptors):
    """Writes a file of descriptions as a shard's; gives its path."""
    num = len(image_ids)
    found = Descriptions(
        np.array(image_ids, np.uint64), np.zeros(num, np.int64), np.ones(num, np.float32),
        descriptors, np.zeros(num, np.int16), np.zeros((num, 2), np.int64),
    )  # fmt: skip
    save_table(path, found, {})
    return path


def write_gallery(folder, image_ids, descriptors, num_files):
    """Writes a gallery in so many files; the landmark of image i is i modulo 7."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = np.array_split(np.arange(len(image_ids)), num_files)
    paths = [
        describe(folder / f"{number}.npz", image_ids[rows], descriptors[rows])
        for number, rows in enumerate(pieces)
    ]
    wanted = np.unique(image_ids)
    return Gallery(dict.fromkeys(paths), wanted, (wanted % 7).astype(np.int64))


def brute_force(image_ids, descriptors, queries, num):
    """Finds the nearest by float64 arithmetic alone: image ids (n, num), scores alike."""
    rows = unit_length(descriptors.astype(np.float32)).astype(np.float64)
    squared = ((queries.astype(np.float64)[:, None] - rows[None]) ** 2).sum(axis=2)
    scores = 1 - squared / 2
    found = []
    for of_query in scores:
        best = {}
        for image_id, score in zip(image_ids.tolist(), of_query, strict=True):
            best[image_id] = max(score, best.get(image_id, -9))
        found.append(sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:num])
    ids, scores = (np.array([[pair[i] for pair in row] for row in found]) for i in (0, 1))
    return ids.astype(np.uint64), scores


@pytest.fixture(scope="module")
def world():
    """(image ids, float16 descriptors, queries); some images appear twice."""
    rng = np.random.default_rng(3)
    image_ids = rng.permutation(np.arange(100, 400, dtype=np.uint64))
    image_ids[-20:] = image_ids[:20]  # of another picture
    image_ids[-30:-25] = image_ids[-20:-15]  # three times
    descriptors = (3 * unit(rng, 300)).astype(np.float16)  # of any length
    descriptors[40:60] = descriptors[60:80]  # ties
    return image_ids, descriptors, unit(rng, 50)


def as_bytes(neighbors):
    return [column.tobytes() for column in vars(neighbors).values()]


def test_the_nearest_are_those_of_brute_force(world, tmp_path):
    image_ids, descriptors, queries = world
    found = find_neighbors(write_gallery(tmp_path, image_ids, descriptors, 3), queries, 10)
    ids, scores = brute_force(image_ids, descriptors, queries, 10)
    assert (found.image_ids == ids).all()
    assert np.abs(found.cosines - scores).max() < 1e-6
    assert (found.landmark_ids == (ids % 7).astype(np.int64)).all()


def test_files_chunks_and_order_change_nothing(world, tmp_path, monkeypatch):
    image_ids, descriptors, queries = world
    whole = find_neighbors(write_gallery(tmp_path / "a", image_ids, descriptors, 1), queries, 10)
    shuffled = np.random.default_rng(1).permutation(len(image_ids))
    made = write_gallery(tmp_path / "b", image_ids[shuffled], descriptors[shuffled], 7)
    monkeypatch.setattr(gallery_module, "CHUNK_BYTES", 80 * WIDTH * 4)
    assert len(list(made.chunks())) > 5
    assert as_bytes(find_neighbors(made, queries, 10)) == as_bytes(whole)
    parts = [
        find_neighbors(Gallery(dict([one]), made.image_ids, made.landmark_ids), queries, 10)
        for one in made.files.items()
    ]
    for order in itertools.islice(itertools.permutations(parts), 3):
        assert as_bytes(merge_neighbors(list(order), 10)) == as_bytes(whole)


def test_where_the_gallery_is_smaller_landmark_minus_one_fills_up(tmp_path):
    rng = np.random.default_rng(0)
    made = write_gallery(tmp_path, np.array([8, 9], np.uint64), unit(rng, 2), 1)
    found = find_neighbors(made, unit(rng, 4), 3)
    assert (found.landmark_ids[:, 2] == -1).all() and (found.landmark_ids[:, :2] >= 0).all()
    assert (found.cosines[:, 2] == -1).all() and (found.image_ids[:, 2] == 0).all()
    empty = find_neighbors(Gallery({}, made.image_ids, made.landmark_ids), unit(rng, 4), 3)
    assert empty.image_ids.shape == (4, 3) and (empty.landmark_ids == -1).all()


def test_images_without_a_landmark_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    made = write_gallery(tmp_path, np.arange(20, dtype=np.uint64), unit(rng, 20), 2)
    known = Gallery(made.files, made.image_ids[5:10], made.landmark_ids[5:10])
    found = find_neighbors(known, unit(rng, 6), 10)
    assert set(np.unique(found.image_ids[:, :5]).tolist()) == {5, 6, 7, 8, 9}
    assert (found.landmark_ids[:, 5:] == -1).all()


def test_of_an_image_in_two_pieces_the_nearest_counts_and_ties_go_by_id():
    def piece(*images):
        ids, distances = (np.array([column]) for column in zip(*images, strict=True))
        return GalleryNeighbors(ids.astype(np.uint64), ids % 7, distances.astype(np.float32))

    merged = merge_neighbors([piece((3, 0.5), (9, 0.5)), piece((5, 0.5), (3, 0.25))], 3)
    assert merged.image_ids.tolist() == [[3, 5, 9]]
    assert merged.distances.tolist() == [[0.25, 0.5, 0.5]]
    assert merged.cosines.tolist() == [[0.875, 0.75, 0.75]]


def test_likeness_is_the_mean_of_the_ten_largest_cosines_without_the_image_itself():
    images = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], np.float32)
    # Compared with the first two: east with the second alone, north with both, ...
    found = likeness_to(images, np.array([0, 1]))
    assert found.tolist() == pytest.approx([0.6, 0.6, (0 + 0.8) / 2, (0.8 + 0.96) / 2])
    assert likeness_to(images, np.array([], int)).tolist() == [0, 0, 0, 0]
    assert likeness_to(images, np.array([2]))[2] == 0
    angles = np.arange(13) / 20
    many = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    # Twelve others, the ten nearest of which count.
    assert likeness_to(many, np.arange(13))[0] == pytest.approx(np.cos(angles[1:11]).mean())
