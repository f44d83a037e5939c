"""Query expansion and database augmentation: descriptors that their nearest index images sharpen.

    x' = normalised sum of x and of cos^alpha y over its k - 1 nearest index images y

A query becomes what it and its neighbors have in common; an index image, too. Exact: the neighbors
are those of the whole index, so that a part needs the descriptors of all others. The sums do not
depend on the order of files: their terms are rounded to multiples of 2^-40, which add up exactly.

Source: Radenovic, Tolias, Chum, arXiv:1711.02512 (alpha query expansion); Arandjelovic, Zisserman,
CVPR 2012 (database-side augmentation).
"""

import numpy as np

from data.arrays import BLOCK_ROWS
from search.gallery import Gallery, find_neighbors

ALPHA = 3  # the exponent of the cosines
GRAIN = 2.0**40  # of a sum: up to 8192 terms of 1 and less are exact in float64


def index_of(files, image_ids):
    """Gives the whole index as a `Gallery` whose landmarks mean nothing, see there for `files`."""
    image_ids = np.unique(image_ids)
    return Gallery(files, image_ids, np.zeros(len(image_ids), np.int64))


def expand(image_ids, descriptors, index, num_summed):
    """Replaces descriptors by the sum of themselves and their nearest index images.

    Takes the ids (n,) of images, which are no neighbors of their own, their descriptors (n, d) of
    length 1, float32 or float16, the `Gallery` of `index_of`, and how many descriptors are in a
    sum, itself included; 1 gives the same up to rounding.
    """
    found = find_neighbors(index, descriptors, num_summed)
    # One more than needed was asked for: the image itself, or the farthest if it is not there.
    is_other = (found.landmark_ids >= 0) & (found.image_ids != image_ids[:, None])
    is_other &= np.cumsum(is_other, axis=1) < num_summed
    weights = np.where(is_other, found.cosines, 0).astype(np.float64).clip(min=0) ** ALPHA
    sums = np.rint(descriptors.astype(np.float64) * GRAIN)
    is_left = weights > 0
    for positions, chunk in index.chunks():
        rows = np.searchsorted(index.image_ids[positions], found.image_ids)
        rows = np.minimum(rows, len(positions) - 1)
        is_here = is_left & (index.image_ids[positions[rows]] == found.image_ids)
        is_left &= ~is_here  # an image that is in two shards counts once
        _add(sums, weights, chunk, np.where(is_here, rows, -1))
    for begin in range(0, len(sums), BLOCK_ROWS):
        rows = sums[begin : begin + BLOCK_ROWS]
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
    return sums.astype(descriptors.dtype)


def _add(sums, weights, chunk, positions):
    """Adds the weighted rows of a chunk to the sums, neighbor after neighbor."""
    for neighbor in range(positions.shape[1]):
        rows = np.flatnonzero(positions[:, neighbor] >= 0)
        for begin in range(0, len(rows), BLOCK_ROWS):
            some = rows[begin : begin + BLOCK_ROWS]
            terms = chunk[positions[some, neighbor]].astype(np.float64)
            terms *= GRAIN * weights[some, neighbor, None]
            sums[some] += np.rint(terms, out=terms)
