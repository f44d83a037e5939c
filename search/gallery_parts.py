"""Parts of the gallery: their files, and the gallery that they make together."""

import re
from dataclasses import dataclass

import numpy as np

from data import arrays
from data.arrays import column
from descriptors.descriptions import load_queries
from runs.session import DESCRIPTORS, QUERIES
from search.gallery import Gallery, neighbors_at
from search.merging import is_part, load_all
from utils import ExpectedError


@dataclass(frozen=True)
class GalleryPart:
    """What was found in a part of the gallery: the columns of gallery-part-K-of-N.npz."""

    query_ids: np.ndarray = column("uint64", "queries", order="increasing")
    # the part's images, their true landmarks
    gallery_ids: np.ndarray = column("uint64", "gallery images", order="increasing")
    gallery_landmarks: np.ndarray = column("int64", "gallery images", at_least=0)
    # rows of the part's images, nearest first; -1 fills up
    positions: np.ndarray = column(
        "int32", "queries", "neighbors", at_least=-1, below="gallery images"
    )
    distances: np.ndarray = column("float32", "queries", "neighbors", at_least=0)

    @property
    def neighbors(self):
        """The part's `GalleryNeighbors`."""
        images = self.gallery_ids, self.gallery_landmarks
        return neighbors_at(self.positions, self.distances, *images)


def save_part(path, fingerprint, query_ids, gallery, neighbors):
    """Writes what was found in a part: its `Gallery`, and the `GalleryNeighbors` in it."""
    positions = np.searchsorted(gallery.image_ids, neighbors.image_ids).astype(np.int32)
    positions = np.where(neighbors.landmark_ids >= 0, positions, np.int32(-1))
    images = gallery.image_ids, gallery.landmark_ids
    part = GalleryPart(query_ids, *images, positions, neighbors.distances)
    arrays.save_table(path, part, fingerprint)


def load_part(path):
    """Reads and checks a part: (`GalleryPart`, fingerprint); raises ExpectedError if it is none."""
    found, fingerprint = arrays.load_arrays(path)
    columns = arrays.columns_of(GalleryPart)
    files, kinds = fingerprint.get("files"), {"described": dict, "files": dict, "left_out": list}
    is_ours = is_part(fingerprint) and found.keys() == columns.keys()
    is_ours &= all(isinstance(fingerprint.get(name), kind) for name, kind in kinds.items())
    file_name = rf"{DESCRIPTORS}/train_\d{{3}}\.npz"
    if not is_ours or not all(re.fullmatch(file_name, name) for name in files):
        what = f"{path}: not a part of a gallery; expected a gallery-part-K-of-N.npz of nearest.py"
        raise ExpectedError(f"{what}; leave it out")
    arrays.check_arrays(path, found, columns)
    return GalleryPart(**found), fingerprint


def load_parts(paths):
    """Reads part files, see `load_all`: (list of (`GalleryPart`, fingerprint), shared facts)."""
    return load_all(paths, load_part, ["query_ids"], "gallery_ids", "gallery")


def find_queries_of(session, shared, given=None):
    """Finds the descriptions of test images that the parts were searched with, of length 1.

    `shared` are the facts that all parts share; `given` is as of `parts.find_queries`. Raises
    ExpectedError if they are not there.
    """

    def load(path):
        queries = load_queries(path)[0].of_unit_length()
        return queries, arrays.digest_of_rows(queries.image_ids, queries.descriptors)

    if given:
        queries, digest = load(given)
        if digest == shared["queries"]:
            return queries
    elif found := session.find_fitting(QUERIES, shared["queries"], load):
        return found[1]
    what = f"{given or session.path(QUERIES)}: not the queries that the parts were searched with"
    advice = "expected their queries.npz; search the parts again, or name the file"
    raise ExpectedError(f"{what}; {advice}", "queries" if given else None)


def open_gallery(session, parts):
    """Finds the described images of parts, list of (`GalleryPart`, fingerprint): `Gallery`."""
    files = {}
    for _, fingerprint in parts:
        wanted = {
            name: fingerprint["described"] | {"shards": version}
            for name, version in fingerprint["files"].items()
            if name not in fingerprint["left_out"]
        }
        whose = f"part {fingerprint['part']}; search that part again"
        files |= find_described(session, wanted, arrays.load_page, whose)
    image_ids = np.concatenate([part.gallery_ids for part, _ in parts])
    landmark_ids = np.concatenate([part.gallery_landmarks for part, _ in parts])
    image_ids, first_rows = np.unique(image_ids, return_index=True)
    return Gallery(files, image_ids, landmark_ids[first_rows])


def find_described(session, wanted, load, whose):
    """Finds files of descriptions, here or in other kernels' outputs: dict, path -> its facts.

    `wanted` is a dict, name -> what the file must say of itself; `load` as of
    `Session.find_fitting`; an ExpectedError says whose descriptors are missing, and what to do.
    """
    files = {}
    for name, facts in wanted.items():
        if not (found := session.find_fitting(name, facts, load)):
            what = f"{name}: not in {session.output}, nor in another kernel's output"
            raise ExpectedError(f"{what}; expected the descriptors of {whose}")
        files[found[0]] = facts
    return files
