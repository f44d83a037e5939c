"""Describes and searches one part of a split, for every script that does so.

A part is the share of a split that one kernel takes. Its file holds the candidates of all queries;
`merging` joins the files of all parts.
"""

import json
from dataclasses import dataclass, replace

import numpy as np

import device_search
import search
from describe import describe_shards, describe_split, digest_of_shards, gather
from descriptions import digest_of, load_if_of, load_queries, unit_length
from landmarks import read_image_ids
from session import QUERIES, part_name
from sources import TEST_CSV
from utils import ExpectedError, save_arrays, say


@dataclass(frozen=True)
class Search:
    """What to search and how; can be pickled.

    Attributes:
        split: "train", "index" or "test", which is searched.
        num_parts: parts of the split.
        num_nearest: images wanted for a query.
        normalise: compare descriptors scaled to length 1.
    """

    split: str
    num_parts: int
    num_nearest: int
    normalise: bool


def search_part(session, describer, wanted, queries, part, image_ids):
    """Describes and searches one part, unless its file is there.

    Args:
        session: `Session`.
        describer: `Describer`.
        wanted: `Search`.
        queries: `Descriptions`, of length 1 where the search wants that.
        part: number of the part, from 0.
        image_ids: (n,) uint64, all images of the split that count.

    Returns:
        The part's file.
    """
    path = session.path(part_name(part, wanted.num_parts))
    source = session.source
    shards = np.array_split(source.select_shards(wanted.split), wanted.num_parts)[part].tolist()
    fingerprint = describer.fingerprint_for(source, shards, image_ids) | {
        "part": part,
        "split": wanted.split,
        "parts": wanted.num_parts,
        "top": wanted.num_nearest,
        "normalise": wanted.normalise,
        "queries": digest_of(queries.image_ids),
        "query_shards": digest_of_shards(source, _test_shards(source)),
    }
    if load_if_of(path, fingerprint | {"left_out": []}) is not None:
        return path
    described, left_out = describe_shards(session, describer, shards, image_ids)
    index = gather(described, describer, wanted.normalise)
    found = search.find_candidates(
        queries.descriptors,
        queries.landmark_ids,
        index.descriptors,
        index.landmark_ids,
        wanted.num_nearest,
        propose=device_search.find_proposer(),
    )
    # Left-out shards make the file one that is not whole: the next run searches the part again.
    _save_part(path, fingerprint | {"left_out": left_out}, queries, index, found)
    say(
        f"part {part} of {wanted.num_parts}: {len(queries):,} queries, "
        f"{len(index):,} {wanted.split} images"
    )
    return path


def _save_part(path, fingerprint, queries, index, found):
    """Writes what `merging.load_part` reads."""
    save_arrays(
        path,
        fingerprint,
        query_ids=queries.image_ids,
        query_landmarks=queries.landmark_ids,
        query_places=queries.places,
        index_ids=index.image_ids,
        index_landmarks=index.landmark_ids,
        index_places=index.places,
        row_ends=found.row_ends,
        positions=found.positions,
        distances=found.distances,
    )


def find_queries(session, describer, given=None, normalise=False):
    """Finds the descriptions of the test images, or makes them.

    Args:
        session: `Session`.
        describer: `Describer`.
        given: file of queries that a person named; None looks in the output and in those of other
            kernels.
        normalise: scale the descriptors to length 1.

    Returns:
        `Descriptions` by ascending image id.

    Raises:
        ExpectedError: the given file was described by another model or with other settings.
    """
    source = session.source
    test_ids = read_image_ids(source.fetch(TEST_CSV))
    shards = _test_shards(source)
    expected = describer.fingerprint_for(source, shards, test_ids)
    if not shards:
        del expected["shards"]
    queries = _load_given(given, expected) if given else _find_usable(session, expected)
    if queries is None:
        queries = describe_split(session, describer, "test", test_ids, QUERIES)
    if normalise:
        queries = replace(queries, descriptors=unit_length(queries.descriptors))
    return queries


def _test_shards(source):
    """Lists the test shards; there may be none, since queries of another run serve without them."""
    return source.select_shards("test") if source.count_shards("test") else []


def _load_given(path, expected):
    """Loads the queries that a person named."""
    queries, fingerprint = load_queries(path)
    if not expected.items() <= fingerprint.items():
        raise ExpectedError(
            f"{path}: its queries are of {json.dumps(fingerprint)}; expected those of "
            f"{json.dumps(expected)}; give the file of this model, this test.csv and these "
            "settings",
            setting="queries",
        )
    _tell(path, queries, fingerprint["left_out"])
    return queries


def _find_usable(session, expected):
    """Loads the first whole file of queries of this fingerprint, or gives None."""
    for path in session.find_all(QUERIES):
        try:
            queries, fingerprint = load_queries(path)
        except ExpectedError as error:
            say(f"{error}: not used")
            continue
        left_out = fingerprint.get("left_out")
        if not expected.items() <= fingerprint.items():
            say(f"{path}: of another model or other settings, not used")
        elif left_out and path == session.path(QUERIES):
            return None  # those shards may be whole by now
        else:
            _tell(path, queries, left_out)
            return queries
    return None


def _tell(path, queries, left_out):
    without = f", without test shards {left_out}" if left_out else ""
    say(f"{path}: {len(queries):,} queries{without}")
