"""Tests of the device's proposals, with the CPU as the device: their bound and the results."""

import contextlib

import numpy as np
import pytest
from test_search import brute_force, far_from_the_origin, normal

from search import exact, on_gpu


@pytest.fixture
def small(monkeypatch):
    """Several blocks and strips with little data."""
    monkeypatch.setattr(on_gpu, "QUERY_ROWS", 16)
    monkeypatch.setattr(on_gpu, "INDEX_ROWS", 96)
    monkeypatch.setattr(on_gpu, "STRIP", 4)
    monkeypatch.setattr(exact, "QUERY_BLOCK", 24)


@pytest.fixture
def proposing(small, monkeypatch):
    """A GPU that proposes whatever the work."""
    monkeypatch.setattr(exact, "MIN_SCORES", 0)
    monkeypatch.setattr(on_gpu, "find_proposer", lambda: on_gpu.propose)


@contextlib.contextmanager
def without_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_gpu, "find_proposer", lambda: None)
        yield


def unit(seed, *shape):
    rows = normal(seed, *shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mixed_norms(seed, num_rows, width):
    return normal(seed, num_rows, width) * np.float32(10) ** normal(seed + 1, num_rows, 1)


def one_more_dimension(seed, num_rows, width):
    """Descriptors of length 1 with a penalty, as a vote searches them."""
    return np.concatenate([unit(seed, num_rows, width), 3 * normal(seed + 1, num_rows, 1)], axis=1)


def near_ties(seed, num_rows, width):
    """Copies of few vectors that differ in a component by less than float16 resolves."""
    rows = unit(seed, 5, width)[np.random.default_rng(seed).integers(5, size=num_rows)]
    rows[:, 0] += np.random.default_rng(seed).integers(4, size=num_rows).astype("f") * 1e-6
    return rows


MAKERS = {
    "unit": (unit(1, 40, 32), unit(2, 300, 32)),
    "wide": (unit(3, 20, 2048), unit(4, 150, 2048)),
    "mixed norms": (mixed_norms(5, 40, 16), mixed_norms(7, 300, 16)),
    "one more dimension": (one_more_dimension(9, 40, 32), one_more_dimension(11, 300, 32)),
    "near ties": (near_ties(13, 40, 24), near_ties(14, 300, 24)),
    "beyond float16": (1e6 * normal(15, 30, 16), 1e6 * normal(16, 200, 16)),
    "tiny": (1e-9 * normal(17, 30, 16), 1e-9 * normal(18, 200, 16)),
    "long queries": (1e4 * unit(19, 30, 16), unit(20, 200, 16)),
    "short queries": (1e-4 * unit(21, 30, 16), unit(22, 200, 16)),
    "tight and far": far_from_the_origin(30, 200, 32, 1e3, 1e-2),
    "halves": (unit(23, 30, 16).astype(np.float16), unit(24, 200, 16).astype(np.float16)),
    "zeros": (np.zeros((20, 8), np.float32), np.zeros((120, 8), np.float32)),
    "zero queries": (np.zeros((20, 8), np.float32), normal(25, 120, 8)),
    "less than a strip": (unit(26, 3, 8), unit(27, 3, 8)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_search_from_the_devices_proposals_is_that_of_faiss_bit_for_bit(proposing, kind):
    queries, index = MAKERS[kind]
    found = exact.nearest(queries, index, 10)
    with without_gpu():
        of_faiss = exact.nearest(queries, index, 10)
    for expected in (of_faiss, brute_force(queries, index, 10)):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("kind", MAKERS)
def test_no_proposal_is_farther_off_than_the_bound_and_none_is_missed(small, kind):
    queries, index = MAKERS[kind]
    wanted = min(38, len(index))
    positions, rough, noise = on_gpu.propose(queries, index, wanted)
    assert (np.diff(rough) >= 0).all()
    for row, query in enumerate(queries.astype(np.float64)):
        exact = ((index.astype(np.float64) - query) ** 2).sum(axis=1)
        assert len(set(positions[row].tolist())) == wanted
        assert np.abs(rough[row] - exact[positions[row]]).max() <= noise[row]
        others = np.delete(exact, positions[row])
        assert others.min(initial=np.inf) >= rough[row, -1].astype(np.float64) - noise[row]


def test_strips_blocks_and_ties_lose_no_great_score():
    rng = np.random.default_rng(40)
    scores = rng.integers(0, 9, (6, 256)).astype(np.float32)  # ties everywhere
    best = None
    for first in (0, 128):
        best = on_gpu.keep_best(best, scores[:, first : first + 128], first, 20)
    values, positions = (on_gpu.ops.convert_to_numpy(part) for part in best)
    np.testing.assert_array_equal(values, -np.sort(-scores, axis=1)[:, :20])
    np.testing.assert_array_equal(np.take_along_axis(scores, positions, axis=1), values)


def test_halves_by_hand():
    vectors = np.array([[3, 4], [0, 1 + 2**-12]], np.float32)
    halves = on_gpu.to_halves(vectors)
    assert halves.scale == 2**12  # 4 becomes 2^14
    assert halves.rows.tolist() == [[3 * 2**12, 2**14], [0, 2**12]]
    assert halves.norms.tolist() == [5, 1]
    assert halves.residuals.tolist() == pytest.approx([0, 2**-12])


def test_the_bound_by_hand():
    """Halves of norm 1 and 2, each 0.1 off; the last proposal at distance 3: 0.2 (2 * 3 + 0.2)."""
    asked = on_gpu.Halves(None, 1.0, np.array([1.0]), np.array([0.1]))
    noise = on_gpu.bound_noise(asked, 2.0, 0.1, np.array([9.0]), width=64)
    assert noise == pytest.approx(0.2 * 6.2, rel=1e-4)
    exact = on_gpu.Halves(None, 1.0, np.array([1.0]), np.array([0.0]))
    noise = on_gpu.bound_noise(exact, 2.0, 0.0, np.array([9.0]), width=64)
    assert noise == pytest.approx(64 * 2**-21 + 5 * 2**-20, rel=1e-4)


def test_the_bound_is_that_of_the_worst_block_wherever_it_is(small):
    long, short = 1e3 * normal(43, 64, 8), normal(44, 64, 8)  # a block each
    noises = [
        on_gpu.propose(normal(45, 5, 8), np.concatenate(blocks), 128)[2]
        for blocks in ([long, short], [short, long])
    ]
    np.testing.assert_allclose(*noises, rtol=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e13, 1e30])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_the_bound_does_not_cover_are_left_to_faiss(small, number, which):
    pair = [normal(41, 20, 8), normal(42, 120, 8)]
    pair[which][3, 3] = number
    assert on_gpu.propose(*pair, 10) is None


def test_little_work_is_left_to_faiss(monkeypatch):
    monkeypatch.setattr(on_gpu, "find_proposer", None)
    exact.nearest(normal(43, 20, 8), normal(44, 120, 8), 10)
    monkeypatch.setattr(exact, "MIN_SCORES", 20 * 120)
    with pytest.raises(TypeError):
        exact.nearest(normal(43, 20, 8), normal(44, 120, 8), 10)


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(on_gpu, "list_gpus", lambda: ["gpu:0"])
    on_gpu.find_proposer.cache_clear()
    yield
    on_gpu.find_proposer.cache_clear()


def test_a_gpu_that_multiplies_as_expected_proposes(one_gpu):
    assert on_gpu.find_proposer() is on_gpu.propose


def test_without_a_gpu_faiss_proposes(one_gpu, monkeypatch):
    monkeypatch.setattr(on_gpu, "list_gpus", list)
    assert on_gpu.find_proposer() is None


def test_a_gpu_that_multiplies_less_exactly_is_not_used(one_gpu, monkeypatch, capsys):
    real = on_gpu.multiply
    monkeypatch.setattr(on_gpu, "multiply", lambda *pair: real(*pair) * 1.01)
    assert on_gpu.find_proposer() is None
    assert "the GPU does not multiply as expected" in capsys.readouterr().err


def test_a_gpu_without_enough_memory_leaves_the_search_to_faiss(proposing, monkeypatch, capsys):
    def fail(*_):
        raise MemoryError("out of\nmemory")

    monkeypatch.setattr(on_gpu, "multiply", fail)
    queries, index = MAKERS["unit"]
    found = exact.nearest(queries, index, 10)
    np.testing.assert_array_equal(found[0], brute_force(queries, index, 10)[0])
    assert "the search goes on without the GPU: out of memory" in capsys.readouterr().err


def test_data_that_halves_tell_apart_needs_no_faiss(proposing, monkeypatch):
    monkeypatch.setattr(exact, "_propose", None)
    exact.nearest(*MAKERS["unit"], 10)


def test_both_lists_are_those_of_faiss(proposing):
    rng = np.random.default_rng(45)
    queries, index = MAKERS["one more dimension"]
    given = (queries, rng.integers(3, size=40), index, rng.integers(3, size=300), 10)
    found = exact.find_candidates(*given)
    with without_gpu():
        expected = exact.find_candidates(*given)
    for name in ("row_ends", "positions", "distances"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
