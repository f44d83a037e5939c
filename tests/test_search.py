"""Tests of the exact search against brute force: blocks, ties, noise, two lists."""

import faiss
import numpy as np
import pytest
from synthetic import squared_distances

from search import exact
from search.exact import find_candidates, nearest


def brute_force(queries, index, num_nearest):
    """What `nearest` must give: all distances, each pair alone, sorted with ties in order."""
    positions = np.full((len(queries), num_nearest), -1, np.int32)
    distances = np.full((len(queries), num_nearest), np.inf, np.float32)
    for row, query in enumerate(queries):
        squared = squared_distances(query, index)
        order = np.lexsort((np.arange(len(index)), squared))[:num_nearest]
        positions[row, : len(order)], distances[row, : len(order)] = order, squared[order]
    return positions, distances


def assert_exact(queries, index, num_nearest):
    """Checks positions and distances bit for bit; gives them."""
    found = nearest(queries, index, num_nearest)
    expected = brute_force(queries, index, num_nearest)
    assert found[0].dtype == np.int32
    assert found[1].dtype == np.float32
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    return found


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries and of the index, and hardly a margin, with little data."""
    monkeypatch.setattr(exact, "QUERY_BLOCK", 7)
    monkeypatch.setattr(exact, "INDEX_BLOCK", 10)
    monkeypatch.setattr(exact, "MARGIN", 1)


@pytest.fixture
def asked(monkeypatch):
    """List of (queries, proposals asked for), a row for each time that faiss was asked."""
    rows, real = [], exact._propose

    def propose(queries, index, num_proposed):
        rows.append((len(queries), num_proposed))
        return real(queries, index, num_proposed)

    monkeypatch.setattr(exact, "_propose", propose)
    return rows


# -------------------------------------------------------------------------------- by hand


def test_the_nearest_come_first_with_their_squared_distances():
    index = np.array([[0, 0], [3, 4], [1, 0], [0, 2]], np.float32)
    queries = np.array([[0, 0], [3, 3]], np.float32)
    positions, distances = nearest(queries, index, 3)
    assert positions.tolist() == [[0, 2, 3], [1, 3, 2]]
    assert distances.tolist() == [[0, 1, 4], [1, 10, 13]]


def test_equal_distances_go_by_position():
    index = np.array([[5, 0], [1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    positions, distances = nearest(np.zeros((1, 2), np.float32), index, 4)
    assert positions.tolist() == [[1, 2, 3, 4]]
    assert distances.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("num_index", [0, 1, 3])
def test_an_index_of_too_few_rows_is_filled_up(num_index):
    index = np.array([[1], [3], [2]], np.float32)[:num_index]
    positions, distances = nearest(np.zeros((2, 1), np.float32), index, 5)
    rows = {0: [], 1: [0], 3: [0, 2, 1]}[num_index]
    squared = {0: [], 1: [1], 3: [1, 4, 9]}[num_index]
    missing = 5 - num_index
    assert positions.tolist() == [rows + [-1] * missing] * 2
    assert distances.tolist() == [squared + [np.inf] * missing] * 2


def test_no_queries_have_no_neighbors():
    positions, distances = nearest(np.empty((0, 4), np.float32), normal(0, 9, 4), 3)
    assert positions.shape == distances.shape == (0, 3)


# ------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("num_nearest", [1, 10, 100])
@pytest.mark.parametrize("width", [1, 3, 64, 2048])
def test_random_data_gives_what_brute_force_gives(width, num_nearest):
    assert_exact(normal(1, 30, width), normal(2, 400, width), num_nearest)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("query_dtype", [np.float16, np.float32])
def test_stored_halves_are_compared_as_the_numbers_they_are(dtype, query_dtype):
    positions, _ = assert_exact(normal(3, 20, 32).astype(query_dtype), normal(4, 200, 32).astype(
        dtype), 20)  # fmt: skip
    assert positions.min() >= 0


@pytest.mark.parametrize("num_index", [1, 9, 10, 11, 20, 95])
@pytest.mark.parametrize("num_queries", [1, 7, 8, 20])
def test_blocks_of_queries_and_of_the_index_change_nothing(small_blocks, num_queries, num_index):
    assert_exact(normal(5, num_queries, 6), normal(6, num_index, 6), 12)


@pytest.mark.parametrize("index_block", [1, 2, 50, 1000])
def test_any_size_of_blocks_gives_the_same_bits(monkeypatch, index_block):
    queries, index = normal(7, 25, 48), normal(8, 300, 48)
    whole = nearest(queries, index, 15)
    monkeypatch.setattr(exact, "INDEX_BLOCK", index_block)
    monkeypatch.setattr(exact, "QUERY_BLOCK", 1 + index_block // 3)
    in_blocks = nearest(queries, index, 15)
    np.testing.assert_array_equal(in_blocks[0], whole[0])
    np.testing.assert_array_equal(in_blocks[1], whole[1])


@pytest.mark.parametrize("num_nearest", [1, 5, 30, 100])
def test_exact_duplicates_stand_in_the_order_of_their_positions(small_blocks, num_nearest):
    rng = np.random.default_rng(9)
    different = normal(10, 6, 64)
    index = different[rng.integers(6, size=90)]  # each about 15 times, over all blocks
    positions, distances = assert_exact(normal(11, 10, 64), index, num_nearest)
    for row, squared in zip(positions, distances, strict=True):
        for value in set(squared[np.isfinite(squared)].tolist()):
            of_value = row[squared == value]
            assert np.all(np.diff(of_value) > 0)


def test_an_index_of_nothing_but_copies_of_the_query_is_taken_in_order(small_blocks):
    query = normal(12, 1, 33)
    positions, distances = assert_exact(query, np.repeat(query, 64, axis=0), 20)
    assert positions.tolist() == [list(range(20))]
    assert not distances.any()


@pytest.mark.parametrize("which", ["queries", "index", "both"])
def test_vectors_of_zeros_are_vectors_like_others(small_blocks, which):
    queries, index = normal(13, 9, 8), normal(14, 40, 8)
    if which != "index":
        queries[::2] = 0
    if which != "queries":
        index[::3] = 0
    assert_exact(queries, index, 10)


def test_a_search_of_nothing_but_zeros_ends():
    positions, distances = assert_exact(np.zeros((3, 4), "f"), np.zeros((500, 4), "f"), 7)
    assert positions.tolist() == [list(range(7))] * 3
    assert not distances.any()


# ------------------------------------------------------------------------- where faiss is wrong


def far_from_the_origin(num_queries, num_index, width, norm, spread):
    """Vectors of a large norm that differ little: |x|^2 + |y|^2 - 2xy is nothing but rounding."""
    rng = np.random.default_rng(15)
    centre = rng.normal(size=width)
    centre *= norm / np.linalg.norm(centre)
    queries, index = (
        (centre + spread * rng.normal(size=(n, width))).astype(np.float32)
        for n in (num_queries, num_index)
    )
    return queries, index


def expanded_knn(queries, index, num_nearest):
    """Stands for `faiss.knn`: the expanded square in float32, as in faiss' large blocks."""
    norms = [np.einsum("ij,ij->i", vectors, vectors) for vectors in (queries, index)]
    rough = np.maximum(norms[0][:, None] + norms[1] - 2 * queries @ index.T, 0)
    order = rough.argsort(axis=1, kind="stable")[:, :num_nearest]
    return np.take_along_axis(rough, order, axis=1), order


FAR = [(1e3, 1e-2), (1e4, 1e-2), (1e6, 1.0), (1.0, 1e-5)]


@pytest.mark.parametrize(("norm", "spread"), FAR)
def test_where_the_rough_order_is_nothing_but_rounding_the_search_is_exact(
    norm, spread, monkeypatch, asked
):
    monkeypatch.setattr(faiss, "knn", expanded_knn)
    queries, index = far_from_the_origin(40, 600, 64, norm, spread)
    right, _ = brute_force(queries, index, 10)
    proposed = expanded_knn(queries, index, 38)[1]
    assert any(set(r) - set(p) for r, p in zip(right, proposed, strict=True))  # some are missed
    assert_exact(queries, index, 10)
    # The proposals prove nothing: all queries ask again, until the whole index was looked at.
    assert asked == [(40, 38), (40, 152), (40, 600)]


def test_where_the_order_of_faiss_itself_is_wrong_the_search_is_exact(asked):
    queries, index = far_from_the_origin(100, 300, 2048, 1e4, 1e-2)
    assert (faiss.knn(queries, index, 10)[1] != brute_force(queries, index, 10)[0]).any()
    assert_exact(queries, index, 10)
    assert asked == [(100, 38), (100, 152), (100, 300)]


def test_a_nearer_image_that_the_noise_hid_is_found(monkeypatch, asked):
    """By hand, noise at most 1: the proposals say 3.7 and 4.4, behind them hides one of 3.5."""
    true, rough = [3.7, 3.5, 5.0, 9.0, 9.0], [3.7, 4.45, 4.4, 9.0, 9.0]
    index = np.sqrt(np.array(true, np.float32))[:, None]

    def propose(queries, index, num_proposed):
        asked.append((len(queries), num_proposed))
        order = np.argsort(rough, kind="stable")[:num_proposed]
        return order[None], np.array(rough)[None, order], np.ones(1, np.float32)

    monkeypatch.setattr(exact, "_propose", propose)
    monkeypatch.setattr(exact, "MARGIN", 1)
    positions, distances = nearest(np.zeros((1, 1), np.float32), index, 1)
    # Whatever was not proposed is at 4.4 - 1 or farther, which does not exclude less than 3.7.
    assert asked == [(1, 2), (1, 5)]
    assert positions.tolist() == [[1]]
    assert distances.tolist() == pytest.approx(np.array([[3.5]]))


def test_the_order_of_the_proposals_does_not_decide_ties(monkeypatch):
    def last_first(queries, index, num_nearest):
        rough, order = expanded_knn(queries, index[::-1], num_nearest)
        return rough, len(index) - 1 - order

    monkeypatch.setattr(faiss, "knn", last_first)
    queries, index = normal(20, 5, 8), np.repeat(normal(21, 4, 8), 10, axis=0)
    assert_exact(queries, index, 15)


def test_the_noise_of_long_queries_among_short_index_rows_is_known(monkeypatch, asked):
    """Queries of norm 1000, index rows of norm 1 that differ by 1e-6: the noise is the query's."""
    monkeypatch.setattr(faiss, "knn", expanded_knn)
    rng = np.random.default_rng(40)
    queries = rng.normal(size=(40, 32))
    queries *= 1000 / np.linalg.norm(queries, axis=1, keepdims=True)
    centre = rng.normal(size=32)
    index = centre / np.linalg.norm(centre) + 1e-6 * rng.normal(size=(400, 32))
    assert_exact(queries.astype(np.float32), index.astype(np.float32), 10)
    assert asked[-1] == (40, 400)


def test_the_noise_of_long_rows_in_an_early_block_is_known(monkeypatch, asked):
    """Long, tight rows in the first blocks, a few short ones in the last; 10 long are wanted."""
    monkeypatch.setattr(faiss, "knn", expanded_knn)
    monkeypatch.setattr(exact, "INDEX_BLOCK", 100)
    _, long_rows = far_from_the_origin(0, 400, 32, 1e3, 3e-5)
    index = np.concatenate([long_rows, 1e-3 * normal(41, 20, 32)])
    assert_exact(normal(42, 40, 32) / 5, index, 30)
    assert asked[-1][1] == 420


def test_data_that_faiss_tells_apart_is_asked_for_once(asked):
    assert_exact(normal(16, 50, 64), normal(17, 1000, 64), 10)
    assert asked == [(50, 38)]


def test_only_queries_without_a_proof_ask_again(asked):
    index = normal(18, 300, 16)
    index[100:200] = index[100]  # a hundred copies
    queries = normal(19, 20, 16)
    queries[3] = queries[12] = index[100]
    positions, distances = assert_exact(queries, index, 10)
    assert positions[3].tolist() == positions[12].tolist() == list(range(100, 110))
    # 38 proposals are all copies; the 152 of the second round reach beyond them.
    assert asked == [(20, 38), (2, 152)]


@pytest.mark.parametrize("width", [16, 2048])
@pytest.mark.parametrize("kind", ["normal", "positive", "like a pooled layer"])
def test_the_bound_on_the_noise_holds_twice_over(width, kind):
    rng = np.random.default_rng(20)
    make = {
        "normal": lambda n: rng.normal(size=(n, width)),
        "positive": lambda n: rng.uniform(size=(n, width)),
        "like a pooled layer": lambda n: np.maximum(rng.normal(1, 2, (n, width)), 0) ** 2,
    }[kind]
    queries, index = make(100).astype(np.float32), make(2000).astype(np.float32)
    proposed, rough, noise = exact._propose(queries, index, len(index))
    for row in range(0, 100, 5):
        difference = index[proposed[row]].astype(np.float64) - queries[row].astype(np.float64)
        error = np.abs(rough[row] - (difference**2).sum(axis=1)).max()
        assert error < noise[row] / 2


def test_the_noise_by_hand():
    """A hundred-thousandth of 3^2, the query's, and 4^2, the longest row's."""
    queries, index = np.array([[3, 0]], np.float32), np.array([[0, 4], [1, 0]], np.float32)
    assert exact._propose(queries, index, 2)[2] == pytest.approx([2.5e-4])


def test_what_two_errors_may_have_put_behind_another_is_looked_at():
    """Rough distances of 1.00 and 1.15, each 0.1 off at most; the true ones are 1.10 and 1.05."""
    index = np.sqrt(np.array([[1.1], [1.05], [9]], np.float32))
    proposals = np.array([[0, 1, 2]]), np.array([[1, 1.15, 9]]), np.array([0.1])
    found, _, is_proven = exact._nearest_of_proposed(np.zeros((1, 1), "f"), index, proposals, 1)
    assert found.tolist() == [[1]] and is_proven.all()


# ------------------------------------------------------------------------- distances of pairs


@pytest.mark.parametrize("fetched", [1, 5000, 10**7])
def test_rows_that_are_fetched_a_few_at_a_time_give_the_bits_of_those_in_place(
    small_blocks, monkeypatch, fetched
):
    """Halves, and rows that are not in one piece, are fetched where the index has many blocks."""
    monkeypatch.setattr(exact, "FETCHED", fetched)
    queries, index = normal(50, 40, 48)[:, ::2], normal(51, 300, 48)[:, ::2]
    index[200:] = index[:100]  # ties, and rows of many candidates beside rows of few
    assert_exact(queries, index, 20)
    assert_exact(queries.astype(np.float16), index.astype(np.float16), 20)


def test_few_proposals_at_a_time_give_the_same_bits(monkeypatch, asked):
    monkeypatch.setattr(exact, "MOST_PROPOSALS", 400)
    queries, index = far_from_the_origin(25, 200, 32, 1e4, 1e-2)
    assert_exact(queries, index, 10)
    assert asked == [(10, 38), (10, 38), (5, 38), *[(2, 152)] * 12, (1, 152), *[(2, 200)] * 12,
                     (1, 200)]  # fmt: skip


# ----------------------------------------------------------------------------------- two lists


def candidates_of(found, query):
    """Gives {position: distance} of a query."""
    begin = found.row_ends[query - 1] if query else 0
    rows = slice(begin, found.row_ends[query])
    return dict(zip(found.positions[rows].tolist(), found.distances[rows].tolist(), strict=True))


def assert_both_lists(queries, query_landmarks, index, index_landmarks, num_nearest):
    """Checks the candidates of every query against brute force of both lists."""
    found = find_candidates(queries, query_landmarks, index, index_landmarks, num_nearest)
    assert len(found.row_ends) == len(queries)
    for query in range(len(queries)):
        expected = {}
        for rows in (
            np.arange(len(index)),
            np.flatnonzero(index_landmarks == query_landmarks[query]),
        ):
            places, squared = brute_force(queries[query : query + 1], index[rows], num_nearest)
            there = places[0] >= 0
            positions = rows[places[0][there]].tolist()
            expected |= dict(zip(positions, squared[0][there].tolist(), strict=True))
        assert candidates_of(found, query) == expected
    starts = np.concatenate([[0], found.row_ends[:-1]])
    assert (found.row_ends - starts).max(initial=0) <= 2 * num_nearest
    assert len(found.positions) == len(found.distances) == found.row_ends[-1]
    return found


def test_both_lists_by_hand():
    index = np.arange(6, dtype=np.float32)[:, None]
    greatest = 2**63 - 1  # that a table may have
    index_landmarks = np.array([7, 7, greatest, greatest, 7, greatest])
    queries = np.array([[0], [5]], np.float32)
    found = find_candidates(queries, np.array([greatest, 7]), index, index_landmarks, 2)
    assert candidates_of(found, 0) == {0: 0, 1: 1, 2: 4, 3: 9}
    assert candidates_of(found, 1) == {5: 0, 4: 1, 1: 16}  # position 4 is in both lists
    assert found.positions.dtype == np.int32
    assert found.distances.dtype == np.float32


@pytest.mark.parametrize("num_landmarks", [1, 3, 40])
@pytest.mark.parametrize("num_nearest", [1, 5, 30])
def test_random_landmarks_give_what_brute_force_of_both_lists_gives(num_landmarks, num_nearest):
    rng = np.random.default_rng(21)
    landmarks = rng.choice(200_000, num_landmarks, replace=False)
    assert_both_lists(
        normal(22, 25, 12),
        rng.choice(landmarks, 25),
        normal(23, 130, 12),
        rng.choice(landmarks, 130),
        num_nearest,
    )


def test_duplicates_and_blocks_give_what_brute_force_of_both_lists_gives(small_blocks):
    rng = np.random.default_rng(24)
    index = normal(25, 8, 16)[rng.integers(8, size=70)]
    queries = np.concatenate([normal(26, 10, 16), index[::10]])
    assert_both_lists(
        queries, rng.integers(4, size=len(queries)), index, rng.integers(4, size=70), 6
    )


def test_a_query_whose_landmark_no_index_image_has_gets_the_nearest_alone():
    index, landmarks = normal(27, 50, 4), np.full(50, 3)
    found = assert_both_lists(normal(28, 3, 4), np.array([2, 3, 4]), index, landmarks, 10)
    assert np.diff(found.row_ends, prepend=0).tolist() == [10, 10, 10]


def test_an_index_of_one_landmark_gives_each_query_one_list():
    index, landmarks = normal(29, 50, 4), np.full(50, 3)
    found = assert_both_lists(normal(30, 4, 4), np.full(4, 3), index, landmarks, 10)
    assert np.diff(found.row_ends, prepend=0).tolist() == [10, 10, 10, 10]


def test_two_lists_without_a_common_image_are_twice_as_long():
    index = np.concatenate([normal(31, 20, 4), 100 + normal(32, 20, 4)])
    landmarks = np.repeat([1, 2], 20)
    found = assert_both_lists(normal(33, 3, 4), np.array([2, 2, 1]), index, landmarks, 10)
    assert np.diff(found.row_ends, prepend=0).tolist() == [20, 20, 10]


@pytest.mark.parametrize("num_index", [0, 1, 5])
def test_an_index_of_fewer_images_than_wanted_gives_them_all(num_index):
    landmarks = np.array([1, 2, 1, 2, 1])[:num_index]
    found = assert_both_lists(
        normal(34, 3, 4), np.array([1, 2, 9]), normal(35, num_index, 4), landmarks, 100
    )
    assert np.diff(found.row_ends, prepend=0).tolist() == [num_index] * 3


@pytest.mark.parametrize("num_index", [0, 5])
def test_no_queries_have_no_candidates(num_index):
    found = find_candidates(
        np.empty((0, 4), np.float32),
        np.empty(0, np.int64),
        normal(36, num_index, 4),
        np.zeros(num_index, np.int64),
        10,
    )
    assert len(found.row_ends) == len(found.positions) == len(found.distances) == 0


def test_halves_are_searched_for_both_lists():
    rng = np.random.default_rng(37)
    assert_both_lists(
        normal(38, 10, 16).astype(np.float16),
        rng.integers(3, size=10),
        normal(39, 80, 16).astype(np.float16),
        rng.integers(3, size=80),
        15,
    )


def test_a_large_search_tells_its_queries_and_the_many_small_ones_tell_nothing(
    small_blocks, monkeypatch
):
    told, real = [], exact.Progress

    class Spy(real):
        def __exit__(self, *exception):
            told.append((self.describe(self.updated).split(",")[0], self.done, self.total))
            return super().__exit__(*exception)

    monkeypatch.setattr(exact, "Progress", Spy)
    queries, index = normal(1, 20, 4), normal(2, 30, 4)
    nearest(queries, index, 3)
    assert told == []
    monkeypatch.setattr(exact, "MIN_SCORES", 600)
    monkeypatch.setattr(exact, "_ask_gpu", lambda *_: None)
    nearest(queries, index, 3)
    assert told == [("searching 30 images: 20 of 20 queries", 20, 20)]
