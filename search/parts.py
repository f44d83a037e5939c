"""Describes and searches one part of a split, for every script that does so.

A part is the share of a split that one kernel takes. Its file holds the candidates of all queries;
`merging` joins the files of all parts.
"""

import json
from dataclasses import dataclass, replace

import numpy as np

from data.arrays import columns_of, digest_of, digest_of_rows, load_page, save_arrays, save_table
from data.landmarks import read_image_ids
from data.sources import TEST_CSV, digest_of_shards, share_of
from descriptors.describe import describe_queries, describe_shards, gather
from descriptors.descriptions import load_image_ids, load_queries
from runs.session import EXPANDED_QUERIES, QUERIES, descriptions_name, gallery_part_name, part_name
from search import exact
from search.candidates import AGREEMENT_WEIGHT
from search.expansion import expand, index_of
from search.gallery import NUM_NEIGHBORS, Gallery, find_neighbors
from search.gallery_parts import find_described, save_part
from search.gallery_parts import load_part as load_gallery_part
from search.merging import Part, load_part
from search.naming import Namer
from search.reranks import RERANKS, SoftLabels
from utils import ExpectedError, say


@dataclass(frozen=True)
class Expansion:
    """What the descriptors become before they are compared, see `expansion`."""

    # descriptors in a sum, itself included; 0 leaves them
    num_of_query: int
    num_of_index: int
    index: Gallery  # the whole index

    def facts(self):
        """Gives what tells expansions apart: a dict for a fingerprint."""
        versions = sorted(fact["shards"] for fact in self.index.files.values())
        shards = digest_of(np.array(versions, "U"))
        return {"queries": self.num_of_query, "index": self.num_of_index, "shards": shards}


@dataclass(frozen=True)
class WantedSearch:
    """What to search in the index and how."""

    num_parts: int  # parts of the index
    num_nearest: int  # images wanted for a query
    normalise: bool  # compare descriptors scaled to length 1
    rerank: str = "divide"  # that of the merge, unless it is told another one
    has_all_reranks: bool = False  # keep the candidates of all, not of "divide" and "none" alone
    namer: Namer = Namer()  # of the index images
    query_labels: SoftLabels | None = None  # None is what the queries say themselves
    expansion: Expansion | None = None  # None for descriptors as they are

    def facts(self):
        """Gives what a part's fingerprint says of it: nothing more than in 2019 for 2019."""
        facts = {"split": "index", "parts": self.num_parts, "top": self.num_nearest,
                 "normalise": self.normalise}  # fmt: skip
        more = {"rerank": self.has_all_reranks and self.rerank,
                "weight": self.has_all_reranks and AGREEMENT_WEIGHT, "names": self.namer.facts,
                "expansion": self.expansion and self.expansion.facts()}  # fmt: skip
        return facts | {name: fact for name, fact in more.items() if fact}


def search_part(session, describer, wanted, queries, part, image_ids):
    """Describes and searches a part of the index, unless its file is there; gives that.

    The queries have length 1 where the search wants that; `image_ids`, (n,) uint64, are all images
    of the index that count.
    """
    name, source = part_name(part, wanted.num_parts), session.source
    shards = share_of(source.select_shards("index"), part, wanted.num_parts)
    fingerprint = describer.fingerprint_for(source, shards, image_ids) | {
        "part": part,
        **wanted.facts(),
        "queries": digest_of(queries.image_ids),
        "query_shards": digest_of_shards(source, _test_shards(source)),
    }
    if found := session.find_fitting(name, fingerprint | {"left_out": []}, load_part, copied=True):
        return found[0]
    described, left_out = describe_shards(session, describer, shards, image_ids)
    index = gather(described, describer, wanted.normalise, keeps_repeated=True)
    found, path = find_all_candidates(wanted, queries, index), session.path(name)
    # Left-out shards make the file one that is not whole: the next run searches the part again.
    save_arrays(path, fingerprint | {"left_out": left_out}, **found)
    counts = f"{len(queries):,} queries, {len(index):,} index images"
    say(f"part {part} of {wanted.num_parts}: {counts}")
    return path


def find_all_candidates(wanted, queries, index):
    """Names and searches a part's images: dict of the columns that `merging.load_part` reads.

    An id may have several pictures, in one shard or in two. All of them are searched, and the merge
    takes the one that is best for a query, in whatever parts they are. Each list is longer by as
    many pictures as repeat an id, so that enough ids are in it.
    """
    num_nearest = wanted.num_nearest + len(index) - len(np.unique(index.image_ids))
    query_labels = wanted.query_labels or Namer().name(queries)
    labels = wanted.namer.name(index)
    vectors, expansion = index.descriptors, wanted.expansion
    if expansion and expansion.num_of_index:
        vectors = expand(index.image_ids, vectors, expansion.index, expansion.num_of_index)
    asked = queries.image_ids, query_labels.landmark_ids, queries.places
    index_columns = index.image_ids, labels.landmark_ids, index.places
    both_sides = queries.descriptors, asked[1], vectors, labels.landmark_ids
    found = exact.find_candidates(*both_sides, num_nearest)
    found_columns = found.row_ends, found.positions, found.distances
    columns = dict(zip(columns_of(Part), (*asked, *index_columns, *found_columns), strict=True))
    if wanted.has_all_reranks:
        both_sides = queries.descriptors, query_labels, vectors, labels
        for rerank in filter(lambda one: one.find, RERANKS.values()):
            of_rerank = rerank.find(*both_sides, num_nearest)
            columns |= dict(zip(rerank.columns, of_rerank, strict=True))
    return columns


def find_whole_index(session, describer, image_ids, describes_it):
    """Finds the descriptors of all index shards as a `Gallery`; raises as `find_described`."""
    shards, source = session.source.select_shards("index"), session.source
    if describes_it:
        describe_shards(session, describer, shards, image_ids)
    wanted = {descriptions_name(shard): describer.fingerprint_for(source, [shard], image_ids)
              for shard in shards}  # fmt: skip
    whose = "the whole index, which an expansion sums up; search all parts without it first"
    return index_of(find_described(session, wanted, load_image_ids, whose), image_ids)


def expand_queries(session, queries, expansion):
    """Expands the queries, `Descriptions` of length 1, unless this was done before; gives such."""
    image_ids, descriptors = queries.image_ids, queries.descriptors
    facts = expansion.facts() | {"of": digest_of_rows(image_ids, descriptors)}
    del facts["index"]  # which is searched as it is
    if found := session.find_fitting(EXPANDED_QUERIES, facts, load_queries):
        return found[1]
    descriptors = expand(image_ids, descriptors, expansion.index, expansion.num_of_query)
    queries = replace(queries, descriptors=descriptors)
    save_table(session.path(EXPANDED_QUERIES), queries, facts)
    return queries


def search_gallery_part(session, describer, queries, images, part, num_parts):
    """Describes and searches a part of the train shards, unless its file is there; gives that.

    The queries have length 1; `images` are (`ClassTable`, `TrainLabels`) of all that count.
    """
    name, source = gallery_part_name(part, num_parts), session.source
    class_table, labels = images
    shards = share_of(source.select_shards("train"), part, num_parts)
    described_as = describer.fingerprint | {"images": digest_of(labels.image_ids)}
    fingerprint = {
        "part": part,
        "parts": num_parts,
        "neighbors": NUM_NEIGHBORS,
        "labels": f"{class_table.fingerprint}-{labels.fingerprint}",
        "queries": digest_of_rows(queries.image_ids, queries.descriptors),
        "described": described_as,
        "files": {descriptions_name(shard): digest_of_shards(source, [shard]) for shard in shards},
    }
    # The vote reads the descriptors once more: without them the part is not done.
    is_described = all(
        session.find_fitting(file, described_as | {"shards": version}, load_page, copied=True)
        for file, version in fingerprint["files"].items()
    )
    whole = name, fingerprint | {"left_out": []}, load_gallery_part
    if is_described and (found := session.find_fitting(*whole, copied=True)):
        return found[0]
    described, left_out = describe_shards(session, describer, shards, labels.image_ids)
    image_ids = np.unique(np.concatenate([np.empty(0, np.uint64), *described.values()]))
    classes = labels.class_indices[np.searchsorted(labels.image_ids, image_ids)]
    gallery = Gallery(dict.fromkeys(described), image_ids, class_table.landmark_ids[classes])
    neighbors = find_neighbors(gallery, queries.descriptors)
    without = [descriptions_name(shard) for shard in shards if shard.number in left_out]
    path, fingerprint = session.path(name), fingerprint | {"left_out": without}
    save_part(path, fingerprint, queries.image_ids, gallery, neighbors)
    counts = f"{len(queries):,} queries, {len(image_ids):,} train images"
    num_landmarks = len(np.unique(gallery.landmark_ids))
    say(f"part {part} of {num_parts}: {counts} of {num_landmarks:,} landmarks")
    return path


def find_queries(session, describer, given=None):
    """Finds the descriptions of the test images, or makes them: `Descriptions` by image id.

    A file that a person gives is an ExpectedError if it is of another model or other settings; None
    looks in the output and in those of other kernels.
    """
    source = session.source
    test_ids, shards = read_image_ids(source.fetch(TEST_CSV)), _test_shards(source)
    expected = describer.fingerprint_for(source, shards, test_ids)
    if not shards:
        del expected["shards"]
    queries = _load_usable(session, expected, given)
    if queries is None:
        queries = describe_queries(session, describer, test_ids)
    return queries


def _test_shards(source):
    """Lists the test shards; there may be none, since queries of another run serve without them."""
    return source.select_shards("test") if source.count_shards("test") else []


def _load_usable(session, expected, given=None):
    """Loads the given queries, or the first whole file of this fingerprint; None of no such."""

    def load(path):
        queries, fingerprint = load_queries(path)
        if expected.items() <= fingerprint.items():
            return (queries, fingerprint.get("left_out")), expected
        if path != given:
            raise ExpectedError(f"{path}: of another model or other settings")
        what, wanted = f"its queries are of {json.dumps(fingerprint)}", json.dumps(expected)
        advice = "give the file of this model, this test.csv and these settings"
        raise ExpectedError(f"{path}: {what}; expected those of {wanted}; {advice}", "queries")

    found = (given, load(given)[0]) if given else session.find_fitting(QUERIES, expected, load)
    path, (queries, left_out) = found or (None, (None, None))
    if queries is None or (left_out and not given and path == session.path(QUERIES)):
        return None  # left-out shards may be whole by now
    without = f", without test shards {left_out}" if left_out else ""
    say(f"{path}: {len(queries):,} queries{without}")
    return queries
