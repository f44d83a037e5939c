"""Merges the parts of a search: the result is the same however many there were."""

from dataclasses import dataclass, field

import numpy as np

from data.arrays import check_arrays, column, columns_of, load_arrays
from data.landmarks import format_image_id
from search.part_files import load_all
from search.reranks import AGREEMENT_WEIGHT, RERANKS
from utils import ExpectedError

QUERY_BLOCK = 4096  # queries at a time: with 6 parts of 200 candidates, 0.3 GB


@dataclass(frozen=True)
class Part:
    """What a part found: the columns of part-K-of-N.npz."""

    query_ids: np.ndarray = column("uint64", "queries", order="increasing")
    query_landmarks: np.ndarray = column("int64", "queries")  # as the recogniser names them
    # shard number, offset and size of each picture
    query_places: np.ndarray = column("int64", "queries", 3, at_least=0)
    # index_ids, index_landmarks, index_places: the same of the part's index images
    index_ids: np.ndarray = column("uint64", "index images", order="ascending")
    index_landmarks: np.ndarray = column("int64", "index images")
    index_places: np.ndarray = column("int64", "index images", 3, at_least=0)
    # row_ends, positions, distances: as in `exact.Candidates`
    row_ends: np.ndarray = column("int64", "queries", at_least=0, order="ascending")
    positions: np.ndarray = column("int32", "candidates", at_least=0, below="index images")
    distances: np.ndarray = column("float32", "candidates", at_least=0)

    # the columns that reranks want besides, see `reranks.Rerank`
    more: dict = field(default_factory=dict)

    def __getitem__(self, name):
        return self.more[name] if name in self.more else getattr(self, name)

    def cut(self, first, last, ends, *names):
        """Cuts the queries `first` to `last - 1` out of ragged columns: (rows, *columns)."""
        ends = self[ends]
        begin, ends = ends[first - 1] if first else 0, ends[first:last]
        rows = np.repeat(np.arange(first, last), np.diff(ends, prepend=begin))
        return rows, *(self[name][begin : ends[-1]] for name in names)


OF_ALL_PARTS = ("query_ids", "query_landmarks", "query_places")  # columns that parts share


@dataclass(frozen=True)
class Ranking:
    """The best index images of every query."""

    query_ids: np.ndarray  # (num_queries,) uint64, ascending
    row_ends: np.ndarray  # (num_queries,) int64; the images of query q end there
    image_ids: np.ndarray  # (n,) uint64, query after query, best first
    distances: np.ndarray  # (n,) float64, after the rerank
    # parts, positions: (n,) int, where each image stands: the part, and its row in it
    parts: np.ndarray
    positions: np.ndarray

    def as_rows(self, query_ids):
        """Gives a submission's rows: dict, image id of each query -> its images' ids, as words."""
        rows = {image_id: [] for image_id in map(format_image_id, query_ids)}
        ids, ends = list(map(format_image_id, self.image_ids)), self.row_ends.tolist()
        for query_id, begin, end in zip(self.query_ids, [0, *ends], ends, strict=False):
            rows[format_image_id(query_id)] = ids[begin:end]
        return rows


def load_parts(paths):
    """Reads part files, see `load_all`: (list of `Part` by number, the facts that all share)."""
    parts, shared = load_all(paths, load_part, OF_ALL_PARTS, "index_ids", "search")
    return [part for part, _ in parts], shared


def load_part(path):
    """Reads a part file and checks what is in it, whoever wrote it: (`Part`, its fingerprint).

    Raises:
        ExpectedError: it is damaged, or not a part.
    """
    arrays, fingerprint = load_arrays(path)
    number, num_parts, top = (fingerprint.get(key) for key in ("part", "parts", "top"))
    is_part = all(type(value) is int for value in (number, num_parts, top))
    is_part &= isinstance(fingerprint.get("rerank", "divide"), str)
    wanted, ends = columns_of(Part), {"row_ends": "positions"}
    # The best by another weight are other images: a merge does without such candidates.
    is_of_weight = fingerprint.get("weight") == AGREEMENT_WEIGHT
    for rerank in RERANKS.values():
        if is_of_weight and rerank.columns and rerank.columns.keys() <= arrays.keys():
            wanted |= rerank.columns
            row_ends, positions, *_ = rerank.columns
            ends[row_ends] = positions
    if not wanted.keys() <= arrays.keys() or not (is_part and 0 <= number < num_parts and top > 0):
        raise ExpectedError(
            f"{path}: not a part of a search; expected a part-K-of-N.npz of retrieval.py; "
            "leave it out"
        )
    arrays = {name: arrays[name] for name in wanted}  # less those of reranks that are no more
    check_arrays(path, arrays, wanted)
    for name, positions in ends.items():
        num_candidates = len(arrays[positions])
        if (arrays[name][-1] if len(arrays[name]) else 0) != num_candidates:
            raise ExpectedError(
                f"{path}: its rows do not end with its {num_candidates} candidates; expected a "
                "part as retrieval.py writes it; search it again"
            )
    own = {name: arrays.pop(name) for name in columns_of(Part)}
    return Part(**own, more=arrays), fingerprint


def merge_parts(parts, divisor, num_nearest, rerank="divide"):
    """Merges the candidates of all parts into each query's best images; gives `Ranking`.

    Args:
        parts: list of all `Part`s; with the columns of the rerank.
        divisor: of the squared distance to images of the query's landmark; 1 = no rerank.
        num_nearest: images wanted per query.
        rerank: one of `reranks.RERANKS`; only "divide" looks at the divisor.
    """
    order = RERANKS[rerank].order
    query_ids, num_queries = parts[0].query_ids, len(parts[0].query_ids)
    counts, pieces = np.zeros(num_queries, np.int64), [[] for _ in range(4)]
    for first in range(0, num_queries, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, num_queries)
        found = [order(part, first, last, divisor) for part in parts]
        rows, positions, keys, distances = zip(*found, strict=True)
        numbers = np.repeat(np.arange(len(parts)), [len(of_part) for of_part in rows])
        ids = [part.index_ids[own] for part, own in zip(parts, positions, strict=True)]
        rows, ids = np.concatenate(rows), np.concatenate(ids)
        keys = [np.concatenate(key) for key in zip(*keys, strict=True)]
        kept = _keep_best(rows, ids, keys, num_nearest)
        counts += np.bincount(rows[kept], minlength=num_queries)
        columns = ids, np.concatenate(distances), numbers, np.concatenate(positions)
        for piece, of_block in zip(pieces, columns, strict=True):
            piece.append(of_block[kept])
    columns = [np.concatenate(piece) if piece else np.empty(0, np.uint64) for piece in pieces]
    return Ranking(query_ids, np.cumsum(counts), *columns)


def _keep_best(rows, image_ids, keys, num_nearest):
    """Keeps each query's best candidates, every image once: (m,) int64, by query, best first."""
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
    """Gives where values of `rows` are, a row of the table for each value; -1 fills up."""
    order = np.argsort(rows, kind="stable")
    _, begins, counts = np.unique(rows[order], return_index=True, return_counts=True)
    table = np.full((len(counts), counts.max(initial=0)), -1)
    columns = np.arange(len(rows)) - np.repeat(begins, counts)
    table[np.repeat(np.arange(len(counts)), counts), columns] = order
    return table
