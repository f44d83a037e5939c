"""Reads and merges the parts of a search: the result is the same however many there were."""

from dataclasses import dataclass, field

import numpy as np

from data.arrays import check_arrays, column, columns_of, load_arrays
from data.landmarks import format_image_id
from search.candidates import AGREEMENT_WEIGHT
from search.reranks import RERANKS
from utils import ExpectedError

QUERY_BLOCK = 4096  # queries at a time: with 6 parts of 200 candidates, 0.3 GB
OF_A_PART = ("part", "shards", "left_out", "files")  # facts that parts do not share


@dataclass(frozen=True)
class Part:
    """What a part found: the columns of part-K-of-N.npz."""

    query_ids: np.ndarray = column("uint64", "queries", order="increasing")
    query_landmarks: np.ndarray = column("int64", "queries")  # as the recogniser names them
    # shard number, offset and size of each picture
    query_places: np.ndarray = column("int64", "queries", 3, at_least=0)
    # the same of the part's index images
    index_ids: np.ndarray = column("uint64", "index images", order="ascending")
    index_landmarks: np.ndarray = column("int64", "index images")
    index_places: np.ndarray = column("int64", "index images", 3, at_least=0)
    # as in `exact.Candidates`
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


@dataclass(frozen=True)
class Ranking:
    """The best index images of every query."""

    query_ids: np.ndarray  # (num_queries,) uint64, ascending
    row_ends: np.ndarray  # (num_queries,) int64; the images of query q end there
    image_ids: np.ndarray  # (n,) uint64, query after query, best first
    distances: np.ndarray  # (n,) float64, after the rerank
    # (n,) int, where each image stands: the part, and its row in it
    parts: np.ndarray
    positions: np.ndarray

    def as_rows(self, query_ids):
        """Gives a submission's rows: dict, image id of each query -> its images' ids, as words."""
        ids, ends = list(map(format_image_id, self.image_ids)), self.row_ends.tolist()
        found = (ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False))
        found = zip(map(format_image_id, self.query_ids), found, strict=True)
        return {image_id: [] for image_id in map(format_image_id, query_ids)} | dict(found)


def is_part(fingerprint):
    """Tells whether a page of facts says which part it is, of how many."""
    number, num_parts = fingerprint.get("part"), fingerprint.get("parts")
    return type(number) is int and type(num_parts) is int and 0 <= number < num_parts


def load_all(paths, load, columns, images, whole):
    """Reads part files and checks that they belong together, are all, and hold an image.

    `load` gives (part, its fingerprint) of a path; all parts share the attributes `columns`, and
    `images` is that of the images that were searched; `whole` is what they are parts of, in words.
    Gives (list of (part, its fingerprint) by number, dict of the facts that all share).
    """
    parts, first = {}, None
    for path in paths:
        part, fingerprint = load(path)
        shared = {key: fact for key, fact in fingerprint.items() if key not in OF_A_PART}
        first = first or (path, part, shared)
        _require_one(path, part, shared, first, columns, whole)
        number = fingerprint["part"]
        if number in parts:
            what = f"{path}: part {number} is given twice"
            raise ExpectedError(f"{what}; expected each part once; leave one out")
        parts[number] = part, fingerprint
    shared = first[2]
    if missing := sorted(set(range(shared["parts"])) - parts.keys()):
        what = f"part {', '.join(map(str, missing))} of {shared['parts']} is missing"
        advice = f"search part {missing[0]} of {shared['parts']} first"
        raise ExpectedError(f"{what}; expected all parts of the {whole}; {advice}")
    if not any(len(getattr(part, images)) for part, _ in parts.values()):
        raise ExpectedError(
            f"{first[0]}: no image is in any of the {shared['parts']} parts of the {whole}; "
            "expected the images that the source's table names; check that table and shards "
            "belong together, and search again"
        )
    return [parts[number] for number in sorted(parts)], shared


def _require_one(path, part, shared, first, columns, whole):
    """Raises ExpectedError if a part does not belong to the first one."""
    first_path, first_part, first_shared = first
    advice = f"expected parts of one {whole}; search the odd one again, with the same queries.npz"
    for key in shared.keys() | first_shared.keys():
        if shared.get(key) != first_shared.get(key):
            what = f"{path}: {key} is {shared.get(key)}, but {first_shared.get(key)}"
            raise ExpectedError(f"{what} in {first_path}; {advice}")
    for name in columns:
        if not np.array_equal(getattr(part, name), getattr(first_part, name)):
            raise ExpectedError(f"{path}: its {name} are not those of {first_path}; {advice}")


def load_parts(paths):
    """Reads part files, see `load_all`: (list of `Part` by number, the facts that all share)."""
    of_all = "query_ids", "query_landmarks", "query_places"
    parts, shared = load_all(paths, load_part, of_all, "index_ids", "search")
    return [part for part, _ in parts], shared


def load_part(path):
    """Reads and checks a part file: (`Part`, fingerprint); raises ExpectedError if it is none."""
    arrays, fingerprint = load_arrays(path)
    top, is_ours = fingerprint.get("top"), is_part(fingerprint)
    is_ours &= type(top) is int and top > 0 and isinstance(fingerprint.get("rerank", ""), str)
    wanted, ends = columns_of(Part), {"row_ends": "positions"}
    # The best by another weight are other images: a merge does without such candidates.
    is_of_weight = fingerprint.get("weight") == AGREEMENT_WEIGHT
    for rerank in RERANKS.values():
        if is_of_weight and rerank.columns and rerank.columns.keys() <= arrays.keys():
            wanted |= rerank.columns
            row_ends, positions, *_ = rerank.columns
            ends[row_ends] = positions
    if not wanted.keys() <= arrays.keys() or not is_ours:
        what = f"{path}: not a part of a search; expected a part-K-of-N.npz of retrieval.py"
        raise ExpectedError(f"{what}; leave it out")
    arrays = {name: arrays[name] for name in wanted}  # less those of reranks that are no more
    check_arrays(path, arrays, wanted)
    for name, positions in ends.items():
        num_candidates = len(arrays[positions])
        if arrays[name].max(initial=0) != num_candidates:  # they ascend
            what = f"{path}: its rows do not end with its {num_candidates} candidates"
            raise ExpectedError(f"{what}; expected a part of retrieval.py; search it again")
    own = {name: arrays.pop(name) for name in columns_of(Part)}
    return Part(**own, more=arrays), fingerprint


def merge_parts(parts, divisor, num_nearest, rerank="divide"):
    """Merges the candidates of all parts into each query's best images; gives `Ranking`.

    Takes all `Part`s, with the columns of the rerank, one of `reranks.RERANKS`; the divisor is of
    the squared distance to images of the query's landmark, for "divide".
    """
    order = RERANKS[rerank].order
    query_ids, num_queries = parts[0].query_ids, len(parts[0].query_ids)
    counts, pieces = np.zeros(num_queries, np.int64), []
    for first in range(0, num_queries, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, num_queries)
        found = [order(part, first, last, divisor) for part in parts]
        rows, positions, keys, distances = zip(*found, strict=True)
        numbers = np.repeat(np.arange(len(parts)), [len(of_part) for of_part in rows])
        ids = [part.index_ids[own] for part, own in zip(parts, positions, strict=True)]
        rows, ids = np.concatenate(rows), np.concatenate(ids)
        kept = _keep_best(rows, ids, np.concatenate(keys), num_nearest)
        counts += np.bincount(rows[kept], minlength=num_queries)
        columns = ids, np.concatenate(distances), numbers, np.concatenate(positions)
        pieces.append([column[kept] for column in columns])
    pieces = pieces or [4 * [np.empty(0, np.uint64)]]
    return Ranking(query_ids, np.cumsum(counts), *map(np.concatenate, zip(*pieces, strict=True)))


def _keep_best(rows, image_ids, keys, num_nearest):
    """Keeps each query's best candidates, every image once: (m,) int64, by query, best first."""
    # Rows of a table, which -1 fills up, are sorted several times faster than all at once.
    order = np.argsort(rows, kind="stable")
    _, begins, counts = np.unique(rows[order], return_index=True, return_counts=True)
    table = np.full((len(counts), counts.max(initial=0)), -1)
    columns = np.arange(len(rows)) - np.repeat(begins, counts)
    table[np.repeat(np.arange(len(counts)), counts), columns] = order
    keys = np.where(table >= 0, keys[table], np.inf)
    order, is_kept = rank_once(keys, image_ids[table], num_nearest)
    return np.take_along_axis(table, order, axis=1)[is_kept]


def rank_once(keys, image_ids, num_kept):
    """Ranks images in each row by key, then by id: (order, which of that are kept), both (n, k).

    An image counts once, at its best place: it may lie in two shards, or in two lists. An infinite
    key stands for no image.
    """
    order = np.lexsort((image_ids, keys), axis=1)
    ids = np.take_along_axis(image_ids, order, axis=1)
    by_image = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, by_image, axis=1)
    is_repeated = np.zeros(ids.shape, bool)
    np.put_along_axis(is_repeated, by_image[:, 1:], ids[:, 1:] == ids[:, :-1], axis=1)
    is_kept = (np.take_along_axis(keys, order, axis=1) < np.inf) & ~is_repeated
    return order, is_kept & (np.cumsum(is_kept, axis=1) <= num_kept)
