"""Parts of the gallery: their files, and the gallery that they make together."""

import re
from dataclasses import dataclass, replace

import numpy as np

from data.arrays import (
    check_arrays,
    column,
    columns_of,
    digest_of_rows,
    load_arrays,
    load_page,
    save_table,
)
from descriptors.descriptions import load_queries, unit_length
from runs.session import DESCRIPTORS, QUERIES
from search.gallery import Gallery, GalleryNeighbors, no_neighbors
from search.part_files import load_all
from utils import ExpectedError


@dataclass(frozen=True)
class GalleryPart:
    """What was found in a part of the gallery: the columns of gallery-part-K-of-N.npz."""

    query_ids: np.ndarray = column("uint64", "queries", order="increasing")
    # the part's images
    gallery_ids: np.ndarray = column("uint64", "gallery images", order="increasing")
    # their true landmarks
    gallery_landmarks: np.ndarray = column("int64", "gallery images", at_least=0)
    # rows of the part's images, nearest first; -1 fills up
    positions: np.ndarray = column(
        "int32", "queries", "neighbors", at_least=-1, below="gallery images"
    )
    # as in `GalleryNeighbors`
    distances: np.ndarray = column("float32", "queries", "neighbors", at_least=0)

    @property
    def neighbors(self):
        """The part's `GalleryNeighbors`."""
        is_there = self.positions >= 0
        empty = no_neighbors(*self.positions.shape)
        if not len(self.gallery_ids):
            return empty
        return GalleryNeighbors(
            np.where(is_there, self.gallery_ids[self.positions], empty.image_ids),
            np.where(is_there, self.gallery_landmarks[self.positions], empty.landmark_ids),
            self.distances,
        )


def save_part(path, fingerprint, query_ids, gallery, neighbors):
    """Writes what was found in a part.

    Args:
        fingerprint: dict, with `part` and `parts`.
        query_ids: (num_queries,) uint64, increasing.
        gallery, neighbors: the part's `Gallery`, and `GalleryNeighbors` of the queries in it.
    """
    positions = np.searchsorted(gallery.image_ids, neighbors.image_ids).astype(np.int32)
    positions = np.where(neighbors.landmark_ids >= 0, positions, np.int32(-1))
    part = GalleryPart(
        query_ids, gallery.image_ids, gallery.landmark_ids, positions, neighbors.distances
    )
    save_table(path, part, fingerprint)


def load_part(path):
    """Reads a part and checks what is in it, whoever wrote it: (`GalleryPart`, fingerprint).

    Raises:
        ExpectedError: it is damaged, or not a part of a gallery.
    """
    arrays, fingerprint = load_arrays(path)
    number, num_parts = fingerprint.get("part"), fingerprint.get("parts")
    is_part = type(number) is int and type(num_parts) is int and 0 <= number < num_parts
    is_part &= _names_files(fingerprint)
    columns = columns_of(GalleryPart)
    if arrays.keys() != columns.keys() or not is_part:
        raise ExpectedError(
            f"{path}: not a part of a gallery; expected a gallery-part-K-of-N.npz of nearest.py; "
            "leave it out"
        )
    check_arrays(path, arrays, columns)
    return GalleryPart(**arrays), fingerprint


def _names_files(fingerprint):
    """Tells whether a part's page names the descriptions of train shards, and what is in them."""
    described, files = fingerprint.get("described"), fingerprint.get("files")
    return (
        isinstance(described, dict)
        and isinstance(files, dict)
        and isinstance(fingerprint.get("left_out"), list)
        and all(re.fullmatch(rf"{DESCRIPTORS}/train_\d{{3}}\.npz", name) for name in files)
    )


def load_parts(paths):
    """Reads part files, see `load_all`: (list of (`GalleryPart`, fingerprint), shared facts)."""
    return load_all(paths, load_part, ["query_ids"], "gallery_ids", "gallery")


def find_queries_of(session, shared, given=None):
    """Finds the descriptions of test images that the parts were searched with.

    Args:
        shared: dict of facts that all parts share.
        given: file of queries that a person named; None looks in the output and in those of other
            kernels.

    Returns:
        `Descriptions` of length 1, by ascending image id.

    Raises:
        ExpectedError: they are not there.
    """

    def load(path):
        queries = load_queries(path)[0]
        queries = replace(queries, descriptors=unit_length(queries.descriptors))
        return queries, digest_of_rows(queries.image_ids, queries.descriptors)

    if given:
        queries, digest = load(given)
        found = (given, queries) if digest == shared["queries"] else None
    else:
        found = session.find_fitting(QUERIES, shared["queries"], load)
    if found:
        return found[1]
    raise ExpectedError(
        f"{given or session.path(QUERIES)}: not the queries that the parts were searched with; "
        "expected their queries.npz; search the parts again, or name the file",
        setting="queries" if given else None,
    )


def open_gallery(session, parts):
    """Finds the descriptions of parts, in the output or in those of other kernels; gives `Gallery`.

    `gallery.find_neighbors` then names any images by them, test or index.

    Args:
        parts: list of (`GalleryPart`, fingerprint), one or all of them.

    Raises:
        ExpectedError: a file is not there.
    """
    files = {}
    for _, fingerprint in parts:
        for name, version in fingerprint["files"].items():
            if name in fingerprint["left_out"]:
                continue
            described_as = fingerprint["described"] | {"shards": version}
            if not (found := session.find_fitting(name, described_as, load_page)):
                raise ExpectedError(
                    f"{name}: not in {session.output}, nor in another kernel's output; expected "
                    f"the descriptors of part {fingerprint['part']}; search that part again"
                )
            files[found[0]] = described_as
    image_ids = np.concatenate([part.gallery_ids for part, _ in parts])
    landmark_ids = np.concatenate([part.gallery_landmarks for part, _ in parts])
    image_ids, first_rows = np.unique(image_ids, return_index=True)
    return Gallery(files, image_ids, landmark_ids[first_rows])
