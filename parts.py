"""Describes and searches one part of a split, for every script that does so.

A part is the share of a split that one kernel takes. Its file holds the candidates of all queries;
`merging` joins the files of all parts.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import search
from describe import (
    Describer,
    Settings,
    describe_shards,
    describe_split,
    digest_of_shards,
    gather,
)
from descriptions import digest_of, load_if_of, load_queries, unit_length
from landmarks import read_image_ids
from session import QUERIES, part_name
from sources import TEST_CSV, Shard
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
    shards = shards_of_part(session.source, wanted, part)
    fingerprint = _fingerprint_of(session.source, describer, wanted, queries, part, image_ids)
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
    )
    # Left-out shards make the file one that is not whole: the next run searches the part again.
    _save_part(path, fingerprint | {"left_out": left_out}, queries, index, found)
    say(
        f"part {part} of {wanted.num_parts}: {len(queries):,} queries, "
        f"{len(index):,} {wanted.split} images"
    )
    return path


def shards_of_part(source, wanted, part):
    """Lists the shards of a part of a `Search`."""
    return np.array_split(source.select_shards(wanted.split), wanted.num_parts)[part].tolist()


def is_searched(session, describer, wanted, queries, part, image_ids):
    """Tells whether the file of a part is there; arguments as of `search_part`."""
    path = session.path(part_name(part, wanted.num_parts))
    fingerprint = _fingerprint_of(session.source, describer, wanted, queries, part, image_ids)
    return load_if_of(path, fingerprint | {"left_out": []}) is not None


def _fingerprint_of(source, describer, wanted, queries, part, image_ids):
    shards = shards_of_part(source, wanted, part)
    return describer.fingerprint_for(source, shards, image_ids) | {
        "part": part,
        "split": wanted.split,
        "parts": wanted.num_parts,
        "top": wanted.num_nearest,
        "normalise": wanted.normalise,
        "queries": digest_of(queries.image_ids),
        "query_shards": digest_of_shards(source, _test_shards(source)),
    }


# ---------------------------------------------------------------------- as jobs of a scheduler


@dataclass(frozen=True)
class Job:
    """A share of a search that a worker does; can be pickled.

    Attributes:
        settings: `describe.Settings`.
        wanted: `Search`.
        images_csv: file of the source that names the images of the split.
        given: file of queries that a person named, or None.
        part: number of the part, or None.
        shard: `Shard`, or None.
    """

    settings: Settings
    wanted: Search
    images_csv: str
    given: Path | None
    part: int | None = None
    shard: Shard | None = None


_describers = {}  # of this worker, the last one alone: a network takes memory


def _describer_for(session, job):
    if job.settings not in _describers:
        _describers.clear()
        _describers[job.settings] = Describer(job.settings, session.source)
    return _describers[job.settings]


def describe_job(session, job):
    """Describes a job's shard, unless its file is there."""
    csv = TEST_CSV if job.shard.split == "test" else job.images_csv
    image_ids = read_image_ids(session.source.fetch(csv))
    describe_shards(session, _describer_for(session, job), [job.shard], image_ids)


def has_queries(session, job):
    """Tells whether there are queries to use."""
    return job.given is not None or find_whole_queries(session, _describer_for(session, job))


def query_job(session, job):
    """Gathers the queries; tells which parts have to be searched."""
    describer, image_ids = (
        _describer_for(session, job),
        read_image_ids(session.source.fetch(job.images_csv)),
    )
    queries = find_queries(session, describer, job.given, job.wanted.normalise)
    return [
        part
        for part in range(job.wanted.num_parts)
        if not is_searched(session, describer, job.wanted, queries, part, image_ids)
    ]


def search_job(session, job):
    """Searches a job's part; gives the name of its file."""
    describer = _describer_for(session, job)
    image_ids = read_image_ids(session.source.fetch(job.images_csv))
    queries = find_queries(session, describer, job.given, job.wanted.normalise)
    search_part(session, describer, job.wanted, queries, job.part, image_ids)


def search_on(workers, job, wanted_parts):
    """Describes and searches parts on the workers of a scheduler, shard by shard.

    Args:
        workers: `scheduler.Workers`.
        job: `Job` without part or shard.
        wanted_parts: list of the numbers of the parts.

    Returns:
        list of the parts' files.
    """
    source, num_parts = workers.session.source, job.wanted.num_parts
    if workers.run(has_queries, [job], "looks for queries done", on_gpu=True) == [False]:
        jobs = [replace(job, shard=shard) for shard in source.select_shards("test")]
        workers.run(describe_job, jobs, "test shards described", on_gpu=True)
    (missing,) = workers.run(query_job, [job], "sets of queries gathered", on_gpu=True)
    missing = [part for part in wanted_parts if part in missing]
    shards = [s for part in missing for s in shards_of_part(source, job.wanted, part)]
    jobs = [replace(job, shard=shard) for shard in shards]
    workers.run(describe_job, jobs, f"{job.wanted.split} shards described", on_gpu=True)
    jobs = [replace(job, part=part) for part in missing]
    workers.run(search_job, jobs, "parts searched", on_gpu=True)
    return [workers.session.path(part_name(part, num_parts)) for part in wanted_parts]


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


def find_whole_queries(session, describer):
    """Tells whether the output or another kernel has queries to use, without describing any."""
    test_ids = read_image_ids(session.source.fetch(TEST_CSV))
    shards = _test_shards(session.source)
    expected = describer.fingerprint_for(session.source, shards, test_ids)
    if not shards:
        del expected["shards"]
    return _find_usable(session, expected) is not None


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
