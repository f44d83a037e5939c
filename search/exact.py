"""Exact nearest neighbors that do not depend on how the index was split.

faiss computes |x|^2 + |y|^2 - 2xy in blocks, so that its distances carry rounding noise that
depends on the block. Here faiss only proposes candidates. The distance of each pair is then summed
up alone, with the same bits in any block. Ties go to the smaller image id, and a bound on the noise
proves that no nearer image was missed, or asks for more. Where there is much to search, a GPU
proposes first.

The only module that knows faiss.
"""

import contextlib
from collections import namedtuple

import faiss
import numpy as np

from utils import Progress

QUERY_BLOCK = 4096  # queries at a time: large matrix products are what makes the search fast
INDEX_BLOCK = 131_072  # index rows at a time, a sixth of the index: 1.1 GB as float32 at 2048-d
MIN_SCORES = 2**26  # queries x index rows: 1.5 s of a CPU at 2048-d; below, no GPU is asked
MARGIN = 28  # candidates beyond those asked for
MOST_PROPOSALS = 2**23  # proposals that are looked at together, 0.5 GB
# Rounding noise of a blocked float32 distance, as a share of |x|^2 + |y|^2; 5 times what was seen.
NOISE = 1e-5
# ... and of a float32 sum of squared differences, as a share of it; 5 times that of 2048 equal ones
SUM_NOISE = 1e-5
FETCHED = 2**24  # numbers of candidates that are fetched at a time, 64 MB
# Ragged rows, one for each query: where it ends (num_queries,) int64, and begins where the one
# before ends; rows of the index (n,) int32; squared L2 distances (n,) float32.
Candidates = namedtuple("Candidates", "row_ends positions distances")


def find_candidates(queries, query_landmarks, index, index_landmarks, num_nearest):
    """Finds what a rerank by shared landmark needs to be exact.

    After the distances to images of the query's own landmark have been divided by anything from 1
    up, the best `num_nearest` are among these: the nearest of all, and the nearest of the same
    landmark.

    Takes descriptors as `nearest` does, those of the index by ascending image id, and landmarks
    (num_queries,) and (n,) int64. Gives `Candidates`, at most 2 * num_nearest a query.
    """
    of_all = nearest(queries, index, num_nearest)
    of_same = _nearest_of_same_landmark(
        queries, query_landmarks, index, index_landmarks, num_nearest
    )
    positions, distances = (
        np.concatenate(both, axis=1) for both in zip(of_all, of_same, strict=True)
    )
    # One row a query, each position once: sort by position, drop what repeats its left neighbour.
    order = np.argsort(positions, axis=1, kind="stable")
    positions = np.take_along_axis(positions, order, axis=1)
    distances = np.take_along_axis(distances, order, axis=1)
    kept = positions >= 0
    kept[:, 1:] &= positions[:, 1:] != positions[:, :-1]
    return Candidates(np.cumsum(kept.sum(axis=1)), positions[kept], distances[kept])


def _nearest_of_same_landmark(queries, query_landmarks, index, index_landmarks, num_nearest):
    """Gives the nearest images among those of the query's landmark, as `nearest` does."""
    positions, distances = nearest(queries, index[:0], num_nearest)  # none yet
    index_order = np.argsort(index_landmarks, kind="stable")
    sorted_landmarks = index_landmarks[index_order]
    query_order = np.argsort(query_landmarks, kind="stable")
    landmarks, begins = np.unique(query_landmarks[query_order], return_index=True)
    for landmark, query_rows in zip(landmarks, np.split(query_order, begins)[1:], strict=True):
        first, last = (
            np.searchsorted(sorted_landmarks, landmark, end) for end in ("left", "right")
        )
        if first == last:
            continue
        index_rows = index_order[first:last]  # ascending, since the sort is stable
        found, squared = nearest(queries[query_rows], index[index_rows], num_nearest)
        positions[query_rows] = np.where(found >= 0, index_rows[found], -1)
        distances[query_rows] = squared
    return positions, distances


def nearest(queries, index, num_nearest):
    """Finds the nearest index rows of each query, exactly.

    Takes descriptors (num_queries, d) and (n, d), float32 or float16. Gives (positions
    (num_queries, num_nearest) int32, squared L2 distances alike, float32), nearest first, equal
    distances by position. Where the index is smaller, -1 and inf fill up.
    """
    positions = np.full((len(queries), num_nearest), -1, np.int32)
    distances = np.full((len(queries), num_nearest), np.inf, np.float32)
    wanted = min(num_nearest, len(index))
    if not wanted or not len(queries):
        return positions, distances
    is_large = len(queries) * len(index) >= MIN_SCORES
    first = is_large and _ask_gpu(queries, index, min(wanted + MARGIN, len(index)))
    if len(index) <= INDEX_BLOCK:  # widened once, not for each block of queries and of candidates
        index = _to_float32(index)
    shown = Progress(f"searching {len(index):,} images", len(queries), "queries")
    with shown if is_large else contextlib.nullcontext() as progress:
        for begin in range(0, len(queries), QUERY_BLOCK):
            rows = slice(begin, begin + QUERY_BLOCK)
            proposals = first and [part[rows] for part in first]
            positions[rows, :wanted], distances[rows, :wanted] = _nearest_of_block(
                _to_float32(queries[rows]), index, wanted, proposals
            )
            if progress:
                progress.update(len(queries[rows]))
    return positions, distances


def _ask_gpu(*asked):
    """Lets a GPU make the first proposals; gives None where there is none."""
    from search import on_gpu  # it loads Keras

    propose = on_gpu.find_proposer()
    return propose and propose(*asked)


def _nearest_of_block(queries, index, wanted, proposals=None):
    """Finds the nearest rows of a block of queries; asks faiss for more until that is proven."""
    positions = np.empty((len(queries), wanted), np.int32)
    distances = np.empty((len(queries), wanted), np.float32)
    is_proven = np.zeros(len(queries), bool)
    num_proposed = wanted + MARGIN
    while not is_proven.all():
        num_proposed = min(num_proposed, len(index))
        for rows in _cut(np.flatnonzero(~is_proven), max(1, MOST_PROPOSALS // num_proposed)):
            asked = queries if len(rows) == len(queries) else queries[rows]
            given = proposals and [part[rows] for part in proposals]
            given = given or _propose(asked, index, num_proposed)
            found = _nearest_of_proposed(asked, index, given, wanted)
            positions[rows], distances[rows], is_proven[rows] = found
        num_proposed, proposals = 4 * num_proposed, None
    return positions, distances


def _nearest_of_proposed(queries, index, proposals, wanted):
    """Finds the nearest rows among proposals: (positions, distances, whether proven complete)."""
    proposed, rough, noise = proposals
    noise = noise + SUM_NOISE * rough[:, -1]
    # Whatever is this much farther than `wanted` others is not among the nearest.
    num_possible = (rough <= rough[:, wanted - 1 : wanted] + 2 * noise[:, None]).sum(axis=1)
    found, exact = _refine(queries, index, proposed, num_possible, wanted)
    # Everything that was not proposed is at least as far as the farthest proposal, less noise.
    is_proven = exact[:, wanted - 1] < rough[:, -1] - noise
    return found, exact, is_proven | (proposed.shape[1] == len(index))


def _propose(queries, index, num_proposed):
    """Lets faiss propose candidates, one block of the index after another.

    Gives (positions (q, num_proposed) int64, rough squared distances alike, float32, ascending;
    noise (q,) float32, the bound on their error).
    """
    proposed, rough, largest_norm = [], [], 0.0
    for begin in range(0, len(index), INDEX_BLOCK):
        block = _to_float32(index[begin : begin + INDEX_BLOCK])
        D, I = faiss.knn(queries, block, min(num_proposed, len(block)))  # noqa: E741, N806
        proposed.append(I + begin)
        rough.append(D)
        largest_norm = max(largest_norm, np.vecdot(block, block).max())
    noise = NOISE * (np.vecdot(queries, queries) + largest_norm)
    if len(rough) == 1:
        return proposed[0], rough[0], noise
    proposed, rough = np.concatenate(proposed, axis=1), np.concatenate(rough, axis=1)
    order = np.argsort(rough, axis=1, kind="stable")[:, :num_proposed]
    proposed, rough = (np.take_along_axis(one, order, axis=1) for one in (proposed, rough))
    return proposed, rough, noise


def _to_float32(rows):
    """Widens float16 rows with the processor's own instruction, several times faster than NumPy."""
    if rows.dtype != np.float16:
        return rows.astype(np.float32, copy=False)
    codec = faiss.ScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16)
    return codec.decode(np.ascontiguousarray(rows).view(np.uint8))


def _refine(queries, index, proposed, num_possible, wanted):
    """Computes distances pair by pair; gives the best (positions (q, wanted), distances).

    Of the positions proposed, (q, n), so many, (q,), can be among the nearest.
    """
    possible = np.arange(num_possible.max()) < num_possible[:, None]
    proposed = np.where(possible, proposed[:, : possible.shape[1]], -1)
    exact = squared_distances(queries, index, proposed)
    # Distances are not negative: their bits sort as they do, and ties go by position.
    keys = exact.view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= proposed.view(np.uint64) & np.uint64(2**32 - 1)
    keys = np.sort(keys, axis=1)[:, :wanted]
    positions, bits = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    return positions.view(np.int32), bits.view(np.float32)


def squared_distances(queries, index, positions):
    """Computes the squared distances of each query to some index rows, the only way to do so.

    Each is a float32 sum of squared differences, each pair by itself. Its last digit may differ on
    another kind of processor; storing descriptors as float16 changes a hundred times as much.

    Takes descriptors (q, d) and (n, d), float32 or float16, and positions (q, m) int64. Gives
    (q, m) float32; a position of -1 is infinitely far.
    """
    queries = np.ascontiguousarray(_to_float32(queries))
    exact = np.empty(positions.shape, np.float32)
    # Rows of float32 are read where they are, others are fetched for few queries at a time.
    in_place = index.dtype == np.float32 and index.flags.c_contiguous
    few = len(queries) if in_place else FETCHED // (positions.shape[1] * index.shape[1])
    few = max(1, few)
    for begin in range(0, len(queries), few):
        rows = slice(begin, begin + few)
        ids, block = positions[rows], index
        if not in_place:
            block = _to_float32(index[ids.ravel()])
            ids = np.where(ids < 0, -1, np.arange(ids.size).reshape(ids.shape))
        given = [faiss.swig_ptr(array) for array in (exact[rows], queries[rows], block, ids)]
        faiss.fvec_L2sqr_by_idx(*given, index.shape[1], *ids.shape)
    return exact


def _cut(whole, size):
    """Cuts a sequence into pieces of this size."""
    return [whole[begin : begin + size] for begin in range(0, len(whole), size)]
