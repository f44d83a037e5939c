"""The gallery: train images with descriptors and true landmarks, and the nearest of them.

Exact, and the same however the gallery is split: over kernels, over files, over what is in memory
at a time. Similarities are cosines of descriptors of length 1, counted as squared distances: a
cosine is 1 - distance / 2.
"""

from dataclasses import dataclass

import numpy as np

from descriptors.descriptions import load_descriptions, unit_length
from search.merging import rank_once
from utils import ExpectedError

NUM_NEIGHBORS = 10  # kept for each query: every vote and rerank here looks at fewer
CHUNK_BYTES = 1 << 30  # of descriptors as float32, in memory at a time; twice that while they sort
NO_IMAGE = 0  # image id where a query has fewer neighbors; the landmark there is -1
FARTHEST = np.float32(8)  # their distance: those of length 1 reach 4
# Non-landmarks that a query is compared with: psinger/kaggle-landmark-recognition-2020-1st-place.
NUM_LIKE_QUERY = 10


@dataclass(frozen=True)
class GalleryNeighbors:
    """The k gallery images that are nearest to each of some images, best first.

    Equal distances go by image id. Where the gallery is smaller, landmark -1 fills up.
    """

    image_ids: np.ndarray  # (n, k) uint64
    landmark_ids: np.ndarray  # (n, k) int64, the true landmarks
    distances: np.ndarray  # (n, k) float32, squared L2

    @property
    def cosines(self):
        """(n, k) float32, between image and gallery image; -1 where there is none."""
        return np.where(self.landmark_ids >= 0, 1 - self.distances / 2, np.float32(-1))


def neighbors_at(positions, distances, image_ids, landmark_ids):
    """Gives the `GalleryNeighbors` at positions (n, k), -1 for none, of a gallery's images."""
    return GalleryNeighbors(
        np.append(image_ids, np.uint64(NO_IMAGE))[positions],  # -1 takes the last
        np.append(landmark_ids, -1)[positions],
        np.where(positions >= 0, distances, FARTHEST),
    )


def no_neighbors(num_images, num_neighbors):
    """Gives `GalleryNeighbors` of a gallery without images."""
    nowhere, none = np.full((num_images, num_neighbors), -1), np.empty(0, np.int64)
    return neighbors_at(nowhere, FARTHEST, none.astype(np.uint64), none)


def merge_neighbors(found, num_neighbors=NUM_NEIGHBORS):
    """Merges a list of `GalleryNeighbors` of the same images in several pieces of the gallery.

    The result is the same in whatever pieces, in whatever order. An image that is in several counts
    once, where it is nearest.
    """
    found = [*found, no_neighbors(len(found[0].image_ids), num_neighbors)]
    columns = zip(*(vars(one).values() for one in found), strict=True)
    columns = [np.concatenate(column, axis=1) for column in columns]
    image_ids, landmark_ids, distances = columns
    keys = np.where(landmark_ids >= 0, distances, np.inf)
    order, is_kept = rank_once(keys, image_ids, num_neighbors)
    # Those that are kept before those that are not; stable, so that they stay sorted.
    first = np.argsort(~is_kept, axis=1, kind="stable")[:, :num_neighbors]
    order, is_kept = (np.take_along_axis(one, first, axis=1) for one in (order, is_kept))
    columns = zip(columns, (NO_IMAGE, -1, FARTHEST), strict=True)
    return GalleryNeighbors(*(
        np.where(is_kept, np.take_along_axis(column, order, axis=1), none)
        for column, none in columns
    ))  # fmt: skip


@dataclass(frozen=True)
class Gallery:
    """Described train images."""

    files: dict  # path of a file of descriptions -> its fingerprint, or None for any
    # (n,) uint64, increasing; images of the files that are not among them are left out
    image_ids: np.ndarray
    landmark_ids: np.ndarray  # (n,) int64, their true landmarks

    def chunks(self):
        """Reads the files one after another.

        Yields:
            (positions in `image_ids` (m,) int64, ascending; descriptors (m, d) float32 of length
            1), at most CHUNK_BYTES. An image that appears twice comes twice.
        """
        waiting, num_bytes = [], 0
        for path, fingerprint in self.files.items():
            positions, descriptors = self._read(path, fingerprint)
            if num_bytes + descriptors.nbytes > CHUNK_BYTES:
                yield from _sort_chunk(waiting)
                num_bytes = 0
            waiting.append((positions, descriptors))
            num_bytes += descriptors.nbytes
        yield from _sort_chunk(waiting)

    def _read(self, path, fingerprint):
        described, found = load_descriptions(path)
        if fingerprint is not None and found != fingerprint:
            what = f"{path}: of another model, other labels or another shard"
            expected = "the descriptors that the part was searched with"
            raise ExpectedError(f"{what}; expected {expected}; search its part again")
        positions = np.searchsorted(self.image_ids, described.image_ids)
        is_wanted = positions < np.searchsorted(self.image_ids, described.image_ids, "right")
        # By file, so that the rounding of the length depends on nothing else.
        descriptors = unit_length(described.descriptors.astype(np.float32))
        return positions[is_wanted], descriptors[is_wanted]


def _sort_chunk(pieces):
    """Sorts pieces of (positions, descriptors) by position."""
    if pieces:
        positions, descriptors = (np.concatenate(column) for column in zip(*pieces, strict=True))
        pieces.clear()  # their memory
        order = np.argsort(positions, kind="stable")
        if len(order):
            yield positions[order], descriptors[order]


def find_neighbors(gallery, descriptors, num_neighbors=NUM_NEIGHBORS):
    """Finds the gallery images nearest to descriptors (n, d) of length 1, exactly."""
    from search import exact  # it loads faiss, which whoever reads names alone does without

    found = no_neighbors(len(descriptors), num_neighbors)
    for positions, index in gallery.chunks():
        most_often = int(np.bincount(positions).max())  # so many rows are of one image
        rows, distances = exact.nearest(descriptors, index, num_neighbors * most_often)
        of_chunk = gallery.image_ids[positions], gallery.landmark_ids[positions]
        found = merge_neighbors([found, neighbors_at(rows, distances, *of_chunk)], num_neighbors)
    return found


def likeness_to(descriptors, rows):
    """Tells how much images are like some of them: the mean of the 10 largest cosines, (n,).

    Args:
        descriptors: (n, d) float32 of length 1.
        rows: (m,) int64, increasing, of those to compare with; never an image with itself. Where
            there are none, the likeness is 0.
    """
    from search import exact

    num_asked = min(NUM_LIKE_QUERY + 1, len(rows))
    if not num_asked:
        return np.zeros(len(descriptors), np.float32)
    own = np.full(len(descriptors), -1)
    own[rows] = np.arange(len(rows))
    found, distances = exact.nearest(descriptors, descriptors[rows].astype(np.float32), num_asked)
    counts = found != own[:, None]
    counts &= np.cumsum(counts, axis=1) <= NUM_LIKE_QUERY
    cosines = np.where(counts, 1 - distances.astype(np.float64) / 2, 0)
    return (cosines.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)).astype(np.float32)
