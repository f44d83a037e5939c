"""Which index images of a part a rerank can need, with their scores: exact, in parts too.

Of each rerank a part keeps the best `num_nearest` of each query, so that the best of all parts
together are among them. What makes these lists complete is told where each is made.
"""

import numpy as np

MAX_PAIRS = 1 << 22  # of a query and an index image with a common label, at a time: 0.3 GB
PAIR_BLOCK = 4096  # pairs whose distances are computed at a time
AGREEMENT_WEIGHT = 4


def key_of_agreement(distances, agreements):
    """Gives what orders by cos + 4 a: the squared distance, which is 2 - 2 cos, less 8 a."""
    return distances - 2 * AGREEMENT_WEIGHT * agreements


def best_by_agreement(queries, query_names, index, index_names, num_nearest):
    """Finds each query's best index images by cos + 4 a, among those that share a landmark with it.

    Complete, together with the nearest of all, which the part has anyway. An inverted list gives
    every index image that has a landmark in common with the query: all others have a = 0, and go by
    their distance alone. What is nearer than one of those goes before it, since a is never
    below 0; so it is among the `num_nearest` nearest of all if it is so in the end.

    Takes descriptors of length 1 and their `reranks.SoftLabels`; gives ragged rows as
    `exact.Candidates`, with the agreements (n,) float64 before the distances: the sum over the
    common landmarks of the products of both weights.
    """
    # (label, position, weight) of all images by label, then by position
    positions, ranks = np.nonzero(index_names.weights > 0)
    order = np.argsort(index_names.labels[positions, ranks], kind="stable")
    places = positions[order], ranks[order]
    lists = index_names.labels[places], places[0], index_names.weights[places]
    begins = np.searchsorted(lists[0], query_names.labels, "left")
    ends = np.searchsorted(lists[0], query_names.labels, "right")
    num_pairs = np.where(query_names.weights > 0, ends - begins, 0).sum(axis=1)
    pieces, block = [], np.cumsum(num_pairs) // MAX_PAIRS
    for rows in np.split(np.arange(len(queries)), np.flatnonzero(np.diff(block)) + 1):
        pairs = _pairs_with_common_labels(query_names, rows, lists)
        pieces.append(_best_pairs(queries, index, *pairs, num_nearest))
    rows, positions, scores, distances = map(np.concatenate, zip(*pieces, strict=True))
    counts = np.bincount(rows, minlength=len(queries))
    return np.cumsum(counts), positions.astype(np.int32), scores, distances


def _pairs_with_common_labels(names, rows, lists):
    """Scores all index images that share a label with some queries: (rows, positions, scores)."""
    labels, positions, weights = lists
    of_query, columns = np.nonzero(names.weights[rows] > 0)
    order = np.lexsort((names.labels[rows[of_query], columns], of_query))  # a row's labels ascend
    query_rows, columns = rows[of_query[order]], columns[order]
    begins = np.searchsorted(labels, names.labels[query_rows, columns], "left")
    counts = np.searchsorted(labels, names.labels[query_rows, columns], "right") - begins
    entries = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - begins, counts)
    products = np.repeat(names.weights[query_rows, columns], counts) * weights[entries]
    query_rows, positions = np.repeat(query_rows, counts), positions[entries]
    # Pairs in one number sort faster; stable, so that the products of a pair go by label.
    pairs = query_rows * (positions.max(initial=0) + 1) + positions
    order = np.argsort(pairs, kind="stable")
    begins = np.flatnonzero(np.diff(pairs[order], prepend=-1))
    scores = np.add.reduceat(products[order], begins) if len(begins) else products
    return query_rows[order[begins]], positions[order[begins]], scores


def _best_pairs(queries, index, rows, positions, scores, num_nearest):
    """Keeps the best pairs of each query: (rows, positions, scores, distances)."""
    # The `num_nearest` that agree most give a key that the last of the best cannot exceed. What
    # would exceed it even at distance 0 is left out before its distance is computed.
    order = np.lexsort((-scores, rows))
    most = order[_rank_in_row(rows[order]) < num_nearest]
    distances = _distances(queries, index, rows[most], positions[most]).astype(np.float64)
    keys = key_of_agreement(distances, scores[most])
    limits = np.full(len(queries), -np.inf)
    np.maximum.at(limits, rows[most], keys)
    limits[np.bincount(rows, minlength=len(queries)) <= num_nearest] = np.inf
    chosen = key_of_agreement(0, scores) <= limits[rows]
    rows, positions, scores = rows[chosen], positions[chosen], scores[chosen]
    distances = _distances(queries, index, rows, positions)
    order = np.lexsort((positions, key_of_agreement(distances.astype(np.float64), scores), rows))
    order = order[_rank_in_row(rows[order]) < num_nearest]
    return rows[order], positions[order], scores[order], distances[order]


def _rank_in_row(rows):
    """Numbers the entries of each row, from 0; `rows` ascend."""
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    return np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))


def _distances(queries, index, rows, positions):
    """Computes the squared distance of each pair, as the nearest have it: (n,) float32."""
    from search.exact import squared_distances  # it loads faiss

    distances = np.empty(len(rows), np.float32)
    for begin in range(0, len(rows), PAIR_BLOCK):
        pairs = slice(begin, begin + PAIR_BLOCK)
        places = positions[pairs, None].astype(np.int64)
        distances[pairs] = squared_distances(queries[rows[pairs]], index, places)[:, 0]
    return distances
