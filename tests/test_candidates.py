"""Tests of the candidates of each rerank: parts = flat = brute force."""

import numpy as np
import pytest

from descriptors.descriptions import unit_length
from search import candidates
from search.candidates import best_by_agreement
from search.exact import find_candidates, nearest
from search.merging import Part, merge_parts
from search.reranks import RERANKS, SoftLabels

TOP = 6


class World:
    """Random images of length 1 on a coarse grid, so that there are twins and ties.

    Args:
        seed: of everything.
        num_index, num_queries, num_landmarks: how many.
        num_labels: labels of an image.
        dtype: of the descriptors.
    """

    def __init__(
        self, seed, num_index=80, num_queries=12, num_landmarks=5, num_labels=3, dtype="float32"
    ):
        self.rng = np.random.default_rng(seed)
        different = unit_length(self.rng.integers(-2, 3, (50, 5)).astype(dtype) + dtype_one(dtype))
        of_index = self.rng.integers(50, size=num_index)
        self.index, self.queries = different[of_index], different[:num_queries]
        ids = self.rng.permutation(2**12)[:num_index].astype(np.uint64)
        self.index_ids = ids << np.uint64(52)
        shape = (50, num_labels)
        names = self.make_names(shape, num_landmarks)
        self.index_names = SoftLabels(names.labels[of_index], names.weights[of_index])  # twins, too
        self.query_names = self.make_names((num_queries, num_labels), num_landmarks)

    def make_names(self, shape, num_landmarks):
        labels = np.sort(self.rng.integers(num_landmarks, size=shape), axis=1)
        weights = self.rng.choice([0, 0.125, 0.25, 1 / 3, 1], shape)
        is_repeated = np.zeros(shape, bool)
        is_repeated[:, 1:] = labels[:, 1:] == labels[:, :-1]
        return SoftLabels(np.where(is_repeated, -1, labels), np.where(is_repeated, 0, weights))

    def part(self, rows):
        """Searches some rows of the index, as one part."""
        rows = rows[np.argsort(self.index_ids[rows])]
        names = SoftLabels(self.index_names.labels[rows], self.index_names.weights[rows])
        sides = self.queries, self.query_names, self.index[rows], names
        found = find_candidates(
            self.queries, self.query_names.landmark_ids, self.index[rows], names.landmark_ids, TOP
        )
        rerank = RERANKS["agreement"]
        agreeing = dict(zip(rerank.columns, rerank.find(*sides, TOP), strict=True))
        num_queries = len(self.queries)
        return Part(
            np.arange(num_queries, dtype=np.uint64), self.query_names.landmark_ids,
            np.zeros((num_queries, 3), int), self.index_ids[rows], names.landmark_ids,
            np.zeros((len(rows), 3), int), found.row_ends, found.positions, found.distances,
            agreeing,
        )  # fmt: skip

    def parts(self, num_parts):
        rows = self.rng.permutation(len(self.index))
        return [self.part(some) for some in np.array_split(rows, num_parts)]

    def squared(self, query, dimensions=0):
        """Gives the squared distances of all index images, computed in float64, as float32."""
        difference = self.index.astype(np.float64) - self.queries[query].astype(np.float64)
        squared = (difference**2).sum(axis=1) + np.asarray(dimensions, np.float64) ** 2
        return squared.astype(np.float32).astype(np.float64)

    def brute_force(self, rerank):
        """Scores all index images for each query, sorts, and cuts: lists of image ids."""
        for query, landmark in enumerate(self.query_names.landmark_ids.tolist()):
            agrees = self.index_names.landmark_ids == landmark
            if rerank == "agreement":
                scores = np.array([self.likeness(query, image) for image in range(len(self.index))])
                keys = (self.squared(query) - 8 * scores,)
            else:
                keys = (self.squared(query) / np.where(agrees & (rerank == "divide"), 1.5, 1),)
            order = np.lexsort((self.index_ids, *keys))[:TOP]
            yield self.index_ids[order].tolist()

    def likeness(self, query, image):
        """Sums the products of the weights of common labels, by label."""
        of_query, of_image = (
            {
                label: weight
                for label, weight in zip(names.labels[row], names.weights[row], strict=True)
            }
            for names, row in ((self.query_names, query), (self.index_names, image))
        )
        common = sorted(of_query.keys() & of_image.keys() - {-1})
        return sum((of_query[label] * of_image[label] for label in common), 0.0)


def dtype_one(dtype):
    return np.array([0.5, 0, 0, 0, 0], dtype)


def ids_of(ranking):
    return [row.tolist() for row in np.split(ranking.image_ids, ranking.row_ends[:-1])]


@pytest.mark.parametrize("seed", range(3))
def test_any_number_of_parts_gives_what_all_index_images_give(seed):
    world = World(seed, num_landmarks=3 + 5 * seed, dtype="float16" if seed == 2 else "float32")
    flat = [world.part(np.arange(len(world.index)))]
    for parts in (flat, world.parts(2), world.parts(13)):
        for rerank in RERANKS:
            ranking = merge_parts(parts, 1.5, TOP, rerank)
            assert ids_of(ranking) == list(world.brute_force(rerank)), rerank
            distances = merge_parts(flat, 1.5, TOP, rerank).distances
            np.testing.assert_array_equal(ranking.distances, distances)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pairs_that_agree_have_the_distances_of_the_nearest_bit_for_bit(dtype):
    rng = np.random.default_rng(5)
    queries, index = (unit_length(rng.normal(size=(n, 48))).astype(dtype) for n in (9, 60))
    names = [SoftLabels(np.full((n, 1), 7), np.ones((n, 1))) for n in (9, 60)]  # all share one
    found = best_by_agreement(queries, names[0], index, names[1], 20)
    positions, distances = nearest(queries, index, 20)
    assert found[1].tolist() == positions.ravel().tolist()
    np.testing.assert_array_equal(found[3], distances.ravel())


def test_the_rerank_reaches_beyond_the_nearest():
    """The random worlds do hold the case that the list of its own is for."""
    world = World(1, num_index=200, num_landmarks=20)
    [part] = world.parts(1)
    ranking = merge_parts([part], 1.5, TOP, "agreement")
    kept = [
        set(part.index_ids[part.cut(q, q + 1, "row_ends", "positions")[1]].tolist())
        for q in range(12)
    ]
    assert any(set(row) - of_query for row, of_query in zip(ids_of(ranking), kept, strict=True))


def test_blocks_of_pairs_change_nothing(monkeypatch):
    world = World(6)
    whole = world.part(np.arange(80))
    monkeypatch.setattr(candidates, "MAX_PAIRS", 50)
    monkeypatch.setattr(candidates, "PAIR_BLOCK", 7)
    again = world.part(np.arange(80))
    for name in ("ends", "positions", "agreements", "distances"):
        np.testing.assert_array_equal(again[f"agreeing_{name}"], whole[f"agreeing_{name}"])


def test_only_the_best_of_each_query_are_kept():
    part = World(7).part(np.arange(80))
    assert np.diff(part["agreeing_ends"], prepend=0).max() == TOP
    assert (part["agreeing_agreements"] > 0).all()


@pytest.mark.parametrize("sizes", [{"num_queries": 0}, {"num_index": 0}])
def test_no_queries_and_no_index_have_a_ranking_of_nothing(sizes):
    parts = World(8, **sizes).parts(2)
    for rerank in RERANKS:
        assert len(merge_parts(parts, 1.5, TOP, rerank).image_ids) == 0


def test_names_without_any_weight_leave_the_nearest():
    world = World(9)
    nothing = SoftLabels(np.full((12, 1), -1), np.zeros((12, 1)))
    world.query_names = nothing
    agreeing, none = (
        merge_parts(world.parts(2), 1.5, TOP, rerank) for rerank in ("agreement", "none")
    )
    assert ids_of(agreeing) == ids_of(none)


def test_an_image_in_two_parts_appears_once():
    world = World(10)
    twice = [world.part(np.arange(80)), world.part(np.arange(50))]
    ranking = merge_parts(twice, 1.5, TOP, "agreement")
    assert ids_of(ranking) == list(world.brute_force("agreement"))
