"""Exact nearest neighbors that do not depend on how the index was split.

faiss computes |x|^2 + |y|^2 - 2xy in blocks, so that its distances carry rounding noise that
depends on the block. Here faiss only proposes candidates; their distances are computed again in one
fixed way, ties go to the smaller image id, and a bound on the noise proves that no nearer image was
missed, or asks faiss for more.

The only module that knows faiss.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np

QUERY_BLOCK = 4096  # queries at a time: large matrix products are what makes the search fast
INDEX_BLOCK = 65_536  # index rows at a time: 537 MB as float32, whatever the size of the index
MARGIN = 28  # candidates beyond those asked for
# faiss multiplies blocks of so many queries and index rows; its own 4096 x 1024 are slower.
faiss.cvar.distance_compute_blas_query_bs = 1024
faiss.cvar.distance_compute_blas_database_bs = 8192
# Rounding noise of a blocked float32 distance, as a share of |x|^2 + |y|^2; 5 times what was seen.
NOISE = 1e-5


@dataclass(frozen=True)
class Candidates:
    """For each query, the index images that can be among its best, as ragged rows.

    Attributes:
        row_ends: (num_queries,) int64; the candidates of query q end there, and begin where those
            of q - 1 end.
        positions: (n,) int32, rows of the index.
        distances: (n,) float32, squared L2.
    """

    row_ends: np.ndarray
    positions: np.ndarray
    distances: np.ndarray


def find_candidates(queries, query_landmarks, index, index_landmarks, num_nearest):
    """Finds what a rerank by shared landmark needs to be exact.

    After the distances to images of the query's own landmark have been divided by anything from 1
    up, the best `num_nearest` are among these: the nearest of all, and the nearest of the same
    landmark.

    Args:
        queries: (num_queries, d) float32 or float16 descriptors.
        query_landmarks: (num_queries,) int64.
        index: (n, d) float32 or float16 descriptors, rows by ascending image id.
        index_landmarks: (n,) int64.
        num_nearest: images wanted per query.

    Returns:
        `Candidates`, at most 2 * num_nearest a query.
    """
    lists = [nearest(queries, index, num_nearest)]
    lists.append(nearest_of_same_landmark(
        queries, query_landmarks, index, index_landmarks, num_nearest
    ))  # fmt: skip
    positions = np.concatenate([found[0] for found in lists], axis=1)
    distances = np.concatenate([found[1] for found in lists], axis=1)
    # One row a query, each position once: sort by position, drop what repeats its left neighbour.
    order = np.argsort(positions, axis=1, kind="stable")
    positions = np.take_along_axis(positions, order, axis=1)
    distances = np.take_along_axis(distances, order, axis=1)
    kept = positions >= 0
    kept[:, 1:] &= positions[:, 1:] != positions[:, :-1]
    return Candidates(np.cumsum(kept.sum(axis=1)), positions[kept], distances[kept])


def nearest_of_same_landmark(queries, query_landmarks, index, index_landmarks, num_nearest):
    """Gives the nearest images among those of the query's landmark, as `nearest` does."""
    positions = np.full((len(queries), num_nearest), -1, np.int32)
    distances = np.full((len(queries), num_nearest), np.inf, np.float32)
    index_order = np.argsort(index_landmarks, kind="stable")
    sorted_landmarks = index_landmarks[index_order]
    query_order = np.argsort(query_landmarks, kind="stable")
    landmarks, begins = np.unique(query_landmarks[query_order], return_index=True)
    for landmark, query_rows in zip(landmarks, np.split(query_order, begins)[1:], strict=True):
        first, last = np.searchsorted(sorted_landmarks, [landmark, landmark + 1])
        if first == last:
            continue
        index_rows = index_order[first:last]  # ascending, since the sort is stable
        found, squared = nearest(queries[query_rows], index[index_rows], num_nearest)
        positions[query_rows] = np.where(found >= 0, index_rows[found], -1)
        distances[query_rows] = squared
    return positions, distances


def nearest(queries, index, num_nearest):
    """Finds the nearest index rows of each query, exactly.

    Args:
        queries: (num_queries, d) float32 or float16.
        index: (n, d) float32 or float16.
        num_nearest: rows wanted per query.

    Returns:
        (positions (num_queries, num_nearest) int32, squared L2 distances alike, float32), nearest
        first, equal distances by position. Where the index is smaller, -1 and inf fill up.
    """
    positions = np.full((len(queries), num_nearest), -1, np.int32)
    distances = np.full((len(queries), num_nearest), np.inf, np.float32)
    wanted = min(num_nearest, len(index))
    for begin in range(0, len(queries) if wanted else 0, QUERY_BLOCK):
        rows = slice(begin, begin + QUERY_BLOCK)
        positions[rows, :wanted], distances[rows, :wanted] = _nearest_of_block(
            queries[rows].astype(np.float32), index, wanted
        )
    return positions, distances


def _nearest_of_block(queries, index, wanted):
    """Finds the nearest rows of a block of queries; asks for more until it is proven complete."""
    positions = np.empty((len(queries), wanted), np.int32)
    distances = np.empty((len(queries), wanted), np.float32)
    unproven, num_proposed = np.arange(len(queries)), wanted + MARGIN
    while len(unproven):
        num_proposed = min(num_proposed, len(index))
        asked = queries[unproven]
        proposed, rough, noise = _propose(asked, index, num_proposed)
        # Whatever is this much farther than `wanted` others is not among the nearest.
        num_possible = (rough <= rough[:, wanted - 1 : wanted] + 2 * noise[:, None]).sum(axis=1)
        found, exact = _refine(asked, index, proposed, num_possible, wanted)
        positions[unproven], distances[unproven] = found, exact
        # Everything that was not proposed is at least as far as the farthest proposal, less noise.
        is_proven = exact[:, wanted - 1] < rough[:, -1] - noise
        if num_proposed == len(index):
            break
        unproven, num_proposed = unproven[~is_proven], 4 * num_proposed
    return positions, distances


def _propose(queries, index, num_proposed):
    """Lets faiss propose candidates, one block of the index after another.

    Returns:
        (positions (q, num_proposed) int64, rough distances alike, ascending; noise (q,) float32,
        the bound on their error).
    """
    proposed, rough, largest_norm = [], [], 0.0
    for begin in range(0, len(index), INDEX_BLOCK):
        block = _to_float32(index[begin : begin + INDEX_BLOCK])
        D, I = faiss.knn(queries, block, min(num_proposed, len(block)))  # noqa: E741, N806
        proposed.append(I + begin)
        rough.append(D)
        largest_norm = max(largest_norm, np.einsum("ij,ij->i", block, block).max())
    proposed, rough = np.concatenate(proposed, axis=1), np.concatenate(rough, axis=1)
    if len(index) > INDEX_BLOCK:
        chosen = np.argsort(rough, axis=1, kind="stable")[:, :num_proposed]
        proposed = np.take_along_axis(proposed, chosen, axis=1)
        rough = np.take_along_axis(rough, chosen, axis=1)
    noise = NOISE * (np.einsum("ij,ij->i", queries, queries) + largest_norm)
    return proposed, rough, noise


def _to_float32(rows):
    """Widens float16 rows with the processor's own instruction, several times faster than NumPy."""
    if rows.dtype != np.float16:
        return rows.astype(np.float32, copy=False)
    codec = faiss.ScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16)
    return codec.decode(np.ascontiguousarray(rows).view(np.uint8))


def _refine(queries, index, proposed, num_possible, wanted):
    """Computes the candidates' distances in one fixed way; gives the best, ties by position.

    Sums in float64 and rounds once, so that the same two descriptors have the same distance in
    every part and on every processor.

    Args:
        proposed: (q, num_proposed) positions, roughly nearest first.
        num_possible: (q,), how many of them can be among the nearest; at least `wanted`.

    Returns:
        (positions (q, wanted), distances (q, wanted) float32).
    """
    found = np.empty((len(queries), wanted), np.int32)
    distances = np.empty((len(queries), wanted), np.float32)

    def refine(row):
        candidates = np.sort(proposed[row, : num_possible[row]])
        # Both sides in float64 before the subtraction: mixed types take NumPy 7 times as long.
        difference = index[candidates].astype(np.float64)
        difference -= queries[row].astype(np.float64)
        exact = np.einsum("ij,ij->i", difference, difference).astype(np.float32)
        # Stable: candidates ascend, so ties stay ascending.
        order = np.argsort(exact, kind="stable")[:wanted]
        found[row], distances[row] = candidates[order], exact[order]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(refine, range(len(queries))):
            pass
    return found, distances
