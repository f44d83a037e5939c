"""Merges the parts of a search: the result is the same however many there were."""

import functools
from dataclasses import dataclass

import numpy as np

from data.arrays import check_arrays, column, columns_of, load_arrays
from search.reranks import RERANKS
from utils import ExpectedError

QUERY_BLOCK = 4096  # queries at a time: with 6 parts of 200 candidates, 0.3 GB


@dataclass(frozen=True)
class Part:
    """What a part found: the columns of part-K-of-N.npz.

    Attributes:
        query_ids: (num_queries,) uint64, ascending.
        query_landmarks: (num_queries,) int64, as the recogniser names them.
        query_places: (num_queries, 3) int64, shard number, offset and size of each picture.
        index_ids, index_landmarks, index_places: the same of the part's index images.
        row_ends, positions, distances: as in `exact.Candidates`.
    """

    query_ids: np.ndarray = column("uint64", "queries", order="increasing")
    query_landmarks: np.ndarray = column("int64", "queries")
    query_places: np.ndarray = column("int64", "queries", 3, at_least=0)
    index_ids: np.ndarray = column("uint64", "index images", order="ascending")
    index_landmarks: np.ndarray = column("int64", "index images")
    index_places: np.ndarray = column("int64", "index images", 3, at_least=0)
    row_ends: np.ndarray = column("int64", "queries", at_least=0, order="ascending")
    positions: np.ndarray = column("int32", "candidates", at_least=0, below="index images")
    distances: np.ndarray = column("float32", "candidates", at_least=0)

    def candidates(self, first, last):
        """Gives (rows, positions, distances) of the queries `first` to `last - 1`."""
        return _cut(first, last, self.row_ends, self.positions, self.distances)


@dataclass(frozen=True)
class NamedPart(Part):
    """A part that has the candidates of the reranks by confidence and by soft labels, too.

    Attributes:
        confident_ends, confident_positions, confident_scores: as of
            `candidates.best_by_confidence`.
        soft_ends, soft_positions, soft_scores, soft_distances: as of
            `candidates.best_by_soft_labels`.
    """

    confident_ends: np.ndarray = column("int64", "queries", at_least=0, order="ascending")
    confident_positions: np.ndarray = column("int32", "confident", at_least=0, below="index images")
    confident_scores: np.ndarray = column("float64", "confident")
    soft_ends: np.ndarray = column("int64", "queries", at_least=0, order="ascending")
    soft_positions: np.ndarray = column("int32", "soft", at_least=0, below="index images")
    soft_scores: np.ndarray = column("float64", "soft", at_least=0)
    soft_distances: np.ndarray = column("float32", "soft", at_least=0)

    def by_confidence(self, first, last):
        """Gives (rows, positions, scores) of some queries, the lower the better."""
        columns = self.confident_positions, self.confident_scores
        return _cut(first, last, self.confident_ends, *columns)

    def by_soft_labels(self, first, last):
        """Gives (rows, positions, distances, scores) of some queries, the higher the better.

        Behind those with a common label come the nearest of all images. One of them that is among
        the first as well counts there, since `_keep_best` takes the best place of an image.
        """
        columns = self.soft_positions, self.soft_distances, self.soft_scores
        alike = _cut(first, last, self.soft_ends, *columns)
        rows, positions, distances = self.candidates(first, last)
        others = (rows, positions, distances, np.zeros(len(rows)))
        return tuple(np.concatenate(pair) for pair in zip(alike, others, strict=True))


def _cut(first, last, ends, *columns):
    """Cuts the queries `first` to `last - 1` out of ragged columns: (rows, *columns)."""
    begin = ends[first - 1] if first else 0
    ends = ends[first:last]
    rows = np.repeat(np.arange(first, last), np.diff(ends, prepend=begin))
    return rows, *(column[begin : ends[-1]] for column in columns)


RAGGED = {
    "row_ends": "positions",
    "confident_ends": "confident_positions",
    "soft_ends": "soft_positions",
}
OF_ALL_PARTS = ("query_ids", "query_landmarks", "query_places")  # columns that parts share


@dataclass(frozen=True)
class Ranking:
    """The best index images of every query.

    Attributes:
        query_ids: (num_queries,) uint64, ascending.
        row_ends: (num_queries,) int64; the images of query q end there.
        image_ids: (n,) uint64, query after query, best first.
        distances: (n,) float64, after the rerank.
        parts, positions: (n,) int, where each image stands: the part, and its row in it.
    """

    query_ids: np.ndarray
    row_ends: np.ndarray
    image_ids: np.ndarray
    distances: np.ndarray
    parts: np.ndarray
    positions: np.ndarray


def load_parts(paths):
    """Reads part files and checks that they are all the parts of one search.

    Args:
        paths: in any order.

    Returns:
        (list of `Part` by number, the fingerprint that they share).

    Raises:
        ExpectedError: a part is missing, repeated, damaged, or of another search.
    """
    parts, first = {}, None
    for path in paths:
        part, fingerprint = load_part(path)
        number = fingerprint.pop("part")
        fingerprint.pop("left_out", None)  # the index images that were searched are counted
        fingerprint.pop("shards", None)  # each part has its own
        first = first or (path, part, fingerprint)
        _require_one_search(path, part, fingerprint, *first)
        if number in parts:
            raise ExpectedError(
                f"{path}: part {number} is given twice; expected each part once; leave one out"
            )
        parts[number] = part
    shared = first[2]
    if missing := sorted(set(range(shared["parts"])) - parts.keys()):
        raise ExpectedError(
            f"part {', '.join(map(str, missing))} of {shared['parts']} is missing; expected all "
            f"parts; search part {missing[0]} of {shared['parts']} first"
        )
    return [parts[number] for number in sorted(parts)], shared


def _require_one_search(path, part, fingerprint, first_path, first, shared):
    """Raises ExpectedError if a part is of another search than the first one."""
    for key in fingerprint.keys() | shared.keys():
        if fingerprint.get(key) != shared.get(key):
            raise ExpectedError(
                f"{path}: {key} is {fingerprint.get(key)}, but {shared.get(key)} in "
                f"{first_path}; expected parts of one search; search the odd one again"
            )
    for name in OF_ALL_PARTS:
        if not np.array_equal(getattr(part, name), getattr(first, name)):
            raise ExpectedError(
                f"{path}: its {name} are not those of {first_path}; expected parts of one search; "
                "search the odd one again"
            )


def load_part(path):
    """Reads a part file and checks what is in it, whoever wrote it: (`Part`, its fingerprint).

    Raises:
        ExpectedError: it is damaged, or not a part.
    """
    arrays, fingerprint = load_arrays(path)
    number, num_parts, top = (fingerprint.get(key) for key in ("part", "parts", "top"))
    is_part = all(type(value) is int for value in (number, num_parts, top))
    is_part &= fingerprint.get("rerank", "divide") in RERANKS
    kind = NamedPart if "rerank" in fingerprint else Part
    columns = columns_of(kind)
    if arrays.keys() != columns.keys() or not (is_part and 0 <= number < num_parts and top > 0):
        raise ExpectedError(
            f"{path}: not a part of a search; expected a part-K-of-N.npz of retrieval.py; "
            "leave it out"
        )
    check_arrays(path, arrays, columns)
    for name in arrays.keys() & RAGGED.keys():
        ends, num_candidates = arrays[name], len(arrays[RAGGED[name]])
        if (ends[-1] if len(ends) else 0) != num_candidates:
            raise ExpectedError(
                f"{path}: its rows do not end with its {num_candidates} candidates; expected a "
                "part as retrieval.py writes it; search it again"
            )
    return kind(**arrays), fingerprint


def merge_parts(parts, divisor, num_nearest, rerank="divide"):
    """Merges the candidates of all parts into each query's best images.

    Args:
        parts: list of all `Part`s; of `NamedPart`s for the reranks by confidence and soft labels.
        divisor: of the squared distance to images of the query's landmark; 1 = no rerank.
        num_nearest: images wanted per query.
        rerank: one of `reranks.RERANKS`; only "divide" looks at the divisor.

    Returns:
        `Ranking`.
    """
    merge_block = {"confidence": _merge_by_confidence, "soft": _merge_by_soft_labels}.get(
        rerank, functools.partial(_merge_by_distance, divisor=divisor if rerank == "divide" else 1)
    )
    query_ids = parts[0].query_ids
    counts, pieces = np.zeros(len(query_ids), np.int64), [[] for _ in range(4)]
    for first in range(0, len(query_ids), QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, len(query_ids))
        rows, columns = merge_block(parts, first, last, num_nearest=num_nearest)
        counts += np.bincount(rows, minlength=len(query_ids))
        for piece, of_block in zip(pieces, columns, strict=True):
            piece.append(of_block)
    columns = [np.concatenate(piece) if piece else np.empty(0, np.uint64) for piece in pieces]
    return Ranking(query_ids, np.cumsum(counts), *columns)


def _merge_by_distance(parts, first, last, num_nearest, divisor):
    """Merges a block of queries: (rows, columns of `Ranking` from its image ids on)."""
    rows, positions, distances, image_ids, numbers = _join(parts, "candidates", first, last)
    landmarks = _look_up(parts, "index_landmarks", positions, numbers)
    agrees = landmarks == parts[0].query_landmarks[rows]
    kept, reranked = merge_candidates(rows, image_ids, distances, agrees, divisor, num_nearest)
    return rows[kept], (image_ids[kept], reranked, numbers[kept], positions[kept])


def _merge_by_confidence(parts, first, last, num_nearest):
    rows, positions, scores, image_ids, numbers = _join(parts, "by_confidence", first, last)
    kept = _keep_best(rows, image_ids, [scores], num_nearest)
    return rows[kept], (image_ids[kept], scores[kept], numbers[kept], positions[kept])


def _merge_by_soft_labels(parts, first, last, num_nearest):
    found = _join(parts, "by_soft_labels", first, last)
    rows, positions, distances, scores, image_ids, numbers = found
    kept = _keep_best(rows, image_ids, [-scores, distances], num_nearest)
    distances = distances[kept].astype(np.float64)
    return rows[kept], (image_ids[kept], distances, numbers[kept], positions[kept])


def _join(parts, method, first, last):
    """Joins what a method of all parts gives: (rows, positions, ..., image ids, parts' numbers)."""
    found = [getattr(part, method)(first, last) for part in parts]
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    numbers = np.repeat(np.arange(len(parts)), [len(rows) for rows, *_ in found])
    return *columns, _look_up(parts, "index_ids", columns[1], numbers), numbers


def _look_up(parts, name, positions, numbers):
    """Gives what a column of the parts has at some positions, ordered by part."""
    ends = np.cumsum(np.bincount(numbers, minlength=len(parts)))[:-1]
    pieces = zip(parts, np.split(positions, ends), strict=True)
    return np.concatenate([getattr(part, name)[places] for part, places in pieces])


def merge_candidates(rows, image_ids, distances, agrees, divisor, num_nearest):
    """Merges the candidates of all parts: reranks, removes repetitions, cuts.

    Args:
        rows: (n,) int, the query of each candidate.
        image_ids: (n,) uint64, index images.
        distances: (n,) float32, squared L2.
        agrees: (n,) bool, the recogniser names the same landmark for query and index image.
        divisor: of the distances where `agrees`; 1 leaves them as they are.
        num_nearest: images wanted per query.

    Returns:
        (kept (m,) int64 places in the arguments, by query, then nearest first; reranked distances
        (m,) float64). Equal distances go by image id.
    """
    reranked = distances.astype(np.float64)
    reranked[agrees] /= divisor
    kept = _keep_best(rows, image_ids, [reranked], num_nearest)
    return kept, reranked[kept]


def _keep_best(rows, image_ids, keys, num_nearest):
    """Keeps each query's best candidates, every image once.

    Args:
        rows, image_ids, num_nearest: as for `merge_candidates`.
        keys: list of (n,) float, the lower the better; the first decides, the next where it is
            equal, the image id in the end.

    Returns:
        (m,) int64 places in the arguments, by query, then best first.
    """
    table = _table_of(rows)
    ids = image_ids[table]
    # Rows of a table are sorted several times faster than all candidates at once.
    keys = [np.where(table >= 0, key[table], np.inf) for key in keys]
    order = np.lexsort((ids, *reversed(keys)), axis=1)
    table, ids = np.take_along_axis(table, order, axis=1), np.take_along_axis(ids, order, axis=1)
    # The same image may lie in two shards, or in two lists: its first, best place counts.
    by_image = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, by_image, axis=1)
    is_repeated = np.zeros(table.shape, bool)
    np.put_along_axis(is_repeated, by_image[:, 1:], ids[:, 1:] == ids[:, :-1], axis=1)
    is_kept = (table >= 0) & ~is_repeated
    is_kept &= np.cumsum(is_kept, axis=1) <= num_nearest
    return table[is_kept]


def _table_of(rows):
    """Gives the places of `rows`, one row of the table for each value in it; -1 fills up."""
    order = np.argsort(rows, kind="stable")
    _, begins, counts = np.unique(rows[order], return_index=True, return_counts=True)
    table = np.full((len(counts), counts.max(initial=0)), -1)
    columns = np.arange(len(rows)) - np.repeat(begins, counts)
    table[np.repeat(np.arange(len(counts)), counts), columns] = order
    return table
